"""Who the images belong to: records, patients, datasets, splits and manifests.

Everything here is a small frozen value that pickles without open files; pixels are read
only when `Record.view` or `Record.open` is called. Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS: dict[str, str] = {
    "Record": "daskdmed.cohort.record",
    "Patient": "daskdmed.cohort.record",
    "Dataset": "daskdmed.cohort.dataset",
    "FrozenMapping": "daskdmed.cohort.frozen",
    "Annotations": "daskdmed.cohort.annotations",
    "Categories": "daskdmed.cohort.categories",
    "PatchCoordinates": "daskdmed.cohort.annotations",
    "read_annotations": "daskdmed.cohort.annotations",
    "target_view": "daskdmed.cohort.annotations",
    "TissueMask": "daskdmed.cohort.tissuemask",
    "tissue_mask": "daskdmed.cohort.tissue",
    "tissue_masks": "daskdmed.cohort.tissue",
}

__all__ = [
    "Annotations",
    "Categories",
    "Dataset",
    "FrozenMapping",
    "PatchCoordinates",
    "Patient",
    "Record",
    "TissueMask",
    "read_annotations",
    "target_view",
    "tissue_mask",
    "tissue_masks",
]

if TYPE_CHECKING:
    from daskdmed.cohort.annotations import Annotations as Annotations
    from daskdmed.cohort.annotations import PatchCoordinates as PatchCoordinates
    from daskdmed.cohort.annotations import read_annotations as read_annotations
    from daskdmed.cohort.annotations import target_view as target_view
    from daskdmed.cohort.categories import Categories as Categories
    from daskdmed.cohort.dataset import Dataset as Dataset
    from daskdmed.cohort.frozen import FrozenMapping as FrozenMapping
    from daskdmed.cohort.record import Patient as Patient
    from daskdmed.cohort.record import Record as Record
    from daskdmed.cohort.tissue import tissue_mask as tissue_mask
    from daskdmed.cohort.tissue import tissue_masks as tissue_masks
    from daskdmed.cohort.tissuemask import TissueMask as TissueMask


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'daskdmed.cohort' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
