"""Slides to try things on: published ones by name, and made ones of any size.

Nothing here is needed to load one's own slides.
"""

from __future__ import annotations

from daskdmed.samples._fetch import available, fetch
from daskdmed.samples._made import CLASS_NAMES, MadeSlide
from daskdmed.samples._make import make_cohort, make_slide

__all__ = ["CLASS_NAMES", "MadeSlide", "available", "fetch", "make_cohort", "make_slide"]
