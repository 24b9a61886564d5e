"""PyDmed's ``pydmed.extensions``: balanced and sliding-window loaders."""
