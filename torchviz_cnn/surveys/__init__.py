"""A survey of a folder of photos: what a network predicts of them, where it looks, and what it confuses."""
