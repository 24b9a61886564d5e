"""Where slices lie: their order, the distances between them, the affine. Pure.

Positions count, never numbers in file names. DICOM's world is LPS+, ours RAS+; its PixelSpacing
is (from row to row, from column to column). Where positions do not follow the normal of the
slices (a tilted gantry) the affine is sheared, which is exact.

Not covered: which slices belong together (`daskdmed.images.volumes.dicom.grouping`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from daskdmed.core.errors import GeometryError
from daskdmed.core.space import Space
from daskdmed.core.types import Array
from daskdmed.images.volumes.dicom.frames import Frame, Vector

#: part of the distance between slices by which one may lie beside its place: headers round
EVEN = 0.05
#: part of a pixel, or of a step, by which positions of one place may differ
SAME_PLACE = 0.01
#: gaps that differ by less than this part are the same distance
_SAME_GAP = 0.02
#: slices made by interpolation per stored one
_MOST = 8
#: gaps listed in errors
_SHOWN = 5
#: slice `low` and the weight of the one after it
Blend: TypeAlias = tuple[int, float]

_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Layout:
    """How slices become an array."""

    #: where voxels lie, and their size; None when the files do not say
    space: Space | None
    voxel_size: tuple[float, float, float] | None
    #: per slice of the array the stored slices that it is made of
    blends: tuple[Blend, ...]
    #: what was done to make it even
    note: str = ""


def along_normal(frame: Frame, axes: Vector | None = None) -> float:
    """Millimeters along the normal of a slice, or of others that it belongs to."""
    axes = axes or frame.axes
    assert axes is not None
    assert frame.position is not None
    return float(np.dot(_normal(axes), frame.position))


def _normal(axes: Vector) -> Array:
    return np.cross(axes[:3], axes[3:])


def lay_out(uri: str, frames: Sequence[Frame], on_gap: str) -> Layout:
    """The array of slices that are sorted along their normal, no two in one place.

    GeometryError for uneven distances, unless they are to be interpolated.
    """
    plain = tuple((k, 0.0) for k in range(len(frames)))
    first = frames[0]
    if first.axes is None or first.spacing is None:
        return Layout(None, _voxel_size(first), plain)
    if len(frames) == 1:
        if first.thickness is None:
            return Layout(None, None, plain)
        return Layout(_space(first, first.thickness * _normal(first.axes), 1), None, plain)
    position = np.array([f.position for f in frames], float)
    at = position @ _normal(first.axes)
    at -= at[0]
    gaps = np.diff(at)
    if gaps.min() <= SAME_PLACE * min(first.spacing):
        beside = int(gaps.argmin())
        raise GeometryError(
            f"{uri}: slices lie beside each other at {_at(frames[beside])} along the normal, as "
            f"{frames[beside].pixels.path} and {frames[beside + 1].pixels.path}; open the files "
            "of one stack, as a list"
        )
    direction = (position[-1] - position[0]) / at[-1]
    _check_line(uri, frames, position, at, direction)
    step = at[-1] / (len(at) - 1)
    if np.abs(at - step * np.arange(len(at))).max() <= EVEN * step:
        return Layout(_space(first, step * direction, len(at)), None, plain)
    usual = _most_frequent(gaps)
    odd = _odd_gaps(frames, gaps, usual)
    if on_gap != "resample":
        raise GeometryError(
            f"{uri}: its {len(at)} slices lie at uneven distances. The most frequent is "
            f"{usual:.4g} mm, but {odd}. Fetch slices that are missing, or interpolate: "
            "on_gap='resample'"
        )
    blends = _blends(at, usual)
    if len(blends) > _MOST * len(at):
        raise GeometryError(
            f"{uri}: {len(at)} slices over {at[-1]:.4g} mm, the most frequent distance is "
            f"{usual:.4g} mm: this would make {len(blends)} slices of them; {odd}"
        )
    made = f"{len(blends)} slices every {usual:.4g} mm"
    note = f"{made} were interpolated linearly from {len(at)}: {odd}"
    return Layout(_space(first, usual * direction, len(blends)), None, blends, note)


def _space(first: Frame, step: Array, count: int) -> Space:
    """Of slices `step` millimeters (LPS) apart."""
    assert first.axes is not None
    assert first.spacing is not None
    rows, columns = first.spacing
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = rows * np.array(first.axes[3:])
    affine[:3, 2] = columns * np.array(first.axes[:3])
    affine[:3, 3] = first.position
    affine[:3] = _TO_RAS @ affine[:3]
    return Space(affine, (count, first.pixels.rows, first.pixels.columns))


def _voxel_size(first: Frame) -> tuple[float, float, float] | None:
    """Of slices whose place is not known."""
    if first.spacing is None or first.thickness is None:
        return None
    return (first.thickness, *first.spacing)


def _check_line(
    uri: str, frames: Sequence[Frame], position: Array, at: Array, direction: Array
) -> None:
    """Refuse slices that are shifted against each other: no affine could say that."""
    aside = np.linalg.norm(position - (position[0] + at[:, None] * direction), axis=1)
    assert frames[0].spacing is not None
    allowed = EVEN * max(at[-1] / (len(at) - 1), *frames[0].spacing)
    if aside.max() > allowed:
        worst = int(aside.argmax())
        raise GeometryError(
            f"{uri}: the {len(at)} slices lie on no straight line, {frames[worst].pixels.path} is "
            f"{aside[worst]:.4g} mm beside it; open the parts that do, as lists of files"
        )


def _most_frequent(gaps: Array) -> float:
    """The distance that most gaps have, the smallest of equally frequent ones."""
    near = [np.abs(gaps - gap) <= _SAME_GAP * gap for gap in gaps]
    best = max(range(len(gaps)), key=lambda i: (near[i].sum(), -gaps[i]))
    return float(gaps[near[best]].mean())


def _odd_gaps(frames: Sequence[Frame], gaps: Array, usual: float) -> str:
    odd = [k for k, gap in enumerate(gaps) if abs(gap - usual) > EVEN * usual]
    if not odd:
        return "they drift"
    shown = [
        f"{gaps[k]:.4g} mm between {_at(frames[k])} and {_at(frames[k + 1])}" for k in odd[:_SHOWN]
    ]
    more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
    return "; ".join(shown) + more


def _at(frame: Frame) -> str:
    return f"{along_normal(frame):.4g} mm (instance {frame.instance})"


def _blends(at: Array, step: float) -> tuple[Blend, ...]:
    """Of slices every `step` millimeters; those that lie where one is stored are that one."""
    count = int(np.floor(at[-1] / step + EVEN)) + 1
    found = []
    for wanted in np.minimum(np.arange(count) * step, at[-1]):
        low = min(int(np.searchsorted(at, wanted, "right")) - 1, len(at) - 2)
        weight = float((wanted - at[low]) / (at[low + 1] - at[low]))
        near = SAME_PLACE * step / (at[low + 1] - at[low])
        if weight >= 1 - near:
            low, weight = low + 1, 0.0
        found.append((low, 0.0 if weight <= near else weight))
    return tuple(found)
