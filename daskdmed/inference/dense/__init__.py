"""Dense prediction: maps of overlapping windows blended into one, band by band."""
