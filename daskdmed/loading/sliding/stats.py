"""What a sliding-window loader has done so far, as numbers and as a table in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass

from dask.utils import format_bytes

from daskdmed.loading.sliding.read import WindowFailure


@dataclass(frozen=True, slots=True)
class SlidingStats:
    """Counters of a `SlidingWindowDL`, at one moment.

    Parameters
    ----------
    batches, windows : int
        Delivered to the consumer.
    total_windows : int
        That this rank delivers in a pass, those that fail included.
    seconds, wait_seconds : float
        Since the pass began, and of these spent waiting in ``next`` or ``get``.
    blocks_read, total_blocks : int
        Blocks of windows read, and in a pass.
    retries : int
        Reads that were tried again.
    resident_bytes, peak_bytes : int
        Of blocks in memory or being read, now and at most.
    budget_bytes : int
        What `peak_bytes` never exceeds.
    batches_ready : int
        Batches made and not yet asked for.
    failed : tuple of WindowFailure
        What was left out under ``on_error="skip"``.
    """

    batches: int
    windows: int
    total_windows: int
    seconds: float
    wait_seconds: float
    blocks_read: int
    total_blocks: int
    retries: int
    resident_bytes: int
    peak_bytes: int
    budget_bytes: int
    batches_ready: int
    failed: tuple[WindowFailure, ...]

    @property
    def windows_per_second(self) -> float:
        """Windows delivered per second since the pass began."""
        return self.windows / self.seconds if self.seconds > 0 else 0.0

    @property
    def lost_windows(self) -> int:
        """Windows that could not be read; those of images that did not open are not known."""
        return sum(len(f.windows) for f in self.failed)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value, for people."""
        rate = f"{self.windows_per_second:,.0f} per second"
        memory = f"{format_bytes(self.resident_bytes)}, at most {format_bytes(self.peak_bytes)}"
        return [
            ("windows", f"{self.windows:,} of {self.total_windows:,} ({rate})"),
            ("batches", f"{self.batches:,}"),
            ("waited for data", f"{self.wait_seconds:.1f} of {self.seconds:.1f} s"),
            ("blocks read", f"{self.blocks_read:,} of {self.total_blocks:,}"),
            ("read again", f"{self.retries:,}"),
            ("memory of blocks", f"{memory}, budget {format_bytes(self.budget_bytes)}"),
            ("left out", f"{self.lost_windows:,} windows, {len(self.failed):,} failures"),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{name:20}{value}" for name, value in self.rows())

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self.rows()
        )
        return f"<table>{body}</table>"
