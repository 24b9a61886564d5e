"""A training step beside a loader, to the same step on batches out of memory."""

from __future__ import annotations

import inputs
import steps

from benchmarks import Once, requires

#: what the step is of, patches per second, workers of the loader
CASES: dict[str, tuple[str, int, int | str]] = {
    f"{kind}/{rate}/{workers}": (kind, rate, workers)
    for kind, rate, workers in (
        *(("python", rate, workers) for rate in steps.RATES for workers in (1, "threads")),
        ("python", 2_000, 2),
        ("torch", 2_000, 1),
        ("torch", 2_000, "threads"),
    )
}


class StepSlowdown(Once):
    """Of the interpreter and of torch; `report.py` measures more of them."""

    params = list(CASES)
    param_names = ["step/patches per second/workers"]

    def setup(self, case: str) -> None:
        requires("torch")
        inputs.slides("mixed")

    def track_slowdown(self, case: str) -> float:
        kind, rate, workers = CASES[case]
        paths = inputs.slides("mixed")
        found = steps.measure(paths, kind, rate=rate, workers=workers, seconds=inputs.seconds())
        return found.slowdown

    track_slowdown.unit = "times as long"  # type: ignore[attr-defined]
