"""Small chunks from big chunks on a device, and what a training step on it waits for them.

On the best device that there is; on a CPU big chunks are copied and gathered as on a GPU, so that
everything runs, but the figures mean nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
import inputs
import numpy as np
import scenarios

import daskdmed
from benchmarks import Once, requires

CROP, BIGCHUNK = 224, 1024
#: name -> small chunks drawn from each big chunk: as users do, and with hardly any uploads
DRAWS = {"512 draws": 512, "gathering": 16384}
BATCHES = [256, 64]


def best_device() -> str:
    """The first kind of accelerator that there is."""
    import torch

    kinds = ("cuda", "xpu")
    return next((k for k in kinds if getattr(torch, k).is_available()), "cpu")


def dataset(source: str) -> daskdmed.Dataset:
    """ "arrays" of noise in memory, where neither a disk nor a decoder is measured, or "slides"."""
    if source == "slides":
        return scenarios.dataset(inputs.slides("dense"))
    side = min(4096, inputs.side())
    rng = np.random.default_rng(0)
    patients = []
    for i in range(4):
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        patients.append(daskdmed.Patient(f"p{i}", {"wsi": daskdmed.Record(array=pixels)}))
    return daskdmed.Dataset("noise", patients)


@contextmanager
def loader(
    batch: int, draws: int, source: str = "arrays", **options: Any
) -> Iterator[daskdmed.LightDL]:
    """Gives batches on the device, from 48 big chunks there."""
    with (
        dask.config.set({"daskdmed.device-residents": True}),
        daskdmed.LightDL(
            dataset(source),
            smallchunk_size=CROP,
            batch_size=batch,
            bigchunk_size=BIGCHUNK,
            resident=64 * 3 * BIGCHUNK**2,
            smallchunks_per_bigchunk=draws,
            device=best_device(),
            **options,
        ) as loading,
    ):
        yield loading


def synchronize() -> None:
    """Wait for the device."""
    import torch

    getattr(torch, best_device()).synchronize()


def rate(loading: Iterator[Any], step: Callable[[Any], None]) -> float:
    """Small chunks per second, once the first batch is there."""
    x, _, _ = next(loading)
    step(x)
    synchronize()
    began, taken = time.perf_counter(), 0
    while time.perf_counter() - began < inputs.seconds():
        x, _, _ = next(loading)
        step(x)
        taken += len(x)
    synchronize()
    return taken / (time.perf_counter() - began)


def training_step() -> Callable[[Any], None]:
    """One of ResNet-50 on a GPU; on a CPU of one convolution."""
    import torch

    device = torch.device(best_device())
    if device.type == "cpu":
        pooled = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))
        model: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 16, 16), *pooled)
    else:
        from torchvision.models import resnet50

        model = resnet50(num_classes=2)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(x: Any) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(x.float().div_(255)).float().logsumexp(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


class Gathering(Once):
    """Batches that nothing is done with."""

    params = [list(DRAWS), BATCHES]
    param_names = ["draws", "batch"]

    def setup(self, draws: str, batch: int) -> None:
        requires("torch")

    def track_patches(self, draws: str, batch: int) -> float:
        with loader(batch, DRAWS[draws]) as loading:
            return rate(loading, lambda x: None)

    track_patches.unit = "patches/s"


class Training(Once):
    """A training step, beside the same with one batch again and again: 1, nothing is waited for."""

    params = [BATCHES, ["arrays", "slides"]]
    param_names = ["batch", "source"]

    def setup(self, batch: int, source: str) -> None:
        requires("torch")
        if best_device() != "cpu":
            requires("torchvision")

    def track_ratio_to_step_alone(self, batch: int, source: str) -> float:
        step = training_step()
        with loader(batch, 512, source) as loading:
            x, _, _ = next(loading)
            alone = rate(itertools.repeat((x, None, None)), step)
            return rate(loading, step) / alone

    track_ratio_to_step_alone.unit = "ratio"
