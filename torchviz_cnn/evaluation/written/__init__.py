"""What a comparison of methods is written as: tables, and one page."""
