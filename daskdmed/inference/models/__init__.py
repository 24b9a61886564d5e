"""What users give as a model, as one kind of callable over batches of windows."""
