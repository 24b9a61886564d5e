"""daskdmed: feeds neural networks from images too large to load.

Slides and volumes are lazy Dask arrays, a persistence scheduler keeps rotating big chunks
of them in memory, small chunks are cropped from those into batches, and sliding-window
results go back to Zarr. Names are imported on first use (PEP 562), so that importing the
package costs milliseconds and needs no torch.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

# the names and where they come from stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
