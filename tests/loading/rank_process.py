"""One rank as a process of its own: python rank_process.py JOB.json RANK."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from daskdmed import Dataset, LightDL, Patient, Record
from daskdmed.persistence.policy import OnePass
from tests.loading.conftest import SMALL, coordinate_array

PARAMETERS = {**SMALL, "resident": "16 MiB", "policy": OnePass(), "seed": 4}


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


def main(job, rank):
    from distributed import Client

    folder = Path(job["folder"])
    dataset = counting_dataset(folder / job["log"], job["patients"])
    delay = job["delays"][rank]
    with Client(job["address"], set_as_default=False) as client:
        loader = LightDL(
            dataset, **PARAMETERS, rank=rank, world_size=job["world_size"], client=client
        )
        (folder / f"ready-{rank}").touch()
        while not (folder / "go").exists():
            time.sleep(0.02)
        origins, patients = [], []
        with loader:
            for _, who, chunks in loader:
                origins.append(chunks.origins)
                patients.append([p.id for p in who])
                (folder / f"new-{rank}").write_text(str(len(origins)))
                (folder / f"new-{rank}").replace(folder / f"at-{rank}")
                time.sleep(delay)
        np.savez(folder / f"rank-{rank}.npz", origins=origins, patients=patients)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))
