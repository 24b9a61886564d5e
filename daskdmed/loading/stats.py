"""What a loader has done so far, as numbers and as a table in a notebook."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from dask.utils import format_bytes

from daskdmed.cohort.sources import Failure
from daskdmed.core import events, html
from daskdmed.loading.diversity import DiversityStats
from daskdmed.persistence.tally import Tally


class Meter(Tally):
    """Counts batches too, and how long the consumer waited for them.

    It outlives the parts of a loader and knows none of them.
    """

    def __init__(self, loader: str) -> None:
        super().__init__(loader)
        self.wait_seconds = 0.0
        self.first_batch_seconds: float | None = None
        self._began: float | None = None
        self._made = self._taken = 0

    def start(self, batches: int) -> None:
        """Begin to measure, unless that was done; so many batches have been taken before."""
        self._began = self._began or time.perf_counter()
        self._made = self._taken = batches

    def counters(self) -> dict[str, Any]:
        """What every `Stats` has of it."""
        names = ("seconds", "wait_seconds", "first_batch_seconds", "pixels_read")
        return {name: getattr(self, name) for name in names}

    @property
    def seconds(self) -> float:
        """Since the first `start`."""
        return 0.0 if self._began is None else time.perf_counter() - self._began

    def made(self, size: int) -> None:
        """Note that a batch waits to be taken."""
        number, self._made = self._made, self._made + 1
        if events.listening():
            events.emit(events.BatchMade(self.loader, number, size))

    def waited(self, seconds: float) -> None:
        """Note that the consumer has waited, for a batch or in vain."""
        self.wait_seconds += seconds

    def took(self, size: int, waited: float) -> None:
        """Note that the consumer has a batch."""
        if self.first_batch_seconds is None:
            self.first_batch_seconds = self.seconds
        number, self._taken = self._taken, self._taken + 1
        if events.listening():
            events.emit(events.BatchTaken(self.loader, number, size, waited))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats(ABC):
    """Counters of a loader, at one moment.

    Parameters
    ----------
    batches : int
        Delivered to the consumer.
    seconds : float
        Since the loader was started; since its pass over the windows began.
    wait_seconds : float
        The consumer spent waiting in ``next`` or ``get``.
    first_batch_seconds : float or None
        From start to the first batch.
    pixels_read : int
        Of the big chunks or blocks that were read; ranks that share one each count it.
    pixels_drawn : int
        Of the small chunks or windows delivered.
    resident_bytes : int
        Upper bound of the bytes of all blocks in memory or being read.
    budget_bytes : int
        What `resident_bytes` never exceeds.
    batches_ready : int
        Batches made and not yet asked for.
    failed : tuple
        What was left out under ``on_error="skip"``.
    """

    batches: int
    seconds: float
    wait_seconds: float
    first_batch_seconds: float | None
    pixels_read: int
    pixels_drawn: int
    resident_bytes: int
    budget_bytes: int
    batches_ready: int
    failed: tuple[Any, ...]

    @property
    def wait_fraction(self) -> float:
        """Share of the time that the consumer waited for data."""
        return min(1.0, self.wait_seconds / self.seconds) if self.seconds > 0 else 0.0

    @property
    def reuse(self) -> float:
        """Pixels delivered per pixel read."""
        return self.pixels_drawn / self.pixels_read if self.pixels_read else 0.0

    def _per_second(self, count: int) -> float:
        return count / self.seconds if self.seconds > 0 else 0.0

    @abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Name and value, for people."""

    def _common_rows(self) -> list[tuple[str, str]]:
        first = self.first_batch_seconds
        return [
            ("batches", f"{self.batches:,}"),
            ("waited for data", f"{self.wait_seconds:.1f} s ({self.wait_fraction:.0%})"),
            ("first batch after", "-" if first is None else f"{first:.2f} s"),
            (
                "memory",
                f"{format_bytes(self.resident_bytes)} of {format_bytes(self.budget_bytes)}",
            ),
            ("pixels drawn per pixel read", f"{self.reuse:.2f}"),
        ]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:{width}}{value}" for name, value in rows)

    def _repr_html_(self) -> str:
        return html.page(html.facts(self.rows()))


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderStats(Stats):
    """Counters of a `LightDL`, at one moment; those of every loader and these.

    Parameters
    ----------
    patches : int
        Delivered to the consumer.
    visits_admitted, visits_evicted : int
        Big chunks that came into memory, and that left it.
    reads : int
        Read tasks submitted; small big chunks share one.
    resident_visits : int
        Big chunks in memory or being read.
    resident_on : str
        Where those are that are drawn from: "host", or the device that batches come to.
    late_draws : int
        Draws beyond the plan, because a big chunk was late (``rotation="adaptive"``).
    diversity : DiversityStats
        How varied the batches were.
    """

    patches: int
    visits_admitted: int
    visits_evicted: int
    reads: int
    resident_visits: int
    resident_on: str
    late_draws: int
    diversity: DiversityStats
    failed: tuple[Failure, ...]

    @property
    def patches_per_second(self) -> float:
        """Patches delivered per second since the start."""
        return self._per_second(self.patches)

    def rows(self) -> list[tuple[str, str]]:
        return [
            ("patches", f"{self.patches:,} ({self.patches_per_second:,.0f} per second)"),
            *self._common_rows(),
            ("big chunks in memory", f"{self.resident_visits:,} ({self.resident_on})"),
            ("visits admitted, evicted", f"{self.visits_admitted:,}, {self.visits_evicted:,}"),
            ("late draws", f"{self.late_draws:,}"),
            *self.diversity.rows(),
            ("left out", f"{len(self.failed):,}"),
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingStats(Stats):
    """Counters of a `SlidingWindowDL`, at one moment; those of every loader and these.

    Parameters
    ----------
    windows : int
        Delivered to the consumer.
    total_windows : int
        That this rank delivers in a pass, those that fail included.
    blocks_read, total_blocks : int
        Blocks of windows read, and in a pass.
    retries : int
        Reads that were tried again.
    peak_bytes : int
        Most bytes of blocks in memory or being read; never more than `budget_bytes`.
    lost_windows : int
        Windows that could not be read; those of images that did not open are not known.
    """

    windows: int
    total_windows: int
    blocks_read: int
    total_blocks: int
    retries: int
    peak_bytes: int
    lost_windows: int

    @property
    def windows_per_second(self) -> float:
        """Windows delivered per second since the pass began."""
        return self._per_second(self.windows)

    def rows(self) -> list[tuple[str, str]]:
        rate = f"{self.windows_per_second:,.0f} per second"
        return [
            ("windows", f"{self.windows:,} of {self.total_windows:,} ({rate})"),
            *self._common_rows(),
            ("memory at most", format_bytes(self.peak_bytes)),
            ("blocks read", f"{self.blocks_read:,} of {self.total_blocks:,}"),
            ("read again", f"{self.retries:,}"),
            ("left out", f"{self.lost_windows:,} windows, {len(self.failed):,} failures"),
        ]
