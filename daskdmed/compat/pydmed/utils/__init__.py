"""PyDmed's ``pydmed.utils``: patients and datasets, small helpers, files of rows."""
