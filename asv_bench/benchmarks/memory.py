"""Peak memory."""

from __future__ import annotations

import inputs
import scenarios

import daskdmed
from benchmarks import Once, requires


class Loader(Once):
    """A rotating loader with the default budget."""

    def setup(self) -> None:
        requires("torch")
        self.data = scenarios.dataset(inputs.slides("mixed"))

    def peakmem_rotation(self) -> None:
        batches = 200 if inputs.seconds() >= 1 else 2
        options = {"smallchunks_per_bigchunk": 64, "epoch_length": batches}
        with daskdmed.LightDL(self.data, resident="1 GiB", **options) as loader:
            for _ in loader:
                pass


class Heatmap(Once):
    """A heatmap of a slide, and of one with sixteen times the pixels."""

    params = ["whole side", "quarter side"]
    param_names = ["slide"]

    def setup(self, name: str) -> None:
        pixels = inputs.side() // (4 if name == "quarter side" else 1)
        self.path = inputs.slide("mixed", pixels, share_tiles=True)

    def peakmem_heatmap(self, name: str) -> None:
        daskdmed.heatmap(self.path, scenarios.grid_mean, kernel_size=scenarios.CROP)
