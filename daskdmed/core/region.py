"""`Region`: a box of pixels along the spatial axes of an array, and its arithmetic.

Any number of axes, array order, (y, x) or (z, y, x). Not covered: how pixels are read
(`daskdmed.images`), and OpenSlide's ``location``, (x, y) in the level-0 frame, which is made
at the surface.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from daskdmed.core.errors import GeometryError


@dataclass(frozen=True, slots=True)
class Region:
    """A box of pixels along the spatial axes of an array.

    Parameters
    ----------
    origin : tuple of int
        First pixel along each spatial axis, array order (y, x) or (z, y, x).
    shape : tuple of int
        Extent along each spatial axis, in pixels.
    """

    origin: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.origin) != len(self.shape):
            raise GeometryError(
                f"a region needs as many origins as extents, got origin={self.origin} "
                f"and shape={self.shape}"
            )

    @classmethod
    def of(cls, shape: Sequence[int]) -> Region:
        """The whole of an image of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def between(cls, start: Sequence[int], stop: Sequence[int]) -> Region:
        """From the first pixels to one past the last; empty where they cross."""
        shape = tuple(max(0, b - a) for a, b in zip(start, stop, strict=True))
        return cls(tuple(start), shape)

    @property
    def stop(self) -> tuple[int, ...]:
        """One past the last pixel along each axis."""
        return tuple(o + s for o, s in zip(self.origin, self.shape, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The same box as slices."""
        return tuple(slice(o, o + s) for o, s in zip(self.origin, self.shape, strict=True))

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    def within(self, shape: Sequence[int]) -> bool:
        """Whether it lies inside an image of this shape, which has as many axes."""
        return len(shape) == len(self.shape) and all(
            o >= 0 and s >= 0 and o + s <= n
            for o, s, n in zip(self.origin, self.shape, shape, strict=True)
        )

    def contains(self, other: Region) -> bool:
        """Whether every pixel of the other is also one of this."""
        return other.local_to(self).within(self.shape)

    def clip(self, shape: Sequence[int]) -> Region:
        """The part inside an image of this shape; empty, at its border, when there is none."""
        return self.intersect(Region.of(shape))

    def intersect(self, other: Region) -> Region:
        """What both have in common; empty, at the border of the other, when there is nothing."""
        start, stop = [], []
        for a, b, low, high in zip(self.origin, self.stop, other.origin, other.stop, strict=True):
            start.append(min(max(a, low), high))
            stop.append(min(max(b, low), high))
        return Region.between(start, stop)

    def shift(self, offset: Sequence[int]) -> Region:
        """The same box this much further along each axis."""
        return Region(tuple(o + d for o, d in zip(self.origin, offset, strict=True)), self.shape)

    def local_to(self, other: Region) -> Region:
        """The same box in the frame whose zero is the origin of the other."""
        origin = tuple(o - z for o, z in zip(self.origin, other.origin, strict=True))
        return Region(origin, self.shape)

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Region:
        """With so many pixels more before and behind along each axis."""
        start = [o - b for o, b in zip(self.origin, before, strict=True)]
        return Region.between(start, [e + a for e, a in zip(self.stop, after, strict=True)])

    def cells(self, cell: Sequence[int]) -> Region:
        """Which cells of a grid through zero it touches, in units of cells of this extent."""
        first = tuple(o // c for o, c in zip(self.origin, cell, strict=True))
        return Region.between(first, [-(-e // c) for e, c in zip(self.stop, cell, strict=True)])

    def times(self, cell: Sequence[int]) -> Region:
        """The pixels of a box that is in units of cells, the inverse of `cells`."""
        origin = tuple(o * c for o, c in zip(self.origin, cell, strict=True))
        return Region(origin, tuple(s * c for s, c in zip(self.shape, cell, strict=True)))

    def tiles(self, tile: Sequence[int]) -> Iterator[Region]:
        """Cut along a grid through zero, in C order: no tile of it is in two pieces."""
        if not self.size:
            return
        axes = []
        for begin, end, step in zip(self.origin, self.stop, tile, strict=True):
            edges = [begin, *range((begin // step + 1) * step, end, step), end]
            axes.append(list(itertools.pairwise(edges)))
        for spans in itertools.product(*axes):
            yield Region(tuple(a for a, _ in spans), tuple(b - a for a, b in spans))
