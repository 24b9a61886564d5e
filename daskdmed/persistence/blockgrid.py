"""How a record is cut into big chunks. Pure geometry, any number of axes.

Edges lie on the storage tile grid, so that no tile is decoded for two big chunks, and the
chunks of a record are nearly equal, so that no narrow strip at the border is drawn from as
often as a full chunk. Not covered: reading them (`daskdmed.persistence.reading`).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

from daskdmed.core.errors import GeometryError
from daskdmed.core.region import Region


@dataclass(frozen=True, slots=True)
class Span:
    """First pixel and extent along one axis."""

    start: int
    length: int


@functools.lru_cache(maxsize=4096)
def cut_axis(size: int, chunk: int, tile: int, smallest: int) -> tuple[Span, ...]:
    """Cut one axis into nearly equal, tile-aligned spans.

    Parameters
    ----------
    size : int
        Pixels along the axis.
    chunk : int
        No span is longer than this.
    tile : int
        Inner edges are multiples of it (where a chunk holds at least one tile).
    smallest : int
        No span is shorter than this; a span that would be is extended backwards over its
        neighbour. At most `chunk` and `size`.

    Returns
    -------
    tuple of Span
        Ordered, covering the axis.
    """
    if tile > chunk or tile < 1:
        tile = 1  # tiles larger than a big chunk are decoded for several: nothing to align to
    longest = chunk // tile * tile
    count = -(-size // longest)
    # rounding up keeps every span within `longest`, which is a multiple of the tile
    edges = [-(-i * size // (count * tile)) * tile for i in range(count)] + [size]
    spans = []
    for start, stop in itertools.pairwise(edges):
        length = stop - start
        if length < smallest:
            start, length = max(0, stop - smallest), smallest
            start = min(start, size - smallest)
        spans.append(Span(start, length))
    return tuple(spans)


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The big chunks of one record.

    Parameters
    ----------
    axes : tuple of tuple of Span
        The spans along each spatial axis.
    """

    axes: tuple[tuple[Span, ...], ...]

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        chunk: tuple[int, ...],
        tile: tuple[int, ...],
        smallest: tuple[int, ...],
    ) -> BlockGrid:
        """Cut an image of a spatial shape.

        Parameters
        ----------
        shape, chunk, tile, smallest : tuple of int
            Per spatial axis, see `cut_axis`.

        Raises
        ------
        GeometryError
            An axis is shorter than `smallest`, or a chunk is.
        """
        if any(s < m for s, m in zip(shape, smallest, strict=True)):
            raise GeometryError(f"an image of {shape} pixels holds no crop of {smallest}")
        if any(c < m for c, m in zip(chunk, smallest, strict=True)):
            raise GeometryError(
                f"bigchunk_size {chunk} is smaller than smallchunk_size {smallest}; "
                "make the big chunks larger"
            )
        axes = zip(shape, chunk, tile, smallest, strict=True)
        return cls(tuple(cut_axis(*axis) for axis in axes))

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of big chunks along each axis."""
        return tuple(len(spans) for spans in self.axes)

    def __len__(self) -> int:
        n = 1
        for count in self.counts:
            n *= count
        return n

    def index(self, flat: int) -> tuple[int, ...]:
        """Grid position of a flat number, row-major."""
        position = []
        for count in reversed(self.counts):
            flat, at = divmod(flat, count)
            position.append(at)
        return tuple(reversed(position))

    def region(self, flat: int) -> Region:
        """Pixels of one big chunk."""
        spans = [spans[at] for spans, at in zip(self.axes, self.index(flat), strict=True)]
        return Region(tuple(s.start for s in spans), tuple(s.length for s in spans))

    @property
    def largest(self) -> tuple[int, ...]:
        """Largest extent along each axis, in pixels."""
        return tuple(max(s.length for s in spans) for spans in self.axes)
