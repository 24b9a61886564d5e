"""What pathologists drew on slides: reading, writing, painting.

`Annotations` is a table of shapes in the level-0 frame; it comes from QuPath's GeoJSON, from
ASAP's XML, from masks or from patch coordinates, and becomes label maps on any image's grid.
Needs the extra ``annotations`` (shapely, defusedxml); patch coordinates in HDF5 need the
extra ``hdf5`` (h5py). Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS: dict[str, str] = {
    "Annotation": "daskdmed.cohort.annotations.annotation",
    "Annotations": "daskdmed.cohort.annotations.table",
    "AnnotationView": "daskdmed.cohort.annotations.view",
    "CollatedView": "daskdmed.cohort.annotations.view",
    "PatchCoordinates": "daskdmed.cohort.annotations.patches",
    "read_annotations": "daskdmed.cohort.annotations.reading",
    "target_view": "daskdmed.cohort.annotations.view",
}

__all__ = [
    "Annotation",
    "AnnotationView",
    "Annotations",
    "CollatedView",
    "PatchCoordinates",
    "read_annotations",
    "target_view",
]

if TYPE_CHECKING:
    from daskdmed.cohort.annotations.annotation import Annotation as Annotation
    from daskdmed.cohort.annotations.patches import PatchCoordinates as PatchCoordinates
    from daskdmed.cohort.annotations.reading import read_annotations as read_annotations
    from daskdmed.cohort.annotations.table import Annotations as Annotations
    from daskdmed.cohort.annotations.view import AnnotationView as AnnotationView
    from daskdmed.cohort.annotations.view import CollatedView as CollatedView
    from daskdmed.cohort.annotations.view import target_view as target_view


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'daskdmed.cohort.annotations' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
