"""Files that are written whole, folders of results that survive a kill, and processes that share a run."""
