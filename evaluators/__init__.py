"""What a model is worth: explanation, fairness, performance. Nothing is here yet."""
