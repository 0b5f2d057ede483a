"""What a network's layers are, what they give, and what part of the input they depend on."""
