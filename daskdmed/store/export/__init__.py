"""Results and slides in the forms of other programs: TIFF, GeoJSON, OME-Zarr copies."""
