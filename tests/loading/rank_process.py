"""Rank 1 of 2 as a process of its own: python rank_process.py JOB.json."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from daskdmed import Dataset, LightDL, Patient, Record
from daskdmed.persistence.policy import OnePass
from tests.loading.conftest import SMALL, coordinate_array

PARAMETERS = {**SMALL, "resident": "7 MiB", "policy": OnePass(), "seed": 4}


def counted(block, log, number, block_id=None):
    """The block itself; every computation leaves a line behind."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"p{number} {block_id[0]} {block_id[1]}\n".encode())
    os.close(file)
    return block


def counting_dataset(log, patients):
    def record(i):
        array = coordinate_array(number=i).map_blocks(
            counted,
            log=str(log),
            number=i,
            dtype="u1",
            name=f"counted-{Path(log).name}-{i}",
            meta=np.empty((0, 0, 0), "u1"),
        )
        return Record(array=array)

    return Dataset("counting", [Patient(f"p{i}", {"wsi": record(i)}) for i in range(patients)])


def main(job):
    """Take some batches, with a line for each; then stand still until standard input ends."""
    from distributed import Client

    from daskdmed.persistence import ranks

    ranks.JOIN_LIMIT = 1e6  # the other comes when it comes
    dataset = counting_dataset(job["log"], job["patients"])
    options = {**PARAMETERS, "rank": 1, "world_size": 2}
    with (
        Client(job["address"], set_as_default=False) as client,
        LightDL(dataset, **options, client=client) as loader,
    ):
        for number in range(1, job["batches"] + 1):
            next(loader)
            print(number, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
