"""DP-SGD: the only part of privacy/ that loads torch. Nothing is imported here."""
