"""Streams: what becomes of windows that make no map.

A loader gives batches, a collector makes pieces of them, a writer puts the pieces on disk
as one row per window. Not covered: maps of one value per window, for which
`daskdmed.heatmap` is shorter and faster.
Names are imported on first use.
"""

from __future__ import annotations

import lazy_loader

# the names and where they come from stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
