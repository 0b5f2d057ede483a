"""Keras files: their layers with weights, and PyTorch networks that take them."""
