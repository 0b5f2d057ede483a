"""Datasets of photos: folders, whatever else is map-style, and how all of them become inputs for a network."""
