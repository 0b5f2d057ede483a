"""What a report shows of each channel beside its activations: filter patterns and top activations."""
