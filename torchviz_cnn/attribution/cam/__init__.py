"""Class heatmaps of a layer: Grad-CAM and its family, each a formula, and methods that need more than that."""
