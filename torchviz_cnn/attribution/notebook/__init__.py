"""What class maps show of themselves in notebooks."""
