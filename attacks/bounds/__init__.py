"""What attacks prove, or estimate, of an epsilon that is claimed."""
