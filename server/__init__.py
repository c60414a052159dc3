"""The aggregation daemon: holds no data, cannot train."""
