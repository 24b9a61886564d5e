"""Datasets as they lie on disks. Importing registers none."""
