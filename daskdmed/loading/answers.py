"""What a sampling task does, in the worker: crops of many draws, where their blocks live.

Not covered: how a draw is cropped (`daskdmed.loading.sampling`), and who asks for which
(`daskdmed.loading.remote`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from daskdmed.core import buffers
from daskdmed.core.errors import LoaderError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.loading.chunks import BigChunk
from daskdmed.loading.collectors import CollectorFunction
from daskdmed.loading.patientstate import VisitState
from daskdmed.loading.sampling import CropSpec, Ended, VisitFacts, VisitSampler
from daskdmed.persistence.reading import Loaded, ReadFailure


@dataclass(frozen=True, slots=True)
class Wanted:
    """Draws of one visit, wanted from the task that holds its block.

    `unit`, `member`: which of the task's read results holds the visit, and which job in it
    (`single`: it has one). `slots`: the row of the answer that each draw goes to. `state`, `mail`:
    of a stateful collector, the visit's state before these draws and feedback for the first of
    them.
    """

    unit: int
    member: int
    single: bool
    facts: VisitFacts
    draws: tuple[int, ...]
    slots: tuple[int, ...]
    state: bytes | None = None
    mail: tuple[bytes, ...] = ()


class Sampled(NamedTuple):
    """What a sampling task gives back: crops, rows of ended visits undefined.

    `pieces`: piece of the visit, -1 where the visit had ended. `origins`: first pixels in the frame
    of the view. `ended`: visit number -> (draw at which it ended, error or None). `bigchunks`:
    visit number -> its pieces without pixels. `states`: visit number -> its state after these
    draws.
    """

    data: Array
    targets: Array | None
    pieces: Array
    origins: Array
    ended: dict[int, tuple[int, BaseException | None]]
    bigchunks: dict[int, tuple[BigChunk, ...]]
    states: dict[int, bytes]


def sample(
    results: Sequence[Loaded],
    wanted: Sequence[Wanted],
    crop: CropSpec,
    collect: CollectorFunction | None,
    expected: int,
) -> Sampled:
    """Crop draws from blocks that live in this process; the body of a Dask task.

    `results` are those of `daskdmed.persistence.reading.read_jobs`; `expected`: draws per visit.
    """
    rows = sum(len(w.draws) for w in wanted)
    data, targets = crop.rows(rows, buffers.empty)
    pieces = np.full(rows, -1, np.int64)
    origins = np.zeros((rows, len(crop.size)), np.int64)
    ended: dict[int, tuple[int, BaseException | None]] = {}
    bigchunks = {}
    states = {}
    for want in wanted:
        loaded = results[want.unit] if want.single else results[want.unit][want.member]
        state = None if want.state is None else VisitState(want.state, want.mail)
        sampler = VisitSampler(loaded, want.facts, crop, collect, expected, state)
        bigchunks[want.facts.number] = sampler.bigchunks()
        for draw, slot in zip(want.draws, want.slots, strict=True):
            taken = sampler.take(draw, data[slot], None if targets is None else targets[slot])
            if isinstance(taken, Ended):
                ended[want.facts.number] = (draw, _portable(taken.error, want.facts.region))
                break
            pieces[slot], origins[slot] = taken
        if state is not None:
            states[want.facts.number] = state.packed(want.facts.patient)
    return Sampled(data, targets, pieces, origins, ended, bigchunks, states)


def _portable(error: BaseException | None, region: Region) -> BaseException | None:
    """An exception that survives the way to the loader's process."""
    if error is None:
        return None
    _, (portable, _) = ReadFailure(error, region).__reduce__()
    return portable if isinstance(portable, BaseException) else LoaderError(str(error))
