"""Counting what happens to big chunks, and telling those who listen: one place for both.

A `Tally` outlives the resident sets of a loader, which has a new one for every epoch. Not
covered: batches (`daskdmed.loading.stats`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from daskdmed.cohort.sources import Failure
from daskdmed.core import events
from daskdmed.core.region import Region

#: patient, record, number of the visit, and box of a big chunk
Place: TypeAlias = tuple[str, str, int, Region]


class Tally:
    """Counters of a loader, which events call `loader`."""

    def __init__(self, loader: str) -> None:
        self.loader = loader
        #: big chunks that came into memory, and that left it
        self.visits_admitted = self.visits_evicted = 0
        #: read tasks submitted
        self.reads = 0
        #: pixels of the big chunks that were read
        self.pixels_read = 0
        #: draws beyond the plan, because a big chunk was late
        self.late_draws = 0
        #: what could not be read and was left out
        self.failures: list[Failure] = []

    def tell(self, kind: Callable[..., events.Event], place: Place, **more: float) -> None:
        """Emit an event of a big chunk; ask `events.listening` before making the place."""
        patient, record, visit, region = place
        event = kind(self.loader, patient, record, visit, region.origin, region.shape, **more)
        events.emit(event)
