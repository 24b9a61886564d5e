"""Reading blocks of 4096 x 4096 pixels."""

from __future__ import annotations

import inputs
import scenarios

from benchmarks import Once, once_a_run, requires
from daskdmed.images import turbojpeg


@once_a_run
def measure(kind: str, *, openslide: bool = False) -> scenarios.BlockRead:
    """For all figures of it."""
    path, rounds = inputs.slide(kind), inputs.rounds(3)
    return scenarios.block_read(path, rounds=rounds, openslide=openslide)


class BlockRead(Once):
    """Through `to_dask` under threads."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        inputs.slide(kind)

    def track_megapixels(self, kind: str) -> float:
        return measure(kind).rate / 1e6

    def track_ratio_to_raw_decode(self, kind: str) -> float:
        return measure(kind).to_limit

    track_megapixels.unit = "Mpix/s"
    track_ratio_to_raw_decode.unit = "ratio"


class AgainstTurboJpeg(Once):
    """Raw decoding by the library that daskdmed decodes with where it is there."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        if turbojpeg.library() is None:
            raise NotImplementedError("the TurboJPEG library is not installed")
        inputs.slide(kind)

    def track_ratio(self, kind: str) -> float:
        return measure(kind).to_turbo or 0.0

    track_ratio.unit = "ratio"


class AgainstOpenSlide(Once):
    """The same blocks through OpenSlide's `read_region`."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        requires("openslide")
        inputs.slide(kind)

    def track_ratio(self, kind: str) -> float:
        return measure(kind, openslide=True).to_openslide or 0.0

    track_ratio.unit = "ratio"
