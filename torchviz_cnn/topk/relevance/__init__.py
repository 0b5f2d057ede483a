"""How much each channel adds to a score: activation x gradient."""
