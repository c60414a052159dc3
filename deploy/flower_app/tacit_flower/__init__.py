"""Tacit's built-in apps under Flower's own engine: SuperLink, or simulation with Ray."""
