"""Gradient ascent on the input: filter patterns and any other objective."""
