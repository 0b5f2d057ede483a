"""The sections of `scripts/benchmark.py`: what is measured, and who takes part."""
