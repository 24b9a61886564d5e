"""Every window of a whole slide, through `heatmap` with a trivial model."""

from __future__ import annotations

from functools import cache

import inputs
import scenarios

from benchmarks import Once, requires

#: kernel/stride
GEOMETRIES = ["224/224", "224/112", "300/300"]


# once in a process, for all figures of it
windows = cache(scenarios.sliding_window)
network = cache(scenarios.network_heatmap)


class SlidingWindow(Once):
    """Against decoding every tile once with two threads."""

    params = [["mixed", "dense"], GEOMETRIES]
    param_names = ["slide", "kernel/stride"]

    def setup(self, kind: str, geometry: str) -> None:
        self.path = inputs.slide(kind)
        self.kernel, self.stride = map(int, geometry.split("/"))

    def _measure(self) -> scenarios.SlidingWindow:
        return windows(self.path, kernel=self.kernel, stride=self.stride)

    def track_seconds(self, kind: str, geometry: str) -> float:
        return self._measure().seconds

    def track_ratio_to_raw_decode(self, kind: str, geometry: str) -> float:
        return self._measure().to_limit

    def track_decodes_per_tile(self, kind: str, geometry: str) -> float:
        return self._measure().decodes_per_tile

    track_seconds.unit = "s"
    track_ratio_to_raw_decode.unit = "ratio"
    track_decodes_per_tile.unit = "decodes"


class Network(Once):
    """A CNN on the CPU, against the bare network on windows in memory."""

    def setup(self) -> None:
        requires("torch")
        self.path = inputs.slide("mixed", min(inputs.side(), 12_800))

    def track_seconds(self) -> float:
        return network(self.path).seconds

    def track_ratio_to_network_on_all_cores(self) -> float:
        return network(self.path).to_all_threads

    def track_ratio_to_network_one_core_each(self) -> float:
        return network(self.path).to_one_thread_each

    track_seconds.unit = "s"
    track_ratio_to_network_on_all_cores.unit = "ratio"
    track_ratio_to_network_one_core_each.unit = "ratio"
