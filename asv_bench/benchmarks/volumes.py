"""Random patches with labels from compressed NIfTI scans through `LightDL`."""

from __future__ import annotations

import inputs
import volumes

from benchmarks import Once, once_a_run, requires


@once_a_run
def measure() -> volumes.Patches:
    """For both figures of it."""
    return volumes.patches(inputs.scans(), seconds=inputs.seconds())


class Volumes(Once):
    """In-process."""

    def setup(self) -> None:
        requires("torch")
        requires("nibabel")
        inputs.scans()

    def track_patches(self) -> float:
        return measure().rate

    def track_ratio_to_cost_model(self) -> float:
        return measure().to_model

    track_patches.unit = "patches/s"
    track_ratio_to_cost_model.unit = "ratio"
