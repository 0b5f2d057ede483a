"""A network while it is trained: heatmaps of the same photos, filter patterns and dead channels, step by step."""
