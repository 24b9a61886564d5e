"""How a record is cut into big chunks. Pure geometry, any number of axes.

There are two ways. Cut by *pixels*, each pixel lies in one big chunk, and no tile is decoded
for two: for passes that visit each once. But then no small chunk crosses an edge. Cut by
*places* (first pixels of small chunks), each place lies in one big chunk, which reaches over
the next one by a small chunk less a pixel: for drawing at random, so that every place can be
drawn. Big chunks are no larger for it, but there are more of them.

Edges lie on the storage tile grid, and the chunks of a record are nearly equal, so that there
is no narrow strip at the border. Not covered: reading them (`daskdmed.persistence.reading`).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import GeometryError
from daskdmed.core.region import Region


@dataclass(frozen=True, slots=True)
class Span:
    start: int
    length: int


@functools.lru_cache(maxsize=4096)
def cut_axis(size: int, chunk: int, tile: int, smallest: int) -> tuple[Span, ...]:
    """Cut one axis into nearly equal spans of at most `chunk` pixels, with inner edges on the tile
    grid (where a chunk holds a tile).

    A span that would be shorter than `smallest` is extended backwards over its neighbour.
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


@functools.lru_cache(maxsize=4096)
def cut_places(size: int, chunk: int, tile: int, smallest: int) -> tuple[Span, ...]:
    """Cut one axis so that each place of a small chunk lies in one span, with all its pixels.

    Neighbours overlap by `smallest` - 1 pixels; they begin at multiples of the tile where a chunk
    holds a tile and the overlap. An axis that fits into a chunk is left whole.
    """
    if size <= chunk:
        return (Span(0, size),)
    overlap = smallest - 1
    if not 1 <= tile <= chunk - overlap:
        tile = 1
    places = size - overlap
    longest = (chunk - overlap) // tile * tile
    count = -(-places // longest)
    edges = [-(-i * places // (count * tile)) * tile for i in range(count)] + [places]
    return tuple(Span(a, b - a + overlap) for a, b in itertools.pairwise(edges))


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The big chunks of one record: spans along each axis, and the extent of a small chunk."""

    axes: tuple[tuple[Span, ...], ...]
    smallest: tuple[int, ...]

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        chunk: tuple[int, ...],
        tile: tuple[int, ...],
        smallest: tuple[int, ...],
        *,
        by_places: bool = False,
    ) -> BlockGrid:
        """Cut an image, by pixels or by places; GeometryError when it, or a chunk, holds no small
        chunk.
        """
        if any(s < m for s, m in zip(shape, smallest, strict=True)):
            raise GeometryError(f"an image of {shape} pixels holds no crop of {smallest}")
        if any(c < m for c, m in zip(chunk, smallest, strict=True)):
            raise GeometryError(
                f"bigchunk_size {chunk} is smaller than smallchunk_size {smallest}; "
                "make the big chunks larger"
            )
        axes = zip(shape, chunk, tile, smallest, strict=True)
        cut = cut_places if by_places else cut_axis
        return cls(tuple(cut(*axis) for axis in axes), smallest)

    @property
    def counts(self) -> tuple[int, ...]:
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
        origin, shape = [], []
        for spans in reversed(self.axes):
            flat, at = divmod(flat, len(spans))
            origin.append(spans[at].start)
            shape.append(spans[at].length)
        return Region(tuple(origin[::-1]), tuple(shape[::-1]))

    def places(self, multiple: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Number of places in each big chunk: first pixels that are whole multiples."""
        total = np.ones(1)
        for spans, s, m in zip(self.axes, self.smallest, multiple, strict=True):
            along = [(a.start + a.length - s) // m - (a.start - 1) // m for a in spans]
            total = np.multiply.outer(total, np.array(along, np.float64)).reshape(-1)
        return total

    @property
    def largest(self) -> tuple[int, ...]:
        """Largest extent along each axis, in pixels."""
        return tuple(max(s.length for s in spans) for spans in self.axes)
