"""Help for tests: of image backends, and of anything that moves pixels.

`BackendConformance` needs pytest and is imported on first use; the rest is plain NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "BackendConformance": "daskdmed.testing.conformance",
    "assert_same_pixels": "daskdmed.testing.arrays",
    "coordinate_image": "daskdmed.testing.arrays",
    "coordinates_of": "daskdmed.testing.arrays",
}

__all__ = ["BackendConformance", "assert_same_pixels", "coordinate_image", "coordinates_of"]

if TYPE_CHECKING:
    from daskdmed.testing.arrays import assert_same_pixels as assert_same_pixels
    from daskdmed.testing.arrays import coordinate_image as coordinate_image
    from daskdmed.testing.arrays import coordinates_of as coordinates_of
    from daskdmed.testing.conformance import BackendConformance as BackendConformance


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
