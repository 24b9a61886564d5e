"""How long one waits before anything happens."""

from __future__ import annotations

import inputs
import scenarios

import daskdmed
from benchmarks import Once, requires


class FirstBatch(Once):
    """From the construction of a loader over eight slides to its first batch."""

    def setup(self) -> None:
        requires("torch")
        self.paths = inputs.slides("dense")

    def time_first_batch(self) -> None:
        scenarios.first_batch(self.paths)


class Open(Once):
    """Opening slides and building arrays."""

    def setup(self) -> None:
        self.paths = inputs.slides("mixed", 500)
        self.slide = daskdmed.open_slide(self.paths[0])
        self.slide.to_dask()

    def time_open_500_slides(self) -> None:
        for slide in daskdmed.open_slides(self.paths):
            slide.close()

    def time_build_array(self) -> None:
        self.slide.to_dask()


def timeraw_import() -> str:
    return "import daskdmed"


def timeraw_import_slide() -> str:
    return "import daskdmed; daskdmed.open_slide"


def timeraw_import_loader() -> str:
    return "import daskdmed; daskdmed.LightDL"
