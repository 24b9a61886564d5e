"""Training processes of one machine that share reading processes, to one with threads."""

from __future__ import annotations

import sys
from functools import cache

import inputs
import trainers

from benchmarks import Once, requires

#: reading processes / training processes
WAYS = {"1/1": (1, 1), "2/1": (2, 1), "2/2": (2, 2), "1/2": (1, 2)}


@cache
def measure(kind: str, name: str) -> trainers.Trained:
    """Once in a process, for all figures of it."""
    way = WAYS[name]
    return trainers.compared(inputs.slides(kind), [way], seconds=inputs.seconds())[way]


class Ranks(Once):
    """Together."""

    params = [["mixed", "dense"], list(WAYS)]
    param_names = ["slide", "workers/ranks"]

    def setup(self, kind: str, name: str) -> None:
        requires("torch")
        if not sys.platform.startswith("linux"):
            raise NotImplementedError("memory that is shared is counted by Linux alone")
        inputs.slides(kind)

    def track_patches(self, kind: str, name: str) -> float:
        return measure(kind, name).rate

    def track_ratio_to_in_process(self, kind: str, name: str) -> float:
        return measure(kind, name).to_in_process

    def track_reads_per_bigchunk(self, kind: str, name: str) -> float:
        return measure(kind, name).reads or 0.0

    def track_memory(self, kind: str, name: str) -> float:
        return measure(kind, name).mib

    track_patches.unit = "patches/s"  # type: ignore[attr-defined]
    track_ratio_to_in_process.unit = "of one in-process"  # type: ignore[attr-defined]
    track_reads_per_bigchunk.unit = "reads"  # type: ignore[attr-defined]
    track_memory.unit = "MiB"  # type: ignore[attr-defined]
