"""What is found of each class in a pair of label maps, block by block: counts, and surfaces.

A class is one label or several; a block is compared once for all of them. Memory holds some
blocks and the positions of surface voxels.

Not covered: what follows from it (`daskdmed.inference.evaluation.scores`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import dask
import dask.array as da
import numpy as np

from daskdmed.core.errors import BudgetError, UsageError
from daskdmed.core.extras import extra
from daskdmed.core.region import Region
from daskdmed.core.types import Array

#: the labels that make a class
Labels: TypeAlias = tuple[int, ...]
#: of a map without any classes given, at most
_MOST_LABELS = 1024
#: voxels of the surfaces of a class, at most: a few GiB
_MOST_POINTS = 2**26


@dataclass(frozen=True)
class Tally:
    """Of one class: voxels in both, in the prediction, in the reference, and of the whole map; and
    the voxels of both surfaces, (n, axes) of int32, where these were asked for."""

    both: int
    predicted: int
    true: int
    total: int
    surface_predicted: Array | None = None
    surface_true: Array | None = None


def tallies(
    predicted: da.Array, true: da.Array, classes: Sequence[Labels], *, surfaces: bool
) -> list[Tally]:
    """One for each class, of two maps of the same shape."""
    halo = 1 if surfaces else 0
    places = _blocks(predicted.chunks, halo)
    maps = [predicted, true.rechunk(predicted.chunks)]
    if halo:
        maps = [da.overlap.overlap(one, depth=halo, boundary="none") for one in maps]
    blocks = zip(*(one.to_delayed().ravel() for one in maps), places, strict=True)
    count = dask.delayed(_count, pure=False)
    found = dask.compute(*(count(*pair, *place, classes, surfaces) for *pair, place in blocks))
    return [_joined([block[i] for block in found]) for i in range(len(classes))]


def labels_in(*maps: da.Array) -> list[int]:
    """The labels above 0 that occur in maps, in order."""
    tasks = [dask.delayed(_labels)(block) for one in maps for block in one.to_delayed().ravel()]
    found = sorted(set().union(*dask.compute(*tasks)) - {0})
    if len(found) > _MOST_LABELS:
        raise UsageError(
            f"the maps have {len(found)} labels, which are no classes but objects; say which "
            "count with classes=, or compare first: labels > 0"
        )
    return found


def _blocks(chunks: Any, halo: int) -> Iterator[tuple[Region, Region]]:
    """Every block, and the same with its neighbours' nearest voxels."""
    shape = [sum(sizes) for sizes in chunks]
    ends = [np.cumsum((0, *sizes)).tolist() for sizes in chunks]
    for box in itertools.product(*(itertools.pairwise(e) for e in ends)):
        core = Region.between(*zip(*box, strict=True))
        yield core, core.pad((halo,) * len(shape), (halo,) * len(shape)).clip(shape)


def _count(
    predicted: Array,
    true: Array,
    core: Region,
    around: Region,
    classes: Sequence[Labels],
    surfaces: bool,
) -> list[Tally]:
    """The tallies of one block."""
    predicted, true = whole(predicted, "a prediction"), whole(true, "a reference")
    inner = core.local_to(around).slices
    found = []
    for labels in classes:
        ours, theirs = _members(predicted, labels), _members(true, labels)
        found.append(
            Tally(
                both=int(np.count_nonzero((ours & theirs)[inner])),
                predicted=int(np.count_nonzero(ours[inner])),
                true=int(np.count_nonzero(theirs[inner])),
                total=core.size,
                surface_predicted=_surface(ours, core, around) if surfaces else None,
                surface_true=_surface(theirs, core, around) if surfaces else None,
            )
        )
    return found


def _members(values: Array, labels: Labels) -> Array:
    return np.asarray(values == labels[0] if len(labels) == 1 else np.isin(values, labels))


def _surface(inside: Array, core: Region, around: Region) -> Array:
    """Positions in the map of the voxels of a class with a neighbour across a face that is none of
    it, or that lie at the border of the map."""
    place = core.local_to(around).slices
    if not inside[place].any():
        return np.empty((0, inside.ndim), np.int32)
    ndimage = extra("scipy.ndimage", "volumes", "distances between surfaces need")
    edge = inside & ~ndimage.binary_erosion(inside)
    found: Array = np.argwhere(edge[place]).astype(np.int32) + np.array(core.origin, np.int32)
    return found


def whole(values: Array, what: str) -> Array:
    """Labels as integers; files hold them as floating point too. UsageError for what is none."""
    if values.dtype.kind in "biu":
        return values
    rounded = np.rint(values) if values.dtype.kind == "f" else values
    if values.dtype.kind != "f" or not np.array_equal(rounded, values):
        shown = values.dtype if values.dtype.kind != "f" else values[rounded != values].flat[0]
        raise UsageError(
            f"{what} holds {shown}, labels are whole numbers; predict with post='argmax' or "
            "'threshold', or compare first: scores >= 0.5"
        )
    return rounded.astype(np.int64)


def _labels(values: Array) -> set[int]:
    return {int(v) for v in np.unique(whole(values, "a map"))}


def _joined(parts: Sequence[Tally]) -> Tally:
    """Of a map from those of its blocks."""
    sums = (sum(getattr(p, n) for p in parts) for n in ("both", "predicted", "true", "total"))
    surfaces = []
    for name in ("surface_predicted", "surface_true"):
        points = [p for part in parts if (p := getattr(part, name)) is not None]
        if sum(map(len, points)) > _MOST_POINTS:
            raise BudgetError(
                f"the surface of a class has {sum(map(len, points))} voxels, {_MOST_POINTS} are "
                "the most that distances are computed for: leave these metrics away, or evaluate "
                "at a coarser resolution"
            )
        surfaces.append(np.concatenate(points) if points else None)
    return Tally(*sums, *surfaces)
