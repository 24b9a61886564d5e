"""Some boxes of a region: only the storage tiles that they touch are read, the rest is background.

`read_parts` reads, `parts_of` says before what would be read, and how much of the region that is.
Tiles side by side are read together, in as few rectangles as joining rows and then rows of rows
gives. Of views whose storage has another grid than their pixels (resampled ones), nothing beside
the boxes is read, so that no tile is decoded which no box needs; nor where few boxes leave most of
each tile alone, and a part of a tile costs less than the tile.

Not covered: which boxes are wanted (`daskdmed.loading.foreseen`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daskdmed.core import buffers
from daskdmed.core.errors import GeometryError
from daskdmed.core.places import is_remote
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView, paint

#: cells that a region has at most: rows of an uncompressed file are joined before they are marked
_MOST_CELLS = 1 << 16
#: part of the tiles that are touched which boxes have at most where tiles are read no further
_FEW = 0.4
#: boxes that are marked one by one, at most
_SOME = 64
#: rectangles that are read at once of an image behind a URL
_AT_ONCE = 8

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of pixels: `first` and one past the last of each, (n, axes), in array order."""

    first: _Ints
    stop: _Ints

    @classmethod
    def of(cls, regions: Iterable[Region], axes: int) -> Boxes:
        """Regions of so many axes."""
        listed = list(regions)
        if any(len(r.shape) != axes for r in listed):
            raise GeometryError(f"boxes of {axes} axes are wanted, got {listed[:3]}")
        first = np.array([r.origin for r in listed], np.int64).reshape(-1, axes)
        return cls(first, np.array([r.stop for r in listed], np.int64).reshape(-1, axes))

    @classmethod
    def at(cls, places: npt.ArrayLike, size: Sequence[int]) -> Boxes:
        """Boxes of one size at some first pixels, (n, axes)."""
        first = np.asarray(places, np.int64).reshape(-1, len(size))
        return cls(first, first + np.asarray(size, np.int64))

    def __len__(self) -> int:
        return len(self.first)

    @property
    def size(self) -> tuple[int, ...]:
        """Extent of the first, for boxes of one size."""
        return tuple((self.stop[0] - self.first[0]).tolist())

    @property
    def digest(self) -> str:
        """Names them, in their order."""
        name = hashlib.blake2b(np.concatenate([self.first, self.stop], axis=1).tobytes())
        return name.hexdigest()[:16]

    def padded(self, around: Sequence[int]) -> Boxes:
        """With so many pixels more on both sides along each axis."""
        return Boxes(self.first - np.asarray(around), self.stop + np.asarray(around))

    def cells(self, cell: Sequence[int]) -> Boxes:
        """In units of cells of this extent, those that are touched; see `Region.cells`."""
        return Boxes(self.first // np.asarray(cell), -(-self.stop // np.asarray(cell)))

    def clip(self, region: Region) -> Boxes:
        """What of them lies in a region; without those of which nothing does."""
        inside = (self.first >= region.origin) & (self.stop <= region.stop)
        if (inside & (self.first < self.stop)).all():
            return self
        first, stop = np.maximum(self.first, region.origin), np.minimum(self.stop, region.stop)
        there = (first < stop).all(axis=1)
        return Boxes(first[there], stop[there])


@dataclass(frozen=True, eq=False)
class Parts:
    """What some boxes need of a region of a view: a value, small and picklable.

    `inside`: the part of the region that lies in the image; it is divided into cells of `cell`
    pixels, beginning at `corner`, of which those that are `wanted` (an array of bool) are read.
    `boxes`: of a view that is read no further than these, and where they are few; else None.
    `by_tiles`: storage tiles count as a whole, though parts of them may be left alone.
    """

    inside: Region
    cell: tuple[int, ...]
    corner: tuple[int, ...]
    wanted: npt.NDArray[np.bool_]
    boxes: Boxes | None = None
    by_tiles: bool = True

    @property
    def share(self) -> float:
        """Of the storage tiles of the region, those that are wanted, 0 to 1."""
        return self.count / max(1, self.wanted.size)

    @property
    def count(self) -> int:
        """Storage tiles that are wanted."""
        return int(np.count_nonzero(self.wanted))

    @property
    def pixels(self) -> int:
        """Pixels of the region that are read."""
        if not self.by_tiles:
            return sum(rectangle.size for rectangle in self.rectangles())
        held: Array = self.wanted
        for axis, (first, cell, corner) in enumerate(
            zip(self.inside.origin, self.cell, self.corner, strict=True)
        ):
            edges = corner + cell * np.arange(self.wanted.shape[axis] + 1)
            along = np.diff(np.clip(edges, first, self.inside.stop[axis]))
            held = np.tensordot(along, held, axes=(0, 0))
        return int(held)

    @property
    def digest(self) -> str:
        """Names what is read; the same wherever the same is."""
        name = hashlib.blake2b(repr((self.cell, self.corner, self.wanted.shape)).encode())
        name.update(np.packbits(self.wanted).tobytes())
        if self.boxes is not None:
            corners = np.concatenate([self.boxes.first, self.boxes.stop], axis=1)
            name.update(np.unique(corners, axis=0).tobytes())
        return name.hexdigest()[:16]

    def rectangles(self) -> list[Region]:
        """What is read, in pixels of the view; no two of them overlap."""
        found = [self._pixels(*box) for box in zip(*joined(self.wanted), strict=True)]
        return found if self.boxes is None else [_around(r, self.boxes) for r in found]

    def blanks(self) -> list[Region]:
        """What of `inside` is not read, in pixels of the view."""
        if self.boxes is not None:
            return [self.inside]
        return [self._pixels(*box) for box in zip(*joined(~self.wanted), strict=True)]

    def _pixels(self, first: _Ints, stop: _Ints) -> Region:
        cell, corner = np.array(self.cell), np.array(self.corner)
        low, high = (corner + cell * first).tolist(), (corner + cell * stop).tolist()
        return Region.between(low, high).intersect(self.inside)

    def read_apart(self, view: ImageView, boxes: Boxes, out: Array) -> None:
        """Read the boxes that they were made for, all of one size, into `out` of shape
        (boxes, *size[, c]): equal to ``view.read_padded`` of each."""
        whole = boxes.clip(self.inside)
        if len(whole) < len(boxes) or (whole.stop - whole.first != boxes.size).any():
            paint(out, view.background)
        elif view.read_boxes(boxes.first, out):
            return

        def read(rectangle: Region) -> None:
            low = np.maximum(boxes.first, rectangle.origin)
            high = np.minimum(boxes.stop, rectangle.stop)
            some = np.flatnonzero((low < high).all(axis=1))
            held = buffers.empty((*rectangle.shape, *view.channel_shape), view.dtype)
            values = view.read(rectangle, held)
            for box, a, b in zip(some.tolist(), low[some], high[some], strict=True):
                target = Region.between(*((at - boxes.first[box]).tolist() for at in (a, b)))
                source = Region.between(a.tolist(), b.tolist()).local_to(rectangle)
                out[box][target.slices] = values[source.slices]

        _each(view, self.rectangles(), read)

    def read(
        self, view: ImageView, region: Region, out: Array | None = None, *, rest: bool = True
    ) -> Array:
        """Read the parts of the region that they were made for, as `ImageView.read_padded`.

        Without the `rest`, what is not read is whatever the memory held before.
        """
        if out is None:
            out = buffers.empty((*region.shape, *view.channel_shape), view.dtype)
        else:
            view.check_out(region, out)
        blanks = (self.blanks() if self.inside == region else [region]) if rest else []
        if blanks:
            background = view.background
            for blank in blanks:
                paint(out[blank.local_to(region).slices], background)

        def read(rectangle: Region) -> None:
            view.read(rectangle, out[rectangle.local_to(region).slices])

        _each(view, self.rectangles(), read)
        return out


def _each(view: ImageView, rectangles: Sequence[Region], read: Callable[[Region], None]) -> None:
    if len(rectangles) > 1 and view.uri is not None and is_remote(view.uri):
        # each waits for a server: they do so together
        with ThreadPoolExecutor(min(len(rectangles), _AT_ONCE)) as pool:
            list(pool.map(read, rectangles))
    else:
        for rectangle in rectangles:
            read(rectangle)


def parts_of(view: ImageView, region: Region, boxes: Boxes) -> Parts:
    """What some boxes need of a region, which may reach outside the image, as they may.

    GeometryError: they have another number of axes than the image.
    """
    if {len(region.shape), boxes.first.shape[1]} != {view.spatial_ndim}:
        raise GeometryError(
            f"{view.name}: the image has {view.spatial_ndim} axes, {region} has "
            f"{len(region.shape)} and the boxes that are wanted have {boxes.first.shape[1]}"
        )
    shape = view.spatial_shape
    inside = region if region.within(shape) else region.clip(shape)
    boxes = boxes.clip(inside)
    cell, corner = view.tile_shape, view.tile_origin
    shifted = inside.shift([-c for c in corner])
    while (cells := shifted.cells(cell)).size > _MOST_CELLS:
        axis = int(np.argmax(cells.shape))
        cell = (*cell[:axis], 2 * cell[axis], *cell[axis + 1 :])
    at = np.array(corner) + np.array(cell) * np.array(cells.origin)
    touched = Boxes(boxes.first - at, boxes.stop - at).cells(cell)
    begins = tuple(int(a) for a in at)
    wanted = _marked(touched, cells.shape)
    tight = not view.cheap_to_cut
    if view.cheap_in_tiles and not tight:
        drawn = int((boxes.stop - boxes.first).prod(axis=1).sum())
        tight = drawn < _FEW * math.prod(cell) * int(np.count_nonzero(wanted))
    return Parts(inside, cell, begins, wanted, boxes if tight else None, view.cheap_to_cut)


def read_parts(
    view: ImageView, region: Region, boxes: Boxes | Iterable[Region], out: Array | None = None
) -> Array:
    """Pixels of a region where some boxes need them, reading no storage tile that none touches.

    Parameters
    ----------
    view : ImageView
        Any.
    region : Region
        May lie partly or wholly outside the image.
    boxes : Boxes or iterable of Region
        What is wanted, in pixels of the view; what of it lies outside `region` is not read.
    out : ndarray, optional
        As of `ImageView.read_padded`.

    Returns
    -------
    ndarray
        ``(*region.shape[, c])``, equal to ``view.read_padded(region)`` inside the boxes; elsewhere
        either that too, or the background.

    Raises
    ------
    GeometryError
        Boxes or a region of another number of axes than the image has, or `out` does not fit.
    UsageError
        Something is not read, and the view does not know its background.
    ImageError
        As of `ImageView.read`.
    """
    if not isinstance(boxes, Boxes):
        boxes = Boxes.of(boxes, view.spatial_ndim)
    return parts_of(view, region, boxes).read(view, region, out)


def read_some(
    view: ImageView, region: Region, parts: Parts | None, out: Array | None = None
) -> Array:
    """A region as `ImageView.read_padded`, or what `parts` say of it: nobody looks at the rest, and
    painting it would cost a tenth of what reading a few tiles does."""
    if parts is None:
        return view.read_padded(region, out)
    # what lies outside the image is looked at
    return parts.read(view, region, out, rest=parts.inside != region)


def joined(wanted: npt.NDArray[np.bool_]) -> tuple[_Ints, _Ints]:
    """Cells that are True as boxes that do not overlap: first and one past the last cell of each,
    (n, axes). Runs along the last axis, then equal ones beside each other, axis by axis."""
    axes = wanted.ndim
    steps = np.diff(wanted.astype(np.int8), axis=-1, prepend=0, append=0)
    first = np.argwhere(steps == 1)
    stop = first + 1
    stop[:, -1] = np.argwhere(steps == -1)[:, -1]
    for axis in range(axes - 2, -1, -1) if len(first) else ():
        others = [end[:, a] for a in range(axes) if a != axis for end in (first, stop)]
        order = np.lexsort([first[:, axis], *others])
        first, stop = first[order], stop[order]
        meets = first[1:, axis] == stop[:-1, axis]
        for other in others:
            meets &= np.diff(other[order]) == 0
        begins = np.flatnonzero(np.append(True, ~meets))
        ends = np.append(begins[1:], len(first)) - 1
        last = stop[ends, axis]
        first, stop = first[begins], stop[begins]
        stop[:, axis] = last
    return first, stop


def _marked(boxes: Boxes, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Cells of a grid that boxes of cells hold: of many boxes corners are counted, then summed
    up."""
    if len(boxes) <= _SOME:
        wanted = np.zeros(shape, bool)
        for first, stop in zip(boxes.first.tolist(), boxes.stop.tolist(), strict=True):
            wanted[tuple(map(slice, first, stop))] = True
        return wanted
    counts: Array = np.zeros([n + 1 for n in shape], np.int32)
    for corner in np.ndindex(*(2,) * len(shape)):
        at = np.where(np.array(corner, bool), boxes.stop, boxes.first)
        np.add.at(counts, tuple(at.T), -1 if sum(corner) % 2 else 1)
    for axis in range(len(shape)):
        counts = np.cumsum(counts, axis=axis)
    return np.asarray(counts[tuple(slice(0, n) for n in shape)] > 0)


def _around(rectangle: Region, boxes: Boxes) -> Region:
    """The smallest region that holds what boxes have of a rectangle."""
    part = boxes.clip(rectangle)
    return Region.between(part.first.min(axis=0).tolist(), part.stop.max(axis=0).tolist())


__all__ = ["Boxes", "Parts", "joined", "parts_of", "read_parts", "read_some"]
