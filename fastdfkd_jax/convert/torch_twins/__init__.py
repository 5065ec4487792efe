"""PyTorch versions of our networks, for comparison."""
