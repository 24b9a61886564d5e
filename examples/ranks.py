"""Several training processes of a machine: each big chunk is read once for all.

Every process makes the same loader with its own `rank`. Batches are dealt out from one
plan, and the ranks share the big chunks in the memory of two reading processes, which the first
of them starts. Under ``torchrun`` and with an initialised process group, ``rank=`` and
``world_size=`` can be left out. Ranks of several machines: ``client=`` of one cluster.

    python examples/ranks.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import daskdmed
from daskdmed import Dataset, LightDL, Patient, Record, samples
from daskdmed.policies import OnePass

OUTPUT = Path("output/ranks").absolute()
RANKS = 2


def noted(block: Any, log: str, patient: str) -> Any:
    """The block itself; every time that one is read, a line is left behind."""
    with open(log, "a") as file:
        file.write(f"{patient}\n")
    return block


def noting_dataset() -> Dataset:
    """Slides as any Dask arrays: here those that tell what is read of them."""
    patients = []
    for path in sorted((OUTPUT / "slides").glob("*.tif*")):
        array = daskdmed.open_slide(path).to_dask(chunks=512)
        array = array.map_blocks(
            noted, str(OUTPUT / "reads.txt"), path.stem, dtype="u1", name=f"noted-{path.stem}",
            meta=np.empty((0, 0, 0), "u1"),
        )  # fmt: skip
        patients.append(Patient(path.stem, {"wsi": Record(array=array)}))
    return Dataset("noting", patients)


def rank(number: int) -> None:
    """What each training process does."""
    with LightDL(
        noting_dataset(),
        smallchunk_size=128,
        batch_size=16,
        bigchunk_size=512,
        smallchunks_per_bigchunk=16,
        resident="24 MiB",
        policy=OnePass(),  # an epoch: every region of every slide once
        rank=number,
        world_size=RANKS,
        workers=2,
    ) as loader:
        for _, _, chunks in loader:
            print(*{f"{c.patient.id}{c.bigchunk.origin}".replace(" ", "") for c in chunks})


def main() -> None:
    if len(sys.argv) > 1:
        rank(int(sys.argv[1]))
        return
    samples.make_cohort(OUTPUT / "slides", n=2, size=2048)
    (OUTPUT / "reads.txt").write_text("")
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(r)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for r in range(RANKS)
    ]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    regions = [{name for line in lines for name in line.split()} for lines in outputs]
    everything = Counter(name for names in regions for name in names)
    both = sum(n == RANKS for n in everything.values())
    reads = len((OUTPUT / "reads.txt").read_text().split())
    print(f"batches of each rank: {[len(lines) for lines in outputs]}")
    print(f"big chunks: {len(everything)}, {both} of them used by all ranks")
    print(f"reads: {reads}")
    if reads > len(everything):
        raise SystemExit("some big chunks were read more than once")


if __name__ == "__main__":
    main()
