"""The commands of the command line, by family: for each, its arguments and its one call of the library."""
