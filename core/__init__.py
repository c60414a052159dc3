"""The shared kernel: errors, configuration, identity, specification, artifacts, state directory."""
