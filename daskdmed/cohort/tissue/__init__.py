"""Where tissue is: finding it, masks that know their slide, files and a cache of them.

Names are imported on first use.
"""

from __future__ import annotations

import lazy_loader

# the names and where they come from stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
