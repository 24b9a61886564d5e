"""Whatever users give as predictions with their references, as pairs of arrays with a place.

Not covered: comparing them (`daskdmed.inference.evaluation.tally`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import zarr
from zarr.abc.store import Store

from daskdmed.cohort.sources import images_of
from daskdmed.core.errors import (
    DatasetError,
    GeometryError,
    ResolutionError,
    StoreError,
    UsageError,
)
from daskdmed.core.space import Space
from daskdmed.images.lazy import to_dask
from daskdmed.inference.counts import as_dask
from daskdmed.store.location import Location
from daskdmed.store.results.finished import group_of, keeps_cells, place_of, values_of

#: how far two spacings of the same voxels may differ
_SAME = 1e-3
#: per unit of `daskdmed.infer`, in millimeters
_MILLIMETERS = {"micrometer": 1e-3, "millimeter": 1.0}


@dataclass(frozen=True)
class Side:
    """One map of labels, and where it lies, as far as it is known."""

    array: da.Array
    space: Space | None = None
    spacing: tuple[float, ...] | None = None

    @classmethod
    def of(cls, value: Any) -> Side:
        """A path of a result or of an image, a record, a view, an array..."""
        if isinstance(value, (Store, zarr.Group)) or _is_result(value):
            array, group = values_of(value)
            return cls._at(as_dask(array), place_of(group))
        if isinstance(value, da.Array):
            group = group_of(value) if keeps_cells(value) else None
            return cls._at(as_dask(value), place_of(group))
        if isinstance(value, (np.ndarray, zarr.Array)) or not _is_image(value):
            return cls(as_dask(value))
        view = images_of(value).only("evaluate").view().as_labels()
        return cls(to_dask(view), view.space, view.spacing)

    @classmethod
    def _at(cls, array: da.Array, place: Any) -> Side:
        if place is None or place.spacing is None:
            return cls(array, None if place is None else place.space)
        steps = tuple(s * u for s, u in zip(place.stride, place.spacing, strict=True))
        return cls(array, place.space, steps)


@dataclass(frozen=True)
class Pair:
    """A scan: what was predicted, and what is true."""

    scan: str
    predicted: Side
    true: Side

    def checked(self) -> Pair:
        """Itself; GeometryError unless both are of the same voxels."""
        shapes = self.predicted.array.shape, self.true.array.shape
        spaces = self.predicted.space, self.true.space
        told = "; ".join(f"{n} in {s}" for n, s in zip(_NAMES, spaces, strict=True) if s)
        if shapes[0] != shapes[1]:
            raise GeometryError(
                f"scan {self.scan!r}: the prediction has shape {shapes[0]}, the reference "
                f"{shapes[1]}{'; ' if told else ''}{told}; read both with the same spacing= and "
                "orientation=, or export_volume(prediction, path, like=reference) first"
            )
        if 0 in shapes[0] or not shapes[0]:
            raise GeometryError(f"scan {self.scan!r}: a map of shape {shapes[0]} has no voxels")
        if spaces[0] is not None and spaces[1] is not None and not spaces[0].isclose(spaces[1]):
            raise GeometryError(
                f"scan {self.scan!r}: both do not lie at the same place ({told}); read both with "
                "the same spacing= and orientation=, or export_volume(prediction, path, "
                "like=reference) first"
            )
        return self

    def steps(self, given: Any) -> tuple[float, ...]:
        """Millimeters per voxel: of the reference, else of the prediction, else as given."""
        ndim = self.true.array.ndim
        known = next((s for s in (_steps(self.true), _steps(self.predicted)) if s), None)
        if given is None:
            if known is None or len(known) != ndim:
                raise ResolutionError(
                    f"scan {self.scan!r}: distances are in millimeters, and nobody says the size "
                    "of its voxels; give spacing= (1 for distances in voxels), or metrics= "
                    "without distances"
                )
            return known
        try:
            values = tuple(float(v) for v in np.broadcast_to(given, (ndim,)))
        except (TypeError, ValueError):
            values = ()
        if not values or not all(0 < v < np.inf for v in values):
            raise ResolutionError(
                f"spacing={given!r} must be positive millimeters, one number or {ndim}, one per "
                f"axis of {self.true.array.shape}"
            )
        if known is not None and not np.allclose(values, known, rtol=_SAME):
            raise ResolutionError(
                f"scan {self.scan!r}: spacing={values}, but its own is {known}; leave it away"
            )
        return values


_NAMES = ("the prediction", "the reference")


def _steps(side: Side) -> tuple[float, ...] | None:
    return side.spacing if side.space is None else side.space.spacing


def pairs_of(scans: Any) -> Iterator[Pair]:
    """What `daskdmed.infer` yields, pairs, or pairs by name, one after the other."""
    if isinstance(scans, Mapping):
        items: Iterable[tuple[str, Any]] = ((str(k), v) for k, v in scans.items())
    elif isinstance(scans, (str, bytes, os.PathLike)) or not isinstance(scans, Iterable):
        raise _unknown(scans)
    else:
        items = ((str(i), one) for i, one in enumerate(scans))
    for name, one in items:
        if not isinstance(one, (tuple, list)) or len(one) != 2:
            raise _unknown(one)
        first, second = one
        if isinstance(second, Mapping) and "y_pred" in second:
            yield _of_infer(first, second).checked()
        else:
            yield Pair(name, Side.of(first), Side.of(second)).checked()


def _of_infer(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Pair:
    """A scan of `daskdmed.infer`."""
    name = str(inputs["scan_id"])
    if outputs["y_true"] is None:
        raise DatasetError(
            f"scan {name!r} has no reference: give target= to infer, and only patients who have it"
        )
    unit = _MILLIMETERS.get(str(inputs.get("unit")))
    steps = None if unit is None else tuple(s * unit for s in outputs["spacing"])
    predicted = Side(as_dask(outputs["y_pred"]), None, steps)
    return Pair(name, predicted, replace(predicted, array=as_dask(outputs["y_true"])))


def _is_result(value: Any) -> bool:
    """Whether a path is that of a result, and not of an image."""
    if not isinstance(value, (str, os.PathLike)):
        return False
    try:
        group = Location.of(value).open("r", zarr_format=None)
    except StoreError:  # an image of some other kind
        return False
    return place_of(group) is not None


def _is_image(value: Any) -> bool:
    return not (hasattr(value, "__array__") and hasattr(value, "dtype"))


def _unknown(value: Any) -> UsageError:
    return UsageError(
        "scans are what infer yields, a list of pairs (prediction, reference), or "
        f"{{id: (prediction, reference)}}; got {type(value).__name__}"
        + (f" of shape {value.shape}" if hasattr(value, "shape") else "")
    )
