"""OME-Zarr and plain Zarr: what the metadata mean, where the bytes are, and the backend.

`ZarrBackend` is the entry point; metadata are read and written in
`daskdmed.images.ngff.metadata`.
"""

from __future__ import annotations

from daskdmed.images.ngff.backend import ZarrBackend

__all__ = ["ZarrBackend"]
