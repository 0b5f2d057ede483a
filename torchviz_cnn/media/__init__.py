"""Photos: reading them, preparing them for a network, datasets of them, and pictures made from numbers."""
