"""Plain pictures (PNG, JPEG, JPEG 2000, BMP, WebP) as slides of one level."""

from __future__ import annotations

from daskdmed.images.raster.backend import RasterBackend

__all__ = ["RasterBackend"]
