"""Windows of loaded blocks into batches.

Batches run on over the borders of blocks and of images. Each window is copied once, out of
its block into the batch, so that a block's memory is free when its last window is copied,
however long the consumer keeps a batch.

Not covered: reading (`daskdmed.loading.sliding.read`), which loads there are
(`daskdmed.loading.sliding.plan`), how far ahead they are read
(`daskdmed.loading.sliding.ahead`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from daskdmed.core import buffers
from daskdmed.core.types import Array
from daskdmed.loading.chunks import BigChunk, Provenance, SmallChunk, SmallChunks
from daskdmed.loading.sampling import Empty
from daskdmed.loading.sliding.plan import Load
from daskdmed.loading.sliding.read import Loaded, WindowFailure
from daskdmed.tiling.extract import Windows
from daskdmed.tiling.imagegrid import ImageGrid


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WindowChunk(SmallChunk):
    """One window: a small chunk that has a place in a grid.

    Parameters
    ----------
    index : tuple of int
        Number of the window along each axis of its grid.
    image : ImageGrid or None
        The grid of its image, at the resolution that was read.
    """

    index: tuple[int, ...] = ()
    image: ImageGrid | None = None


class WindowChunks(SmallChunks):
    """The windows of one batch: a lazy, indexable sequence of `WindowChunk`.

    Parameters
    ----------
    data : ndarray, shape (batch, *kernel, [channels])
        Pixels.
    sources : list of (Provenance, ImageGrid)
        Of each window.
    indices : ndarray of int64, shape (batch, spatial axes)
        Number of each along the axes of its grid.
    origins : ndarray of int64, shape (batch, spatial axes)
        First pixel of each at the resolution read.
    draws : ndarray of int64, shape (batch,)
        Number of each among the windows of its block that are delivered. Together with the
        number of the block (``bigchunk.visit``) it names the window on every rank.
    spatial_ndim : int, optional
        As of `SmallChunks`.
    """

    def __init__(
        self,
        data: Array,
        sources: list[tuple[Provenance, ImageGrid]],
        indices: Array,
        origins: Array,
        draws: Array,
        spatial_ndim: int | None = None,
    ) -> None:
        provenance = [p for p, _ in sources]
        pieces = np.zeros(len(sources), np.int64)
        super().__init__(data, provenance, pieces, origins, draws, spatial_ndim=spatial_ndim)
        self.indices = indices
        self._images = [image for _, image in sources]

    @property
    def images(self) -> list[ImageGrid]:
        """The grid of the image of each window."""
        return list(self._images)

    @overload
    def __getitem__(self, index: int) -> WindowChunk: ...
    @overload
    def __getitem__(self, index: slice) -> list[SmallChunk]: ...
    def __getitem__(self, index: int | slice) -> WindowChunk | list[SmallChunk]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        place = tuple(int(v) for v in self.indices[i])
        return WindowChunk(**self._facts(i), index=place, image=self._images[i])

    def __iter__(self) -> Iterator[WindowChunk]:
        return (self[i] for i in range(len(self)))

    def table(self) -> list[Mapping[str, Any]]:
        """One row per window, for a data frame."""
        rows = super().table()
        return [
            {**row, "index": tuple(int(v) for v in index)}
            for row, index in zip(rows, self.indices, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class WindowBatch:
    """Windows of one batch."""

    smallchunks: WindowChunks
    #: number of the window in the plan with which the next batch begins
    position: int
    #: what was left out since the batch before
    failures: tuple[WindowFailure, ...] = ()


class WindowBatcher:
    """Fills batches with the windows of one load after another; without the spatial axes that are
    `dropped`, along which windows have length 1. `empty` gives memory as
    `daskdmed.core.buffers.empty` does.
    """

    def __init__(
        self,
        size: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        dropped: tuple[int, ...] = (),
        empty: Empty = buffers.empty,
    ) -> None:
        self.size = size
        self._empty = empty
        self._dropped = dropped
        self._shape, self._dtype = shape, dtype
        self._failures: list[WindowFailure] = []
        self._reset()

    def _reset(self) -> None:
        self._data: Array | None = None
        self._filled = 0
        self._sources: list[tuple[Provenance, ImageGrid]] = []
        self._indices: list[Array] = []
        self._origins: list[Array] = []
        self._draws: list[Array] = []

    def cut(self, load: Load, loaded: Loaded, skip: int) -> Iterator[WindowBatch]:
        """Copy the windows of a load, but the first `skip`, and give the batches that are full."""
        keep, rank = _deliverable(load, loaded, skip)
        windows = Windows(loaded.pixels, load.block, load.image.grid, keep)
        facts = _Facts.of(load, keep, rank)
        told, noted, copied = skip, 0, 0
        for lead, begin, stop in windows.runs(self.size):
            while begin < stop:
                n = min(stop - begin, self.size - self._filled)
                if self._data is None:
                    # recycled: fresh pages cost more than the copy
                    self._data = self._empty((self.size, *self._shape), self._dtype)
                pixels = windows.row(lead, begin, begin + n)
                self._data[self._filled : self._filled + n] = pixels
                begin, copied, self._filled = begin + n, copied + n, self._filled + n
                if self._filled == self.size:
                    self._note(facts, noted, copied)
                    behind = int(facts.draws[copied - 1]) + 1
                    self._tell(loaded, rank, told, behind)
                    told, noted = behind, copied
                    yield self._batch(load.first + behind)
        self._note(facts, noted, copied)
        self._tell(loaded, rank, told, load.count)

    def _tell(self, loaded: Loaded, rank: Array, first: int, stop: int) -> None:
        """Note which of some windows are lost: each once, however often its load is read."""
        failure, lost = loaded.failure, loaded.lost
        if failure is not None and lost is not None:
            windows = failure.windows[(rank[lost] >= first) & (rank[lost] < stop)]
            if len(windows):
                self._failures.append(replace(failure, windows=windows))

    def rest(self, position: int) -> WindowBatch | None:
        """The short last batch, if there is one."""
        if not self._filled and not self._failures:
            return None
        return self._batch(position)

    def _note(self, facts: _Facts, first: int, stop: int) -> None:
        """What is known of some windows that were copied."""
        if first < stop:
            self._indices.append(facts.indices[first:stop])
            self._origins.append(facts.origins[first:stop])
            self._draws.append(facts.draws[first:stop])
            self._sources += [facts.source] * (stop - first)

    def _batch(self, position: int) -> WindowBatch:
        ndim = len(self._indices[0][0]) if self._indices else 1
        none = np.empty((0, ndim), np.int64)
        data = self._data
        data = np.empty((0, *self._shape), self._dtype) if data is None else data[: self._filled]
        chunks = WindowChunks(
            data.squeeze(tuple(axis + 1 for axis in self._dropped)),
            self._sources,
            np.concatenate([none, *self._indices]),
            np.concatenate([none, *self._origins]),
            np.concatenate([none[:, 0], *self._draws]),
            ndim - len(self._dropped) if self._dropped else None,
        )
        failures, self._failures = tuple(self._failures), []
        self._reset()
        return WindowBatch(chunks, position, failures)


@dataclass(frozen=True, slots=True, eq=False)
class _Facts:
    """Of the windows of a load that are copied, in order, as `WindowChunks` has them."""

    source: tuple[Provenance, ImageGrid]
    indices: Array
    origins: Array
    draws: Array

    @classmethod
    def of(cls, load: Load, keep: Array | None, rank: Array) -> _Facts:
        """`keep`: which are copied, None for all; `rank`: the number of each."""
        block = load.block
        within = np.argwhere(np.ones(block.shape, bool) if keep is None else keep)
        places = [np.asarray(o)[within[:, axis]] for axis, o in enumerate(block.origins)]
        return cls(
            (provenance(load), load.image.described),
            within + np.array(block.start),
            (np.stack(places, axis=-1) + block.region.origin).astype(np.int64),
            rank.ravel() if keep is None else rank[keep],
        )


def _deliverable(load: Load, loaded: Loaded, skip: int) -> tuple[Array | None, Array]:
    """Which windows of a load are copied (None: all), and the number of each within it."""
    planned = np.ones(load.block.shape, bool) if load.keep is None else load.keep
    rank = (np.cumsum(planned) - 1).reshape(planned.shape)
    if load.keep is None and loaded.lost is None and not skip:
        return None, rank
    keep = planned & (rank >= skip)
    if loaded.lost is not None:
        keep &= ~loaded.lost
    return keep, rank


def provenance(load: Load) -> Provenance:
    """What all windows of a load share."""
    image, region = load.image, load.block.region
    bigchunk = BigChunk(
        None,
        region.origin,
        region.shape,
        str(image.patient.id),
        image.record,
        load.visit,
        tuple(image.view.downsample),
        image.level,
        image.view.mpp,
        None if image.view.space is None else image.view.space.crop(region.origin, region.shape),
    )
    return Provenance(image.patient, (bigchunk,))
