"""The strongest activations of every channel over a dataset."""
