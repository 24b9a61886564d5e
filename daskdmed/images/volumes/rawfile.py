"""Boxes of an uncompressed array in a file, read where they lie.

Positioned reads of `Source`: no map of the file stays in memory, and a file that shrinks
meanwhile is an error and not a crash. Not covered: compressed files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from daskdmed.core.errors import CorruptImageError
from daskdmed.core.types import Array
from daskdmed.images.source import Source

#: planes that lie together are read in pieces of about so many bytes
_PIECE = 8 * 2**20


#: where a run lies among the outer axes: within the box, within the array, and along the next axis
_Run: TypeAlias = tuple[tuple[int, ...], list[int], int]


class RawArray:
    """An array in C order that begins at an offset of a file; at least two axes."""

    def __init__(self, source: Source, offset: int, shape: Sequence[int], dtype: Any) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._source, self._offset = source, offset
        needed = offset + math.prod(self.shape) * self.dtype.itemsize
        if needed > source.size:
            raise CorruptImageError.of(
                source.uri,
                f"{self.shape} voxels of {self.dtype} from byte {offset} need {needed} bytes, the "
                f"file has {source.size}; the copy is incomplete, fetch it again",
            )

    def read(self, selection: Sequence[int | slice], out: Array) -> None:
        """A box into an array of the box's axes, those with an index left out."""
        for place, values in self.pieces(selection):
            out[place] = values

    def pieces(self, selection: Sequence[int | slice]) -> Iterator[tuple[Any, Array]]:
        """A box in parts that are read at once, each with its place in the box."""
        spans = [s if isinstance(s, slice) else slice(s, s + 1) for s in selection]
        kept = [isinstance(s, slice) for s in selection]
        drop = tuple(slice(None) if keep else 0 for keep in kept)
        # the axes from `split` on lie together; so many of the one before are read at once
        split = len(self.shape)
        while split > 1 and (spans[split - 1].start, spans[split - 1].stop) == (
            0,
            self.shape[split - 1],
        ):
            split -= 1
        split = max(1, min(split, len(self.shape) - 1))
        inner = self.shape[split:]
        run = math.prod(inner) * self.dtype.itemsize
        many = max(1, _PIECE // max(1, run))
        outer = [range(s.start, s.stop) for s in spans[: split - 1]]
        last = spans[split - 1]
        runs = (
            (index, [r[i] for r, i in zip(outer, index, strict=True)], start)
            for index in np.ndindex(*(len(r) for r in outer))
            for start in range(last.start, last.stop, many)
        )
        for some in self._together(runs, run * min(many, last.stop - last.start)):
            counts = [min(many, last.stop - start) for _, _, start in some]
            read = self._runs([[*above, start] for _, above, start in some], counts, inner)
            for (index, _, start), count, entries in zip(some, counts, read, strict=True):
                values = entries[(slice(None), *spans[split:])][(None,) * len(outer)]
                place = [slice(i, i + 1) for i in index]
                place.append(slice(start - last.start, start - last.start + count))
                whole = [*place, *(slice(None) for _ in inner)]
                yield (
                    tuple(p for p, keep in zip(whole, kept, strict=True) if keep),
                    values[drop],
                )

    def _together(self, runs: Iterator[_Run], nbytes: int) -> Iterator[list[_Run]]:
        """As many of some runs as are worth asking for with one call: one by one of local files."""
        many = max(1, self._source.together // max(1, nbytes))
        while some := list(itertools.islice(runs, many)):
            yield some

    def _runs(
        self, firsts: list[list[int]], counts: list[int], inner: tuple[int, ...]
    ) -> list[Array]:
        """So many entries of an axis with all that lies behind it, of several places."""
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(firsts[0]))]
        offsets, sizes = [], []
        for first, count in zip(firsts, counts, strict=True):
            at = sum(i * s for i, s in zip(first, strides, strict=True)) * self.dtype.itemsize
            offsets.append(self._offset + at)
            sizes.append(count * math.prod(inner) * self.dtype.itemsize)
        found = []
        read = self._source.read_many(offsets, sizes)
        for data, at, nbytes, count in zip(read, offsets, sizes, counts, strict=True):
            if len(data) != nbytes:
                raise CorruptImageError.of(
                    self._source.uri,
                    f"{len(data)} of {nbytes} bytes at {at}; the file was changed",
                )
            found.append(np.frombuffer(data, self.dtype).reshape(count, *inner))
        return found
