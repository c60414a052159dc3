"""The data owner's node: daemon, envelope, worker."""
