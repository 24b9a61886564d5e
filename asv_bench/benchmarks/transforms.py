"""Transforms of a uint8 batch of 64 patches, beside copying it and beside torchvision."""

from __future__ import annotations

import time
from collections.abc import Callable

import inputs
import numpy as np

from benchmarks import Once, once_a_run, requires

SIZE = 224
BATCH = 64


def batch():
    """``[64, 3, 224, 224]`` uint8 in channels-last memory: two stains and some glass."""
    import torch

    rng = np.random.default_rng(0)
    coarse = rng.gamma(1.5, 0.3, (BATCH, 2, SIZE // 8, SIZE // 8))
    amounts = np.moveaxis(coarse.repeat(8, 2).repeat(8, 3), 1, -1)
    amounts[:, : SIZE // 5] = 0
    density = amounts @ np.array([[0.65, 0.70, 0.29], [0.21, 0.85, 0.48]])
    noise = rng.integers(0, 6, density.shape)
    pixels = np.clip(240 * np.exp(-density) + noise, 0, 255).astype(np.uint8)
    return torch.from_numpy(pixels).movedim(-1, 1)


def transforms() -> dict[str, Callable]:
    """What is measured, by name."""
    from daskdmed import transforms as t

    target = np.ascontiguousarray(batch()[0].movedim(0, -1).numpy())
    return {
        "flip": t.RandomFlip(),
        "dihedral": t.Compose([t.RandomFlip(), t.RandomRotate90()]),
        "normalize": t.Normalize((0.7, 0.6, 0.7), (0.2, 0.2, 0.2)),
        "colour": t.ColorJitter(0.2, 0.2, 0.2),
        "colour+hue": t.ColorJitter(0.2, 0.2, 0.2, 0.05),
        "hed": t.HEDJitter(),
        "macenko": t.MacenkoNormalizer().fit(target),
        "reinhard": t.ReinhardNormalizer().fit(target),
    }


NAMES = ["flip", "dihedral", "normalize", "colour", "colour+hue", "hed", "macenko", "reinhard"]


def rate(step: Callable[[], object]) -> float:
    """Patches per second."""
    step()
    n, began = 0, time.perf_counter()
    while n < 2 or time.perf_counter() - began < inputs.seconds() / 4:
        step()
        n += 1
    return n * BATCH / (time.perf_counter() - began)


@once_a_run
def measure(name: str) -> tuple[float, float]:
    """Patches per second of a transform, and of copying the batch."""
    x, keys, transform = batch(), np.arange(3 * BATCH).reshape(BATCH, 3), transforms()[name]
    return rate(lambda: transform(x, keys)), rate(lambda: x.clone())


class Transforms(Once):
    """Each by itself."""

    params = NAMES
    param_names = ["transform"]

    def setup(self, name: str) -> None:
        requires("torch")

    def track_patches(self, name: str) -> float:
        return measure(name)[0]

    def track_ratio_to_copy(self, name: str) -> float:
        """How many copies of the batch take as long."""
        ours, copies = measure(name)
        return copies / ours

    track_patches.unit = "patches/s"
    track_ratio_to_copy.unit = "copies"


class AgainstTorchvision(Once):
    """The same work by torchvision, which draws once for a batch or loops over images."""

    params = ["dihedral", "normalize", "colour", "colour+hue"]
    param_names = ["transform"]

    def setup(self, name: str) -> None:
        requires("torch")
        requires("torchvision")
        import torch
        from torchvision.transforms import v2

        flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
        turns = v2.RandomChoice([v2.RandomRotation((a, a)) for a in (0, 90, 180, 270)])
        peers = {
            "dihedral": v2.Compose([*flips, turns]),
            "normalize": v2.Compose(
                [
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize([0.7, 0.6, 0.7], [0.2, 0.2, 0.2]),
                ]
            ),
            "colour": v2.ColorJitter(0.2, 0.2, 0.2),
            "colour+hue": v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
        }
        self.peer = peers[name]
        self.stack = torch.stack
        self.x = batch()
        self.keys = np.arange(3 * BATCH).reshape(BATCH, 3)
        self.transform = transforms()[name]

    def track_ratio(self, name: str) -> float:
        ours = rate(lambda: self.transform(self.x, self.keys))
        return ours / rate(lambda: self.stack([self.peer(image) for image in self.x]))

    track_ratio.unit = "ratio"


class Draw(Once):
    """Parameters alone."""

    def setup(self) -> None:
        requires("torch")
        self.keys = np.arange(3 * BATCH).reshape(BATCH, 3)
        self.transform = transforms()["dihedral"]

    def track_microseconds(self) -> float:
        return 1e6 * BATCH / rate(lambda: self.transform.draw(self.keys))

    track_microseconds.unit = "us per batch"
