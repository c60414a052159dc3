"""The adversary: what a model or an update gives away."""
