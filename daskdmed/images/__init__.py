"""Files as lazy Dask arrays. Knows formats; knows nothing of patients or sampling.

Names are imported on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "ArrayView": "daskdmed.images.arrayview",
    "Backend": "daskdmed.images.protocols",
    "LevelInfo": "daskdmed.images.protocols",
    "Reader": "daskdmed.images.protocols",
    "Slide": "daskdmed.images.slide",
    "SlideInfo": "daskdmed.images.protocols",
    "SlideView": "daskdmed.images.view",
    "open_slide": "daskdmed.images.slide",
    "open_slides": "daskdmed.images.slide",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from daskdmed.images.arrayview import ArrayView as ArrayView
    from daskdmed.images.protocols import Backend as Backend
    from daskdmed.images.protocols import LevelInfo as LevelInfo
    from daskdmed.images.protocols import Reader as Reader
    from daskdmed.images.protocols import SlideInfo as SlideInfo
    from daskdmed.images.slide import Slide as Slide
    from daskdmed.images.slide import open_slide as open_slide
    from daskdmed.images.slide import open_slides as open_slides
    from daskdmed.images.view import SlideView as SlideView


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'daskdmed.images' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
