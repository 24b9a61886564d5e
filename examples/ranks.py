"""Several training processes feed from one cluster: each big chunk is read once for all.

Every process makes the same loader with its own `rank`. Batches are dealt out from one
plan, and the ranks share the big chunks in the workers' memory. Under ``torchrun`` and with
an initialised process group, ``rank=`` and ``world_size=`` can be left out.

    python examples/ranks.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from distributed import Client, LocalCluster

from daskdmed import Dataset, LightDL, samples
from daskdmed.persistence.policy import OnePass

OUTPUT = Path("output/ranks")
RANKS = 2


def rank(number: int, address: str) -> None:
    """What each training process does."""
    dataset = Dataset.from_folder(OUTPUT.absolute() / "slides")
    with (
        Client(address) as client,
        LightDL(
            dataset,
            smallchunk_size=128,
            batch_size=16,
            bigchunk_size=512,
            smallchunks_per_bigchunk=16,
            resident="24 MiB",
            policy=OnePass(),  # an epoch: every region of every slide once
            rank=number,
            world_size=RANKS,
            client=client,
        ) as loader,
    ):
        for _, _, chunks in loader:
            print(*{f"{c.patient.id}{c.bigchunk.origin}".replace(" ", "") for c in chunks})


def main() -> None:
    if len(sys.argv) > 1:
        rank(int(sys.argv[1]), sys.argv[2])
        return
    samples.make_cohort(OUTPUT / "slides", n=2, size=2048)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.get_task_stream()  # from here on the scheduler notes what it runs
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(r), cluster.scheduler_address],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for r in range(RANKS)
        ]
        outputs = [process.communicate()[0].splitlines() for process in processes]
        ran = [str(task["key"]) for task in client.get_task_stream()]
    regions = [{name for line in lines for name in line.split()} for lines in outputs]
    everything = Counter(name for names in regions for name in names)
    both = sum(n == RANKS for n in everything.values())
    reads = sum("big-chunk" in key for key in ran)
    print(f"batches of each rank: {[len(lines) for lines in outputs]}")
    print(f"big chunks: {len(everything)}, {both} of them used by all ranks")
    print(f"reads: {reads} (small big chunks share one)")
    if reads > len(everything):
        raise SystemExit("some big chunks were read more than once")


if __name__ == "__main__":
    main()
