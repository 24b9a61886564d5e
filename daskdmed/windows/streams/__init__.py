"""Streams: what becomes of windows that make no map.

A loader gives batches, a collector makes pieces of them, a writer puts the pieces on disk
as one row per window. Not covered: maps of one value per window, for which
`daskdmed.heatmap` is shorter and faster.
"""

from __future__ import annotations
