"""The methods: one file per family, its functions and its frozen result type."""
