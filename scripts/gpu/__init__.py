"""What `scripts/gpu_check.py` measures and with what it compares."""
