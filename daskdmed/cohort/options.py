"""What a user may say of an image beside where it is, checked: which image of a file, what of it,
how large its voxels are, and what lies outside.

Not covered: the record that says it (`daskdmed.cohort.record`), and where levels and micrometers
come from (`daskdmed.core.resolution`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import DatasetError, ResolutionError
from daskdmed.images.channels import as_channels

if TYPE_CHECKING:
    from daskdmed.cohort.annotations.table import Annotations

#: what a record tells `daskdmed.open_volume`
VOLUME_OPTIONS = ("series", "dataset", "time", "form", "on_gap")
#: what it tells `daskdmed.open_slide`, and of its colours
SLIDE_OPTIONS = ("image", "plane", "color")
#: all that it may say of which image of a file is meant, and what of it
IMAGE_OPTIONS = (*VOLUME_OPTIONS, *SLIDE_OPTIONS, "channels")


def as_options(said: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of an image, one text or tuple for what can be said in several ways."""
    options = {name: value for name, value in said.items() if value is not None}
    for name in {"image", "plane"} & options.keys():
        options[name] = str(options[name])
    if options.get("color", "srgb") != "srgb":
        raise DatasetError(f"color is 'srgb' or None, got {options['color']!r}")
    if "channels" in options:
        options["channels"] = as_channels(options["channels"])
    return options


def as_spacing(spacing: Any, mpp: Any) -> tuple[float, ...]:
    """Millimeters along each axis of space, or of all; not beside mpp."""
    try:
        values = tuple(float(v) for v in np.ravel(spacing))
    except (TypeError, ValueError):
        values = ()
    if not values or not all(0 < v < math.inf for v in values):
        raise ResolutionError(
            "spacing must be positive numbers, millimeters along each spatial axis in array "
            f"order, got {spacing!r}"
        )
    if mpp is not None:
        raise ResolutionError("mpp and spacing say the same thing in other units; give one")
    return values


def as_background(given: Any) -> Any:
    """One value, or one per channel; as Python's own numbers, so that equal ones compare so."""
    values = [] if given is None else np.ravel(given).tolist()
    return tuple(values) if len(values) > 1 else (values or [None])[0]


def as_annotations(value: Any, backend: str | None) -> Annotations:
    """What was drawn, checked to be that."""
    from daskdmed.cohort.annotations.table import Annotations

    if not isinstance(value, Annotations):
        raise DatasetError(
            f"annotations= takes Annotations, got {type(value).__name__}; write "
            "Record('slide.geojson') or Record(annotations=read_annotations(...))"
        )
    if backend is not None:
        raise DatasetError(f"backend={backend!r} is for images, this record is annotations")
    return value
