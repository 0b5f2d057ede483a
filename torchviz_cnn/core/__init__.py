"""Errors, warnings, checks and the names of layers: what everything else stands on."""
