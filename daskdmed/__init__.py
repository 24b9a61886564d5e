"""daskdmed: feeds neural networks from images too large to load.

Slides and volumes are lazy Dask arrays, a persistence scheduler keeps rotating big chunks
of them in memory, small chunks are cropped from those into batches, and sliding-window
results go back to Zarr. Names are imported on first use (PEP 562), so that importing the
package costs milliseconds and needs no torch.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

__version__ = "0.1.0"

# the names and where they come from stand in __init__.pyi
_get, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _get(name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from daskdmed.core.errors import MissingExtraError

        raise MissingExtraError(
            f"daskdmed.{name} needs torch; install it with: pip install 'daskdmed[torch]'"
        ) from error
