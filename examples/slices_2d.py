"""Volumes stored as one file per slice: train a 2-D network on slices, predict whole scans.

Each slice lies in a NumPy file of its own. A patient's slices are one lazy volume, of which only
what is needed is read; a network for planes sees each slice with its neighbours as channels.

    python examples/slices_2d.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from daskdmed import Dataset, LightDL, evaluate, infer
from daskdmed.policies import EachOnce

OUTPUT = Path("output/slices_2d")
QUICK = bool(os.environ.get("DASKDMED_QUICK"))
SIZE, SLICES, EPOCHS = (48, 12, 12) if QUICK else (96, 32, 6)


def make_slices(folder: Path, scan: str, seed: int) -> None:
    """A ball in noise, ``<scan>_<slice>.npy``, and its mask, ``<scan>_<slice>_seg.npy``."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:SIZE, :SIZE]
    middle, radius = SIZE * rng.uniform(0.4, 0.6, 2), SIZE * rng.uniform(0.2, 0.35)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(SLICES):
        height = (number - SLICES / 2) * SIZE / SLICES
        ball = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 + height**2 < radius**2
        plane = 100 * ball + rng.normal(0, 80, ball.shape)
        np.save(folder / f"{scan}_{number}.npy", plane.astype(np.float32))
        np.save(folder / f"{scan}_{number}_seg.npy", ball.astype(np.uint8))


def scaled(x: torch.Tensor) -> torch.Tensor:
    return x.float() / 100


def main() -> None:
    for seed, scan in enumerate(("a", "b", "c", "d")):
        make_slices(OUTPUT / "slices", scan, seed)
    dataset = Dataset.from_slices(
        OUTPUT / "slices", "{id}_{slice}.npy", labels="{id}_{slice}_seg.npy", spacing=(3, 1, 1)
    )
    print(dataset)
    train_set, test_set = dataset[:3], dataset[3:]

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 2, 5, padding=2)
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    with LightDL(
        train_set,
        record="image",
        target="label",
        smallchunk_size=(1, SIZE, SIZE),
        context=(1, 0, 0),  # one slice before, one behind, as channels
        squeeze=True,  # (batch, 3, y, x)
        policy=EachOnce((1, SIZE, SIZE)),  # every slice once in an epoch
        batch_size=6,
        drop_last=False,
        seed=0,
    ) as loader:
        for epoch in range(EPOCHS):
            loader.set_epoch(epoch)
            seen = 0
            for x, _, smallchunks in loader:
                wanted = torch.as_tensor(smallchunks.targets).squeeze(1).long()
                loss = nn.functional.cross_entropy(network(scaled(x)), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seen += len(x)
            print(f"epoch {epoch}: {seen} slices of shape {tuple(x.shape[1:])}, {loss.item():.3f}")

    scans = infer(
        test_set,
        network,
        record="image",
        target="label",
        kernel_size=(1, SIZE, SIZE),
        context=(1, 0, 0),
        squeeze=True,
        batch_tfms=scaled,
        post="argmax",
        out=OUTPUT / "found",
        overwrite=True,
    )
    report = evaluate(scans, classes={"ball": 1}, metrics=("dice", "assd"))
    print(report.table.to_string())
    print(f"mean Dice {report.table['dice'].mean():.3f}")


if __name__ == "__main__":
    main()
