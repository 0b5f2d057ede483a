"""What a survey is written as: one page that loads nothing."""
