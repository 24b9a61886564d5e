"""Volumes: files of voxels with a place in the patient, as views and lazy Dask arrays."""
