"""What pathologists drew on slides: reading, writing, painting.

`Annotations` is a table of shapes in the level-0 frame; it comes from GeoJSON, from the XML of
ASAP, ImageScope, HALO or Hamamatsu, from masks or from patch coordinates, and becomes label maps
on any image's grid.
Needs the extra ``annotations`` (shapely, defusedxml, orjson); patch coordinates in HDF5 need the
extra ``hdf5`` (h5py). Names are imported on first use.
"""

from __future__ import annotations

import lazy_loader

# the names and where they come from stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
