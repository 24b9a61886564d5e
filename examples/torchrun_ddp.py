"""Several training processes by torchrun: each gets its own batches of one plan.

    python examples/torchrun_ddp.py
    torchrun --nproc-per-node 2 examples/torchrun_ddp.py

The first makes slides, and starts the second on them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from daskdmed import Dataset, LightDL, samples
from daskdmed.policies import OnePass
from daskdmed.transforms import ToFloat

OUTPUT = Path("output/torchrun_ddp")
EPOCHS = 2


def train() -> None:
    """What each process does."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = DistributedDataParallel(torch.nn.Conv2d(3, 1, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    dataset = Dataset.from_folder(OUTPUT / "slides")
    # rank and world size are those of the process group; all ranks of a machine share its two
    # reading processes, so that each big chunk is read once and lies in memory once
    with LightDL(
        dataset,
        smallchunk_size=64,
        batch_size=8,
        bigchunk_size=512,
        smallchunks_per_bigchunk=16,
        resident="50 MiB",
        policy=OnePass(),  # an epoch: every region of every slide once
        batch_tfms=ToFloat(),
        workers=2,
    ) as loader:
        seen: list[list[str]] = []
        for epoch in range(EPOCHS):
            loader.set_epoch(epoch)
            seen.append([])
            for x, _, chunks in loader:  # as many batches in each process
                optimizer.zero_grad()
                model(x).mean().backward()
                optimizer.step()
                seen[-1] += [f"{c.bigchunk.visit} {c.draw}" for c in chunks]
        # one process saves for all: they have had as many batches
        if rank == 0:
            (OUTPUT / "state.json").write_text(json.dumps(loader.state_dict()))
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, (seen, model.module.weight.tolist()))
    if rank == 0:
        for epoch in range(EPOCHS):
            shares = [set(theirs[epoch]) for theirs, _ in of_all]
            sizes, common = [len(s) for s in shares], len(set.intersection(*shares))
            print(f"epoch {epoch}: small chunks of each process {sizes}, {common} in common")
        weights = [w for _, w in of_all]
        print(f"one model in all processes: {weights.count(weights[0]) == len(weights)}")
    dist.destroy_process_group()


def main() -> None:
    if "RANK" in os.environ:
        train()
        return
    samples.make_cohort(OUTPUT / "slides", n=2, size=1024)
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.execv(sys.executable, [sys.executable, "-m", *launch])


if __name__ == "__main__":
    main()
