"""Predictions against references: overlaps, volumes and distances, scan by scan."""
