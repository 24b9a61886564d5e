"""Files as lazy Dask arrays. Knows formats; knows nothing of patients or sampling.

Names are imported on first use (PEP 562).
"""

from __future__ import annotations

import lazy_loader

# the names and where they come from stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
