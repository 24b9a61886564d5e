"""What a loader has done so far, as numbers and as a table in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace

from dask.utils import format_bytes

from daskdmed.loading.diversity import DiversityStats
from daskdmed.persistence.catalogue import Failure


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """Counters of a `LightDL`, at one moment.

    Parameters
    ----------
    batches, patches : int
        Delivered to the consumer.
    seconds : float
        Since the loader was started.
    wait_seconds : float
        The consumer spent waiting in ``next`` or ``get``.
    first_batch_seconds : float or None
        From start to the first batch.
    visits_admitted, visits_evicted : int
        Big chunks that came into memory, and that left it.
    reads : int
        Read tasks submitted; small big chunks share one.
    resident_visits : int
        Big chunks in memory or being read.
    resident_bytes : int
        Upper bound of their bytes.
    budget_bytes : int
        What `resident_bytes` never exceeds.
    late_draws : int
        Draws beyond the plan, because a big chunk was late (``rotation="adaptive"``).
    batches_ready : int
        Batches made and not yet asked for.
    diversity : DiversityStats
        How varied the batches were.
    failed : tuple of Failure
        What was left out under ``on_error="skip"``.
    """

    batches: int
    patches: int
    seconds: float
    wait_seconds: float
    first_batch_seconds: float | None
    visits_admitted: int
    visits_evicted: int
    reads: int
    resident_visits: int
    resident_bytes: int
    budget_bytes: int
    late_draws: int
    batches_ready: int
    diversity: DiversityStats
    failed: tuple[Failure, ...]

    def after(self, past: LoaderStats) -> LoaderStats:
        """With what was counted in earlier epochs."""
        return replace(
            self,
            visits_admitted=past.visits_admitted + self.visits_admitted,
            visits_evicted=past.visits_evicted + self.visits_evicted,
            reads=past.reads + self.reads,
            late_draws=past.late_draws + self.late_draws,
            failed=past.failed + tuple(f for f in self.failed if f not in past.failed),
        )

    @property
    def patches_per_second(self) -> float:
        """Patches delivered per second since the start."""
        return self.patches / self.seconds if self.seconds > 0 else 0.0

    @property
    def wait_fraction(self) -> float:
        """Share of the time that the consumer waited for data."""
        return min(1.0, self.wait_seconds / self.seconds) if self.seconds > 0 else 0.0

    def rows(self) -> list[tuple[str, str]]:
        """Name and value, for people."""
        first = self.first_batch_seconds
        varied, distance = self.diversity, self.diversity.repeat_distance
        return [
            ("batches", f"{self.batches:,}"),
            ("patches", f"{self.patches:,} ({self.patches_per_second:,.0f} per second)"),
            ("waited for data", f"{self.wait_seconds:.1f} s ({self.wait_fraction:.0%})"),
            ("first batch after", "-" if first is None else f"{first:.2f} s"),
            ("big chunks in memory", f"{self.resident_visits:,}"),
            (
                "memory",
                f"{format_bytes(self.resident_bytes)} of {format_bytes(self.budget_bytes)}",
            ),
            ("visits admitted, evicted", f"{self.visits_admitted:,}, {self.visits_evicted:,}"),
            ("late draws", f"{self.late_draws:,}"),
            ("patches per visit", f"{varied.patches_per_visit:,.1f}"),
            ("patients per batch", f"{varied.patients_per_batch:.1f}"),
            ("big chunks per batch", f"{varied.bigchunks_per_batch:.1f}"),
            ("repeat distance", "-" if distance is None else f"{distance:,.0f} patches"),
            ("coverage", f"{varied.coverage:.1%} of {varied.patients:,} patients"),
            ("left out", f"{len(self.failed):,}"),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{name:26}{value}" for name, value in self.rows())

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self.rows()
        )
        return f"<table>{body}</table>"
