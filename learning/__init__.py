"""What is learned: models, data contracts, loaders, training loops."""
