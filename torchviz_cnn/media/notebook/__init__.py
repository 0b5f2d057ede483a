"""What results show of themselves in notebooks: pictures as PNG, tables as HTML, both limited in size."""
