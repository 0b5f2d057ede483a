"""Hooks on named modules, a model that comes back as it was, and the backward rule of every ReLU."""
