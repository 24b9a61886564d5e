"""OME-Zarr: metadata, coarser levels, labels."""
