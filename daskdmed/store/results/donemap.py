"""Which blocks of a store are done: one byte per block, beside the data.

Presence of a chunk does not mean that it is done (a block that equals the fill value leaves
no object behind). The map is written only by the process that runs the job, after the data
of the block; a killed run loses at most the marks of its last second, and then makes those
blocks again, with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zarr

from daskdmed.core.errors import StoreError
from daskdmed.core.files import write_failure
from daskdmed.core.types import Array

#: name of the array within the group
DONE = "done"
#: seconds between two writes of the map
_FLUSH_EVERY = 1.0


def progress_of(group: zarr.Group) -> tuple[int, int]:
    """How many blocks of a store are done, and of how many."""
    flags: Any = group[DONE]
    done = np.asarray(flags[...])
    return int(np.count_nonzero(done)), done.size


class DoneMap:
    """The map of one store, `shape` blocks per axis, within its group; made when it is missing."""

    def __init__(self, group: zarr.Group, shape: Sequence[int]) -> None:
        if DONE not in group:
            group.create_array(
                DONE, shape=tuple(shape), chunks=tuple(shape), dtype="uint8", fill_value=0
            )
        self._map: Any = group[DONE]
        if self._map.shape != tuple(shape):
            raise StoreError(f"the map of done blocks is {self._map.shape}, of blocks {shape}")
        self._done: Array = self._map[...].astype(bool)
        self._dirty = False
        self._written_at = time.monotonic()

    @property
    def total(self) -> int:
        return self._done.size

    @property
    def finished(self) -> int:
        return int(np.count_nonzero(self._done))

    def __getitem__(self, index: Sequence[int]) -> bool:
        return bool(self._done[tuple(index)])

    def pending(self) -> Iterator[tuple[int, ...]]:
        """Blocks that are not done, in C order."""
        for index in np.argwhere(~self._done):
            yield tuple(int(i) for i in index)

    def mark(self, index: Sequence[int]) -> None:
        """A block's data are in the store. The map is written at most once a second."""
        self._done[tuple(index)] = True
        self._dirty = True
        if time.monotonic() - self._written_at > _FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write the map; blocks whose mark is lost, because that fails, are made again."""
        if self._dirty:
            try:
                self._map[...] = self._done.astype(np.uint8)
            except OSError as error:
                then = "blocks done since its last state are made again by resume=True"
                raise write_failure("the map of finished blocks", error, then) from error
            self._dirty = False
        self._written_at = time.monotonic()
