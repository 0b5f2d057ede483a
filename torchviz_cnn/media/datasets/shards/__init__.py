"""Photos in tar files, as the WebDataset format has them: what a pattern means, byte ranges, the index, the dataset."""
