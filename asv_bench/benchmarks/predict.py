"""Dense prediction: time against the bare network and MONAI, and peak memory."""

from __future__ import annotations

import dense

from benchmarks import Once, once_a_run, requires


@once_a_run
def measure(who: str) -> dense.Figures:
    """For all figures of it."""
    return dense.measure(who, dense.side())


class Predict(Once):
    """512-pixel windows, overlap 0.25, gaussian, up to 4096 x 4096, in processes of their own."""

    def setup(self) -> None:
        requires("torch")

    def track_seconds(self) -> float:
        return measure("daskdmed").seconds

    def track_ratio_to_bare_model(self) -> float:
        found = measure("daskdmed")
        return found.seconds / found.model_seconds

    def track_peak_mib(self) -> float:
        return measure("daskdmed").peak_mib

    track_seconds.unit = "s"
    track_ratio_to_bare_model.unit = "ratio"
    track_peak_mib.unit = "MiB"


class AgainstMonai(Once):
    """The same, as a share of what MONAI needs."""

    def setup(self) -> None:
        requires("torch")
        requires("monai")
        self.own, self.monai = measure("daskdmed"), measure("monai")

    def track_ratio_of_time(self) -> float:
        return self.own.seconds / self.monai.seconds

    def track_ratio_of_peak_memory(self) -> float:
        return self.own.peak_mib / max(self.monai.peak_mib, 1e-3)

    track_ratio_of_time.unit = "ratio"
    track_ratio_of_peak_memory.unit = "ratio"


class DenseMode(Once):
    """Exact dense mode of a fully convolutional network, windows of 127 at stride 32."""

    def setup(self) -> None:
        requires("torch")

    def track_times_faster_than_windows(self) -> float:
        seconds, windowed = dense.dense_ratio(min(2048, dense.side()))
        return windowed / seconds

    track_times_faster_than_windows.unit = "times"
