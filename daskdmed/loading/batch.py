"""A batch on its way from the engines to the consumer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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
    """Crops of one batch, and where the plan stands after it; its pixels are there once `copied`
    has been called."""

    smallchunks: SmallChunks
    cursor: Cursor
    copied: Callable[[], None]


#: of rows: where each comes from, its piece, first pixel in the frame of the view, draw
_Run: TypeAlias = tuple[Sequence[Provenance], Array, Array, Array]


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
        #: whether the batch is complete
        self.full = False
        self._memory: tuple[Array, Array | None] | None = None
        #: where each row and its target go
        self._places: list[tuple[Array, Array | None]] = []
        #: of rows that were filled, see `commit`: those of the latest, and in runs before them
        self._kept: list[tuple[Provenance, int, tuple[int, ...], int]] = []
        self._runs: list[_Run] = []
        self._before = 0

    def _rows(self) -> tuple[Array, Array | None]:
        """Memory for all rows, and for their targets."""
        if self._memory is None:
            data, targets = self._memory = self._crop.rows(self.size, self._empty)
            none = itertools.repeat(None)
            self._places = list(zip(data, none if targets is None else targets, strict=False))
        return self._memory

    def __len__(self) -> int:
        return self._before + len(self._kept)

    @property
    def room(self) -> int:
        """Rows that are still to be filled."""
        return self.size - len(self)

    def add(
        self, sampler: VisitSampler, provenance: Provenance, draw: int, copier: Copier
    ) -> Ended | None:
        """Crop one draw of a visit into the next row, and keep it; or say that it gives none."""
        taken = self.take(sampler, draw, copier)
        if isinstance(taken, Ended):
            return taken
        kept = self._kept  # as `commit` does: it is done for every small chunk
        kept.append((provenance, *taken, draw))
        self.full = len(kept) == self.size
        return None

    def take(
        self, sampler: VisitSampler, draw: int, copier: Copier
    ) -> tuple[int, tuple[int, ...]] | Ended:
        """Crop one draw into the next row, see `VisitSampler.take`; `commit` keeps it."""
        return sampler.take(draw, *self.next_row(), copier)

    def add_all(self, provenances: Sequence[Provenance], visits: Array, draws: Array) -> bool:
        """`add` for so many draws as the batch has room for, where they need not be asked one by
        one; False: none was added."""
        return False

    def next_row(self) -> tuple[Array, Array | None]:
        """Where the next crop (and its target) goes."""
        if not self._places:
            self._rows()
        return self._places[len(self)]

    def settle(self, gone: Collection[int]) -> None:
        """Be done with some visits, whose pixels go away; those of the host have been copied."""

    def commit(
        self, provenance: Provenance, piece: int, origin: tuple[int, ...], draw: int
    ) -> None:
        """Keep the row that was filled."""
        self._kept.append((provenance, piece, origin, draw))
        self.full = len(self) == self.size

    def commit_all(
        self, provenances: Sequence[Provenance], pieces: Array, origins: Array, draws: Array
    ) -> None:
        """Keep as many rows as were filled."""
        self._put_by()
        self._runs.append((provenances, pieces, origins, draws))
        self._before += len(draws)
        self.full = self._before == self.size

    def _put_by(self) -> None:
        if self._kept:
            provenances, *numbers = zip(*self._kept, strict=True)
            pieces, origins, draws = (np.array(n, np.int64) for n in numbers)
            self._runs.append((provenances, pieces, origins, draws))
            self._before += len(self._kept)
            self._kept = []

    def finish(self, cursor: Cursor, copied: Callable[[], None]) -> Batch:
        """The batch so far (short only at the end of a finite plan), whose rows are there when
        `copied` says so; begin the next one."""
        crop = self._crop
        data, targets = self.pixels()
        self._put_by()
        none = np.zeros(0, np.int64)
        runs = [((), none, none.reshape(0, len(crop.size)), none), *self._runs]
        provenances, pieces, origins, draws = zip(*runs, strict=True)
        smallchunks = SmallChunks(
            data,
            [source for run in provenances for source in run],
            np.concatenate(pieces),
            np.concatenate(origins),
            np.concatenate(draws),
            targets,
            self._key,
            len(crop.size) - len(crop.dropped),
        )
        self._reset()
        return Batch(smallchunks, cursor, copied)

    def pixels(self) -> tuple[Any, Any]:
        """Small chunks and targets, (rows, *spatial[, channels])."""
        rows, crop = len(self), self._crop
        data, targets = self._rows()
        squeezed = None if targets is None else crop.squeezed(targets[:rows])
        return crop.squeezed(data[:rows]), squeezed
