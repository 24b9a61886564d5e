"""A training step beside a loader, to the same step on batches out of memory."""

from __future__ import annotations

from functools import cache

import inputs
import steps

from benchmarks import Once, requires


@cache
def measure(kind: str, rate: int, workers: int | str) -> steps.Slowdown:
    """Once in a process, for all figures of it."""
    paths = inputs.slides("mixed")
    return steps.measure(paths, kind, rate=rate, workers=workers, seconds=inputs.seconds())


class StepSlowdown(Once):
    """Of the interpreter and of torch, at some patches per second."""

    params = [list(steps.STEPS), list(steps.RATES), list(steps.WORKERS)]
    param_names = ["step", "patches/s", "workers"]

    def setup(self, kind: str, rate: int, workers: int | str) -> None:
        requires("torch")
        inputs.slides("mixed")

    def track_slowdown(self, kind: str, rate: int, workers: int | str) -> float:
        return measure(kind, rate, workers).slowdown

    def track_pace(self, kind: str, rate: int, workers: int | str) -> float:
        return measure(kind, rate, workers).pace

    track_slowdown.unit = "times as long"  # type: ignore[attr-defined]
    track_pace.unit = "of the patches/s"  # type: ignore[attr-defined]
