"""Noise that several owners add together, inside a sum that nobody sees in parts."""
