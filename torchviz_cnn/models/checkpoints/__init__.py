"""PyTorch checkpoints: read as data, and fitted to networks."""
