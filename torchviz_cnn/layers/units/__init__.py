"""What single channels of a layer are like."""
