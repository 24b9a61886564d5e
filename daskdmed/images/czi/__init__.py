"""CZI, the format of Zeiss, as slides."""

from __future__ import annotations

from daskdmed.images.czi.backend import CziBackend

__all__ = ["CziBackend"]
