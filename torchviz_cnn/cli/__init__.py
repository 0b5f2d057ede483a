"""The command line: `main`, what commands share, and one file for each command in `commands`."""
