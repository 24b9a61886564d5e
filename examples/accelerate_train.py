"""Hugging Face Accelerate: the loader goes through `prepare` as it is, without a DataLoader.

    pip install accelerate
    python examples/accelerate_train.py
    accelerate launch --cpu --num_processes 2 examples/accelerate_train.py

The first makes slides, and starts the second on them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from daskdmed import Dataset, LightDL, samples
from daskdmed.transforms import ToFloat

OUTPUT = Path("output/accelerate_train")
STEPS = 4


def train() -> None:
    """What each process does."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Conv2d(3, 1, 8)
    loader = LightDL(
        Dataset.from_folder(OUTPUT / "slides"),
        smallchunk_size=64,
        batch_size=8,
        bigchunk_size=512,
        smallchunks_per_bigchunk=16,
        resident="50 MiB",
        epoch_length=STEPS,
        batch_tfms=ToFloat(),
    )
    # prepare(DataLoader(loader, batch_size=None)) would deal out what is dealt already
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.01), loader
    )
    seen = []
    with loader:
        for epoch in range(2):
            loader.set_epoch(epoch)
            for x, _, chunks in loader:
                optimizer.zero_grad()
                accelerator.backward(model(x.to(accelerator.device)).mean())
                optimizer.step()
                seen += [f"{epoch} {c.bigchunk.visit} {c.draw}" for c in chunks]
    everything = gather_object(seen)
    accelerator.print(
        f"{accelerator.num_processes} processes: {len(seen)} small chunks each, "
        f"{len(everything) - len(set(everything))} in common"
    )
    accelerator.end_training()


def main() -> None:
    if "RANK" in os.environ:
        train()
        return
    samples.make_cohort(OUTPUT / "slides", n=2, size=1024)
    # what `accelerate launch` starts, without its questions
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    subprocess.run([sys.executable, "-m", *launch], env=environment, check=True)


if __name__ == "__main__":
    main()
