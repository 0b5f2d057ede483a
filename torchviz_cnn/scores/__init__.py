"""What is explained: targets, scores and their gradients, the same in every method."""
