"""Result stores: OME-Zarr groups that lie on their slide, and how far a run has come.

Not covered: computing results (`daskdmed.windows`), reading slides (`daskdmed.images`).
"""

from __future__ import annotations
