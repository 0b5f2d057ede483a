"""One offline page that shows a network."""
