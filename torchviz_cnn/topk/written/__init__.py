"""What of a result is kept in files, and how it is drawn."""
