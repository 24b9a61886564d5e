"""Painting shapes onto a pixel grid: exact, vectorised, the same for every region.

The rules, with a pixel (row, column) of a grid with `downsample` (dy, dx) being the square
[column * dx, (column + 1) * dx) x [row * dy, (row + 1) * dy) of the level-0 frame:

- a polygon paints the pixels whose *centre* it holds, holes cut out (even-odd rule). A centre
  that lies exactly on an edge belongs to the shape to the right of a left edge and below a
  top edge, so that polygons which share an edge never both paint, or both leave, a pixel;
- with ``all_touched`` it paints every pixel that it covers in part, however little;
- a line paints the pixels that it passes through, a point the pixel it lies in;
- shapes paint in the order of the table, later ones over earlier ones.

Positions are worked out in the frame of the whole grid, so that a region is bit for bit the
same part of the whole, whatever blocks it is painted in.

The method is the scanline with sorted crossings (Foley, van Dam et al., *Computer Graphics*,
3.6), for all polygons at once. Not covered: images that follow another image's grid
(`daskdmed.cohort.annotations.view`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.cohort.annotations.categories import Background, Categories
from daskdmed.cohort.annotations.shapes import Floats, Ints, ShapeTable
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array

#: what `rasterize` and views take as `classes`
ClassesLike: TypeAlias = Categories | Mapping[Any, Any] | Sequence[Any]

#: crossings worked on at a time: bounds the memory, whatever is painted
_EVENTS = 2**19
#: pixels by which positions may be off from rounding, however large the slide
_ROUNDING = 1e-9
#: spans of fewer pixels on average are painted by index, longer ones row by row
_SHORT = 24


@dataclass(frozen=True)
class ClassTable:
    """What each label (None: shapes without one) paints: class numbers; (0,) erases.

    `count` is the largest class number.
    """

    numbers: Mapping[Any, tuple[int, ...]]
    count: int
    background: Background = None

    @classmethod
    def of(cls, classes: ClassesLike, present: Sequence[Any] = ()) -> ClassTable:
        """From `Categories` or what makes them, or a mapping of label to number.

        There several labels may share a number, 0 erases, and None names shapes without a
        label. `present` are the labels that there are, for the message.
        """
        if isinstance(classes, Mapping):
            whole = [_is_number(n) for n in classes.values()]
            if all(whole):
                return cls._of_numbers(classes, present)
            if any(whole):
                raise UsageError(
                    "classes are {label: number}, or {name: labels} as for Categories, but not "
                    f"both: {dict(classes)!r}; the labels here are {list(present)}"
                )
        elif isinstance(classes, str) or not isinstance(classes, (Categories, Sequence)):
            example = {label: number for number, label in enumerate(present, start=1)}
            raise UsageError(
                f"classes say which label becomes which number, got {classes!r}; for "
                f"example {example or {'tumour': 1}}"
            )
        made = Categories.of(classes)
        labels = (*made.labels, *made.erase)
        numbers = {label: made.classes_of(label) for label in labels}
        return cls(numbers, len(made), made.background)

    @classmethod
    def _of_numbers(cls, classes: Mapping[Any, Any], present: Sequence[Any]) -> ClassTable:
        for label, number in classes.items():
            if number < 0 or number != int(number) or not isinstance(label, (str, type(None))):
                raise UsageError(
                    f"classes map labels to integers from 1 (0 erases), got "
                    f"{label!r}: {number!r}; the labels here are {list(present)}"
                )
        count = max((int(n) for n in classes.values()), default=0)
        if count == 0:
            raise UsageError("the classes paint nothing: they name no number from 1")
        return cls({label: (int(number),) for label, number in classes.items()}, count)

    @property
    def channels(self) -> int:
        """Number of channels of a multi-channel result."""
        return self.count + (self.background is not None)

    def layers(self, labels: Sequence[Any], multichannel: bool) -> list[Ints]:
        """Per plane and shape: the value painted, -1 for none."""
        found = [self.numbers.get(label, ()) for label in labels]
        if not multichannel:
            return [np.array([f[-1] if f else -1 for f in found], np.int64)]
        return [
            np.array([1 if k in f else 0 if f == (0,) else -1 for f in found], np.int64)
            for k in range(1, self.count + 1)
        ]

    def check_dtype(self, dtype: npt.DTypeLike) -> np.dtype[Any]:
        """The dtype, when class numbers fit into it."""
        kind = np.dtype(dtype)
        top = 1 if kind.kind == "b" else np.iinfo(kind).max if kind.kind in "iu" else self.count
        if kind.kind not in "iubf" or self.count > top:
            raise UsageError(f"class numbers up to {self.count} do not fit into {kind}")
        return kind


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Grid:
    """A region of a pixel grid, all (y, x); `downsample`: level-0 pixels per pixel."""

    origin: tuple[int, int]
    shape: tuple[int, int]
    downsample: tuple[float, float]

    @classmethod
    def of(cls, origin: Any, shape: Any, downsample: Any) -> Grid:
        """Check what the user gave."""
        try:
            y, x = (operator.index(o) for o in origin)
            height, width = (operator.index(s) for s in shape)
        except (TypeError, ValueError) as error:
            raise GeometryError(
                "a region is an origin (y, x) and a shape (y, x) of integers, got "
                f"{origin!r} and {shape!r}"
            ) from error
        if min(height, width) < 0:
            raise GeometryError(f"a region has two extents from 0, got {shape!r}")
        return cls((y, x), (height, width), pair_of(downsample))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in the level-0 frame, a pixel wider on each side."""
        (y, x), (h, w), (dy, dx) = self.origin, self.shape, self.downsample
        return (x - 1) * dx, (y - 1) * dy, (x + w + 1) * dx, (y + h + 1) * dy


def pair_of(downsample: Any) -> tuple[float, float]:
    """One or two positive numbers as (y, x)."""
    try:
        pair = tuple(float(d) for d in np.broadcast_to(downsample, 2))
    except (TypeError, ValueError):
        pair = ()
    if len(pair) != 2 or not all(np.isfinite(d) and d > 0 for d in pair):
        raise GeometryError(f"a downsample is one or two positive numbers, got {downsample!r}")
    return pair[0], pair[1]


@dataclass(frozen=True, slots=True)
class Spans:
    """Runs of pixels within a row: shape number, row, first column, one past the last."""

    owner: Ints
    row: Ints
    start: Ints
    stop: Ints

    @staticmethod
    def joined(parts: Sequence[Spans]) -> Spans:
        """Several, in the order of their shapes."""
        fields = [np.concatenate([getattr(p, n) for p in parts]) for n in Spans.__slots__]
        order = np.argsort(fields[0], kind="stable")
        return Spans(*(f[order] for f in fields))


def rasterize(
    shapes: ShapeTable,
    layers: Sequence[Ints],
    grid: Grid,
    *,
    all_touched: bool = False,
    dtype: npt.DTypeLike = "u1",
) -> Array:
    """Paint shapes, in their order: (planes, height, width), 0 where nothing paints.

    `layers` say for each plane the value of each shape, -1 for none.
    """
    planes = np.zeros((len(layers), *grid.shape), dtype)
    used = np.any([layer >= 0 for layer in layers], axis=0)
    owners = np.flatnonzero(used & shapes.near(grid.bounds))
    if planes.size == 0 or len(owners) == 0:
        return planes
    for spans in _all_spans(shapes, owners, grid, all_touched):
        first = spans.row * grid.shape[1] + spans.start
        last = spans.row * grid.shape[1] + spans.stop
        for plane, layer in zip(planes, layers, strict=True):
            value = layer[spans.owner]
            own = value >= 0
            _paint(plane.reshape(-1), first[own], last[own], value[own])
    return planes


def _paint(flat: Array, start: Ints, stop: Ints, value: Ints) -> None:
    length = stop - start
    total = int(length.sum())
    if total == 0:
        return
    if total < _SHORT * len(length):
        before = np.cumsum(length) - length
        index = np.repeat(start - before, length) + np.arange(total)
        flat[index] = np.repeat(value, length)
        return
    for a, b, v in zip(start.tolist(), stop.tolist(), value.tolist(), strict=True):
        flat[a:b] = v


def _all_spans(shapes: ShapeTable, owners: Ints, grid: Grid, touched: bool) -> Iterator[Spans]:
    """Spans in painting order, for one band of rows after the other."""
    edges, edge_owner = shapes.edges_of(owners)
    lines, line_owner = shapes.lines_of(owners)
    points, point_owner = shapes.points_of(owners)
    dy, dx = grid.downsample
    edges = edges / np.array([dx, dy, dx, dy])
    lines = lines / np.array([dx, dy, dx, dy])
    points = np.floor(points / np.array([dx, dy])).astype(np.float64)
    for low, high in _bands([edges, lines], grid):
        band = Grid((low, grid.origin[1]), (high - low, grid.shape[1]), grid.downsample)
        parts = [_interior(edges, edge_owner, band)]
        if touched:
            parts.append(_crossed(edges, edge_owner, band, closed=False))
        if len(lines):
            parts.append(_crossed(lines, line_owner, band, closed=True))
        if len(points):
            parts.append(_single(points, point_owner, band))
        spans = parts[0] if len(parts) == 1 else Spans.joined(parts)
        yield Spans(spans.owner, spans.row - grid.origin[0], spans.start, spans.stop)


def _bands(groups: Sequence[Floats], grid: Grid) -> Iterator[tuple[int, int]]:
    """Bands of rows that few enough edges cross."""
    begin, end = grid.origin[0], grid.origin[0] + grid.shape[0]
    changes = np.zeros(grid.shape[0] + 1, np.int64)
    for edges in groups:
        first = np.clip(np.floor(edges[:, 1]), begin, end).astype(np.int64) - begin
        last = np.clip(np.floor(edges[:, 3]) + 1, begin, end).astype(np.int64) - begin
        np.add.at(changes, first, 1)
        np.add.at(changes, last, -1)
    crossing = np.cumsum(np.cumsum(changes)[:-1])
    low = 0
    while low < grid.shape[0]:
        done = crossing[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(crossing, done + _EVENTS, side="right")))
        yield begin + low, begin + high
        low = high


def _rows(first: Floats, last: Floats, band: Grid) -> tuple[Ints, Ints]:
    """Pairs of edge and row for the rows [first, last) of each edge, inside a band."""
    low, high = band.origin[0], band.origin[0] + band.shape[0]
    begin = np.clip(first, low, high).astype(np.int64)
    number = np.maximum(np.clip(last, low, high).astype(np.int64) - begin, 0)
    edge = np.repeat(np.arange(len(first)), number)
    row = np.arange(len(edge)) + np.repeat(begin - (np.cumsum(number) - number), number)
    return edge, row


def _interior(edges: Floats, owner: Ints, band: Grid) -> Spans:
    """Runs of pixels whose centres lie inside, by sorted crossings of the rows of centres."""
    u0, v0, u1, v1 = (edges - 0.5).T
    edge, row = _rows(np.ceil(v0), np.ceil(v1), band)
    slope = _slopes(u0, v0, u1, v1)
    at = np.ceil(u0[edge] + (row - v0[edge]) * slope[edge])
    left, width = band.origin[1], band.shape[1]
    column = np.clip(at - left, 0, width).astype(np.int64)
    line = (row - band.origin[0]) + owner[edge] * band.shape[0]
    # one integer per crossing sorts by shape, row and column at once
    key = np.sort(line * (width + 1) + column)
    start, stop = key[0::2], key[1::2]
    line = start // (width + 1)
    first = start - line * (width + 1)
    shape, place = np.divmod(line, band.shape[0])
    return Spans(shape, place + band.origin[0], first, first + (stop - start))


def _slopes(u0: Floats, v0: Floats, u1: Floats, v1: Floats) -> Floats:
    """Columns per row; 0 for edges so level that the quotient is not finite."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        slope = (u1 - u0) / (v1 - v0)
    return np.where(np.isfinite(slope), slope, 0.0)


def _crossed(edges: Floats, owner: Ints, band: Grid, *, closed: bool) -> Spans:
    """Runs of pixels that edges pass through.

    With `closed` a pixel holds its upper and left border; without it none of its borders,
    so that a polygon drawn along pixel borders touches no pixel outside it.
    """
    if not closed:
        # borders that miss a pixel's by rounding only shall not touch the next pixel
        near = np.rint(edges)
        edges = np.where(np.abs(edges - near) < _ROUNDING, near, edges)
    u0, v0, u1, v1 = edges.T
    after = np.floor(v1) + 1 if closed else np.ceil(v1)
    edge, row = _rows(np.floor(v0), after, band)
    u0, v0, u1, v1 = u0[edge], v0[edge], u1[edge], v1[edge]
    flat = v1 == v0
    slope = _slopes(u0, v0, u1, v1)
    enter = np.where(flat | (v0 >= row), u0, u0 + (row - v0) * slope)
    leave = np.where(flat | (v1 <= row + 1), u1, u0 + (row + 1 - v0) * slope)
    low, high = np.minimum(enter, leave), np.maximum(enter, leave)
    left, width = band.origin[1], band.shape[1]
    last = np.floor(high) + 1 if closed else np.ceil(high)
    start = np.clip(np.floor(low) - left, 0, width).astype(np.int64)
    stop = np.clip(last - left, 0, width).astype(np.int64)
    return Spans(owner[edge], row, start, np.maximum(start, stop))


def _single(points: Floats, owner: Ints, band: Grid) -> Spans:
    (y, x), (h, w) = band.origin, band.shape
    inside = (
        (points[:, 1] >= y) & (points[:, 1] < y + h) & (points[:, 0] >= x) & (points[:, 0] < x + w)
    )
    column = points[inside, 0].astype(np.int64) - x
    return Spans(owner[inside], points[inside, 1].astype(np.int64), column, column + 1)
