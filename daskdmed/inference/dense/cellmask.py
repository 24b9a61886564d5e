"""A mask over the cells of a result, kept at its own resolution.

A cell is inside where the mask under the middle of the cell is true. A window is needed when
one of its cells is inside; cells inside then have all their windows, so that a mask changes
no value, it only leaves some out.

Not covered: masks that choose whole windows by their cover (`daskdmed.tiling.mask`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from daskdmed.core.coverage import SummedArea
from daskdmed.core.errors import GeometryError
from daskdmed.core.types import Array
from daskdmed.inference.dense.mosaic import AxisWindows


class CellMask:
    """Which cells are wanted: those under whose middle the mask is true, or above zero.

    `mask` are values that span so many pixels of the image, see `daskdmed.tiling.mask.placed`;
    default all. With `beyond` the image goes on behind them, where nothing is wanted.
    GeometryError for values that are NaN or negative.
    """

    def __init__(
        self,
        mask: Any,
        axes: Sequence[AxisWindows],
        spans: Sequence[float] | None = None,
        *,
        beyond: bool = False,
    ) -> None:
        given = np.asarray(mask)
        spans = [axis.size for axis in axes] if spans is None else spans
        if given.dtype.kind not in "biuf":
            raise GeometryError(f"a mask holds bool or numbers, got dtype {given.dtype}")
        if given.dtype != np.bool_ and not given.min() >= 0:
            raise GeometryError(f"mask values must be 0 or above, the least is {given.min()}")
        # multiplied first: a middle that lies on an edge of the mask must not slip below it
        cells = given.shape
        if beyond:
            given = np.pad(given, [(0, 1)] * given.ndim)
        under = [
            np.minimum((axis.middles * n / span).astype(np.intp), n - 1 + beyond)
            for n, axis, span in zip(cells, axes, spans, strict=True)
        ]
        # what no middle lies on would only blur which windows are needed
        places = [np.unique(places, return_inverse=True) for places in under]
        self.inside: Array = given[np.ix_(*(rows for rows, _ in places))] > 0
        self.index: tuple[Array, ...] = tuple(inverse for _, inverse in places)
        self._summed = SummedArea(self.inside)

    def any(self, spans: Sequence[Sequence[tuple[int, int]]]) -> Array:
        """Whether boxes of cells hold one that is inside: all combinations of the
        (begin, stop) of each axis, as an array of bool with one axis per spatial axis."""
        ends = [
            (
                np.array([index[a] for a, _ in axis_spans], np.intp),
                np.array([index[b - 1] + 1 for _, b in axis_spans], np.intp),
            )
            for index, axis_spans in zip(self.index, spans, strict=True)
        ]
        return np.asarray(self._summed.counts(ends) > 0)

    def at(self, spans: Sequence[tuple[int, int]]) -> Array:
        """The mask of a box of cells, bool."""
        index = [i[a:b] for i, (a, b) in zip(self.index, spans, strict=True)]
        return np.asarray(self.inside[np.ix_(*index)])

    def crop(self, spans: Sequence[tuple[int, int]]) -> CellWindow:
        """The part that a box of cells needs, small enough to send."""
        low = [int(i[a]) for i, (a, _) in zip(self.index, spans, strict=True)]
        high = [int(i[b - 1]) + 1 for i, (_, b) in zip(self.index, spans, strict=True)]
        part = self.inside[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].copy()
        index = tuple(i[a:b] - lo for i, (a, b), lo in zip(self.index, spans, low, strict=True))
        return CellWindow(part, index, tuple(a for a, _ in spans))


class CellWindow:
    """The mask of one box of cells: which element of `inside` each cell has, by axis, from
    the cell `begin` on."""

    def __init__(self, inside: Array, index: tuple[Array, ...], begin: tuple[int, ...]) -> None:
        self.inside = inside
        self.index = index
        self.begin = begin

    def at(self, spans: Sequence[tuple[int, int]]) -> Array:
        """The mask of a smaller box, given in cells of the whole result."""
        index = [
            i[a - o : b - o] for i, (a, b), o in zip(self.index, spans, self.begin, strict=True)
        ]
        return np.asarray(self.inside[np.ix_(*index)])
