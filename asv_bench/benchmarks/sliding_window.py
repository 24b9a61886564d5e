"""Every window of a whole slide, through `heatmap` with a trivial model."""

from __future__ import annotations

import inputs
import scenarios

from benchmarks import Once, once_a_run, requires

#: kernel/stride
GEOMETRIES = ["224/224", "224/112", "300/300"]


@once_a_run
def windows(kind: str, geometry: str) -> scenarios.SlidingWindow:
    """For all figures of it."""
    kernel, stride = map(int, geometry.split("/"))
    path, rounds = inputs.slide(kind), inputs.rounds(3)
    return scenarios.sliding_window(path, kernel=kernel, stride=stride, rounds=rounds)


@once_a_run
def network() -> scenarios.NetworkHeatmap:
    """For all figures of it."""
    path = inputs.slide("mixed", min(inputs.side(), 12_800))
    return scenarios.network_heatmap(path, rounds=inputs.rounds(3))


class SlidingWindow(Once):
    """Against decoding every tile once with two threads."""

    params = [["mixed", "dense"], GEOMETRIES]
    param_names = ["slide", "kernel/stride"]

    def setup(self, kind: str, geometry: str) -> None:
        inputs.slide(kind)

    def track_seconds(self, kind: str, geometry: str) -> float:
        return windows(kind, geometry).seconds

    def track_ratio_to_raw_decode(self, kind: str, geometry: str) -> float:
        return windows(kind, geometry).to_limit

    def track_decodes_per_tile(self, kind: str, geometry: str) -> float:
        return windows(kind, geometry).decodes_per_tile

    track_seconds.unit = "s"
    track_ratio_to_raw_decode.unit = "ratio"
    track_decodes_per_tile.unit = "decodes"


class Network(Once):
    """A CNN on the CPU, against the bare network on windows in memory."""

    def setup(self) -> None:
        requires("torch")

    def track_seconds(self) -> float:
        return network().seconds

    def track_ratio_to_network_on_all_cores(self) -> float:
        return network().to_all_threads

    def track_ratio_to_network_one_core_each(self) -> float:
        return network().to_one_thread_each

    track_seconds.unit = "s"
    track_ratio_to_network_on_all_cores.unit = "ratio"
    track_ratio_to_network_one_core_each.unit = "ratio"
