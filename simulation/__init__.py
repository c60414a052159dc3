"""The same node and server code in one process; the demo and its data."""
