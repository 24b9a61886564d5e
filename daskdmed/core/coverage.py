"""How much of boxes a mask covers, n-D, pure NumPy.

A mask lies over an image at any resolution, each cell over an equal part, so that boxes of
pixels begin and end amid cells. `covered` is exact, for boxes on a grid; `SummedArea` answers
many questions about one mask by 2^n look-ups each. Not covered: what a mask is, and which
share is enough (`daskdmed.tiling.mask`, `daskdmed.persistence.areas`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import GeometryError
from daskdmed.core.types import Array


def check_aspect(
    shape: Sequence[int], extent: Sequence[float], image: str, where: str = ""
) -> None:
    """Make sure that one downsample explains the sizes of a mask and an image.

    Give or take a mask pixel, and 1 %. `image` and `where` are for the message.

    Raises
    ------
    GeometryError
        None does: the mask is of another image, a part of one, or transposed.
    """
    low = max(e / (n + 1) for e, n in zip(extent, shape, strict=True))
    high = min(e / max(n - 1, 1e-9) for e, n in zip(extent, shape, strict=True))
    if low > high * 1.01:
        steps = [round(e / n, 4) for e, n in zip(extent, shape, strict=True)]
        raise GeometryError(
            f"{f'{where}: ' if where else ''}a mask of shape {tuple(shape)} has another aspect "
            f"ratio than {image} (one mask pixel would be {steps} pixels); masks lie over the "
            "whole image, in array order: check that it is of this image, complete, and not "
            "transposed"
        )


def covered(
    values: Array, boxes: Sequence[Sequence[tuple[int, int]]], spans: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Exact area-weighted mean of a mask over boxes, one axis of the result per spatial axis.

    `boxes` are (begin, stop) in pixels per axis, all combinations of them; `spans` are the pixels
    that the mask covers along each axis, beyond which it is 0.
    """
    share = values
    for axis_boxes, span in zip(boxes, spans, strict=True):
        # each pass consumes the mask's leading axis and appends the boxes of that axis
        share = np.moveaxis(_axis_means(share, axis_boxes, span), 0, -1)
    return np.asarray(share, np.float64)


def _axis_means(values: Array, boxes: Sequence[tuple[int, int]], span: float) -> Array:
    """Mean of the leading axis over each box, (boxes, *rest)."""
    cells = values.shape[0]
    out = np.zeros((len(boxes), *values.shape[1:]))
    for i, (begin, stop) in enumerate(boxes):
        # in mask cells, kept as numerators over `span` so that integer edges are exact
        first, last = int(begin * cells // span), int(-(-stop * cells // span))
        first, last = min(first, cells), min(last, cells)
        if first < last:
            edges = np.arange(first, last + 1) * span
            weights = np.diff(np.clip(edges, begin * cells, stop * cells)).astype(np.float64)
            share = weights / ((stop - begin) * cells)
            out[i] = np.tensordot(share, values[first:last], axes=(0, 0))
    return out


class SummedArea:
    """The summed-area table of a bool mask (Crow 1984), with a leading zero along each axis."""

    def __init__(self, mask: Array) -> None:
        count = np.int32 if mask.size < 2**31 else np.int64
        self.table = np.zeros([n + 1 for n in mask.shape], count)
        self.table[(slice(1, None),) * mask.ndim] = mask
        for axis in range(mask.ndim):
            np.cumsum(self.table, axis=axis, out=self.table)

    def counts(self, ends: Sequence[tuple[Array, Array]]) -> npt.NDArray[np.int64]:
        """Cells in boxes of whole cells, all combinations of (begins, stops) per axis."""
        total: Any = self.table
        for axis, (begin, stop) in enumerate(ends):
            total = total.take(stop, axis=axis) - total.take(begin, axis=axis)
        return np.asarray(total, np.int64)

    def means(
        self, ends: Sequence[tuple[Array, Array]], sizes: Sequence[float]
    ) -> npt.NDArray[np.float64]:
        """Mean over boxes of one size, all combinations of (begins, stops) per axis, in cells,
        which may be fractional; beyond the mask it is 0."""
        total: Array = self.table
        for axis, ((begin, stop), size) in enumerate(zip(ends, sizes, strict=True)):
            total = (_at(total, axis, stop) - _at(total, axis, begin)) / size
        return np.asarray(total, np.float64)

    def sums(self, begin: Array, stop: Array) -> npt.NDArray[np.float64]:
        """Integrals over boxes anywhere, with fractional corners (n, axes) inside the mask."""
        axes = self.table.ndim
        total = np.zeros(len(begin))
        for corner in np.ndindex(*(2,) * axes):
            sign = (-1) ** (axes - sum(corner))
            total += sign * self._integral(np.where(np.asarray(corner, bool), stop, begin))
        return total

    def _integral(self, at: Array) -> Array:
        """From the first cell to points (n, axes): multilinear, which is exact."""
        below = np.clip(np.floor(at).astype(np.intp), 0, np.asarray(self.table.shape) - 2)
        part = at - below
        found = np.zeros(len(at))
        for step in np.ndindex(*(2,) * self.table.ndim):
            weight = np.prod(np.where(np.asarray(step, bool), part, 1 - part), axis=1)
            found += weight * self.table[tuple((below + np.asarray(step)).T)]
        return found


def _at(table: Array, axis: int, where: npt.NDArray[np.float64]) -> Array:
    """A table at fractional positions along one axis, linear in between, flat outside."""
    last = table.shape[axis] - 1
    where = np.clip(where, 0, last)
    low = np.minimum(where.astype(np.int64), max(last - 1, 0))
    part = (where - low).reshape([-1 if i == axis else 1 for i in range(table.ndim)])
    before = table.take(low, axis=axis)
    after = table.take(np.minimum(low + 1, last), axis=axis)
    value: Array = before + (after - before) * part
    return value
