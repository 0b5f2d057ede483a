"""A dataset in pieces: how it is cut, sums that do not depend on the cuts, and pieces merged into one result."""
