"""A script of PyDmed's through `daskdmed.compat.pydmed`."""

from __future__ import annotations

import hooks
import inputs

from benchmarks import Once, once_a_run, requires


@once_a_run
def measure() -> hooks.Hooks:
    """For all figures of it."""
    return hooks.measure(inputs.seconds(), inputs.rounds(3))


class Hooks(Once):
    """In-process, on ready-made big chunks."""

    def setup(self) -> None:
        requires("torch")

    def track_patches(self) -> float:
        return measure().rate

    def track_times_the_original(self) -> float:
        return measure().to_original

    def track_ratio_to_gather(self) -> float:
        return measure().to_gather

    def track_ratio_to_plain(self) -> float:
        return measure().to_plain

    def track_cpu(self) -> float:
        return measure().cpu

    def track_first_batch(self) -> float:
        return measure().first

    track_patches.unit = "patches/s"
    track_times_the_original.unit = "ratio"
    track_ratio_to_gather.unit = "ratio"
    track_ratio_to_plain.unit = "ratio"
    track_cpu.unit = "us/patch"
    track_first_batch.unit = "s"
