"""What every layer stands on: errors, value types, files, random numbers, bounded work.

No Dask arrays, no formats, and nothing of patients or models.
"""
