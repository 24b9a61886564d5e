"""Results on disk: OME-Zarr that lies on its slide, runs that resume, exports.

`results` is how far a run has come and where it is written, `ngff` the OME-Zarr of it,
`export` what other programs read. Not covered: computing results (`daskdmed.inference`) and
reading slides (`daskdmed.images`). Names are imported on first use.
"""

from __future__ import annotations

import lazy_loader

# the names and where they come from stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
