"""Every pixel exactly once: window geometry (pure), sliding windows, heatmaps.

The grid and the choice of blocks are pure functions; reading, running models and writing
stand on them. Not covered: what lies in a finished store (`daskdmed.store`) and how it is
drawn (`daskdmed.plot`).
"""

from __future__ import annotations
