"""Training processes of one machine that share reading processes, to one with threads."""

from __future__ import annotations

import sys

import inputs
import trainers

from benchmarks import Once, once_a_run, requires

#: reading processes / training processes; `report.py` measures more of them
WAYS = {"2/2": (2, 2)}


@once_a_run
def measure(name: str) -> trainers.Trained:
    """For all figures of it."""
    way = WAYS[name]
    return trainers.compared(inputs.slides("mixed"), [way], seconds=inputs.seconds())[way]


class Ranks(Once):
    """Together."""

    params = list(WAYS)
    param_names = ["workers/ranks"]

    def setup(self, name: str) -> None:
        requires("torch")
        if not sys.platform.startswith("linux"):
            raise NotImplementedError("memory that is shared is counted by Linux alone")
        inputs.slides("mixed")

    def track_ratio_to_in_process(self, name: str) -> float:
        return measure(name).to_in_process

    def track_reads_per_bigchunk(self, name: str) -> float:
        return measure(name).reads or 0.0

    def track_memory_beyond_budget(self, name: str) -> float:
        return max(measure(name).beyond, 0.001)

    track_ratio_to_in_process.unit = "of one in-process"  # type: ignore[attr-defined]
    track_reads_per_bigchunk.unit = "reads"  # type: ignore[attr-defined]
    track_memory_beyond_budget.unit = "MiB a process"  # type: ignore[attr-defined]
