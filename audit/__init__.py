"""Plan, merge, report and gate of a privacy audit. Nothing is here yet."""
