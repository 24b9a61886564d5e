"""TIFF slides: the built-in backend over tifffile and imagecodecs.

`TiffBackend` is the entry point; tile decoding is in `daskdmed.images.tiff.decode`.
"""

from __future__ import annotations

from daskdmed.images.tiff.backend import TiffBackend
from daskdmed.images.tiff.decode import count_tiles

__all__ = ["TiffBackend", "count_tiles"]
