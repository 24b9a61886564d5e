"""Transforms of whole batches, seeded by the small chunk.

For ``LightDL(batch_tfms=...)`` or ``LightDL(tfms=...)`` (the latter in the background), and
by themselves on any tensor ``[batch, channels, *spatial]``, on any device. Each random
parameter is a function of the transform's seed, its place in a `Compose`, and the key of
the small chunk: not of the batch, the worker or what was drawn before.

Not covered: random scales and elastic deformation (`PerSample` takes those of other libraries),
and anything at the level of a whole slide.
"""

from __future__ import annotations

import lazy_loader

# the names and where they come from stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
