"""Finding tissue, beside decoding the level that it is found on."""

from __future__ import annotations

import time
from typing import Any

import inputs
import limits
import numpy as np

from benchmarks import Once, requires
from daskdmed import TissueMask, open_slide, tissue_mask
from daskdmed.core.region import Region


def seconds_of(task: Any) -> float:
    """The best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        task()
        best = min(best, time.perf_counter() - began)
    return best


class TissueOfASlide(Once):
    """One mask, nothing cached."""

    params = ["otsu", "entropy", "hed"]
    param_names = ["method"]

    def setup(self, method: str) -> None:
        requires("skimage")
        self.slide = open_slide(inputs.slide("mixed"))

    def track_seconds(self, method: str) -> float:
        return seconds_of(lambda: tissue_mask(self.slide, method=method, cache=False))

    def track_ratio_to_reading(self, method: str) -> float:
        """All of it, against reading the level that it is made of and nothing else."""
        level = min(1, self.slide.level_count - 1)
        view = self.slide.view(level=level)
        whole = Region((0, 0), view.shape[:2])
        return self.track_seconds(method) / seconds_of(lambda: view.read(whole))

    track_seconds.unit = "s"
    track_ratio_to_reading.unit = "ratio"


class SharesOfWindows(Once):
    """Tissue under windows, by an integral image, against copying as many crops."""

    def setup(self) -> None:
        rng = np.random.default_rng(0)
        self.mask = TissueMask(rng.random((2048, 2048)) < 0.5, scale=(25.0, 25.0))
        self.origins = rng.integers(0, 2048 * 25 - 224, (20_000, 2))

    def track_windows(self) -> float:
        def task() -> None:
            self.mask.fractions(self.origins, (224, 224))

        return len(self.origins) / seconds_of(task)

    def track_ratio_to_crops(self) -> float:
        return self.track_windows() / limits.gather_rate(block=1024, blocks=2, batches=20)

    track_windows.unit = "windows/s"
    track_ratio_to_crops.unit = "ratio"
