"""A batch on its way from the engines to the consumer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskdmed.core import buffers
from daskdmed.core.types import Array
from daskdmed.loading.chunks import Provenance, SmallChunks
from daskdmed.loading.copying import Copier
from daskdmed.loading.patientstate import Snapshot
from daskdmed.loading.sampling import CropSpec, Empty, Ended, VisitSampler


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the plan stands after a batch; what ``state_dict`` saves."""

    #: number of the next planned draw
    position: int = 0
    #: visits that were ended early and are still resident: visit number -> draw
    ended: Mapping[int, int] = field(default_factory=dict)
    #: made, this one included
    batches: int = 0
    states: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops of one batch, and where the plan stands after it."""

    smallchunks: SmallChunks
    cursor: Cursor


class BatchBuilder:
    """Fills batches of `size` rows row by row; `key` is that of `SmallChunks.keys`.

    `empty` gives memory as `daskdmed.core.buffers.empty` does: a fresh batch costs more in page
    faults than its crops in copying.
    """

    def __init__(
        self, size: int, crop: CropSpec, key: int = 0, empty: Empty = buffers.empty
    ) -> None:
        self.size = size
        self._empty = empty
        self._crop = crop
        self._key = key
        self._reset()

    def _reset(self) -> None:
        self._memory: tuple[Array, Array | None] | None = None
        self._provenance: list[Provenance] = []
        self._pieces: list[int] = []
        self._origins: list[tuple[int, ...]] = []
        self._draws: list[int] = []

    def _rows(self) -> tuple[Array, Array | None]:
        """Memory for all rows, and for their targets."""
        if self._memory is None:
            self._memory = self._crop.rows(self.size, self._empty)
        return self._memory

    def __len__(self) -> int:
        return len(self._provenance)

    @property
    def full(self) -> bool:
        """Whether the batch is complete."""
        return len(self._provenance) == self.size

    def take(
        self, sampler: VisitSampler, draw: int, copier: Copier
    ) -> tuple[int, tuple[int, ...]] | Ended:
        """Crop one draw into the next row, see `VisitSampler.take`; `commit` keeps it."""
        return sampler.take(draw, *self.next_row(), copier)

    def next_row(self) -> tuple[Array, Array | None]:
        """Where the next crop (and its target) goes."""
        row = len(self._provenance)
        data, targets = self._rows()
        return data[row], None if targets is None else targets[row]

    def settle(self, gone: Collection[int]) -> None:
        """Be done with some visits, whose pixels go away; those of the host have been copied."""

    def commit(
        self, provenance: Provenance, piece: int, origin: tuple[int, ...], draw: int
    ) -> None:
        """Keep the row that was filled."""
        self._provenance.append(provenance)
        self._pieces.append(piece)
        self._origins.append(origin)
        self._draws.append(draw)

    def finish(self, cursor: Cursor) -> Batch:
        """The batch so far (short only at the end of a finite plan); begin the next one."""
        rows, crop = len(self), self._crop
        data, targets = self.pixels()
        smallchunks = SmallChunks(
            data,
            self._provenance,
            np.array(self._pieces, np.int64),
            np.array(self._origins, np.int64).reshape(rows, len(crop.size)),
            np.array(self._draws, np.int64),
            targets,
            self._key,
            len(crop.size) - len(crop.dropped),
        )
        self._reset()
        return Batch(smallchunks, cursor)

    def pixels(self) -> tuple[Any, Any]:
        """Small chunks and targets, (rows, *spatial[, channels])."""
        rows, crop = len(self), self._crop
        data, targets = self._rows()
        squeezed = None if targets is None else crop.squeezed(targets[:rows])
        return crop.squeezed(data[:rows]), squeezed
