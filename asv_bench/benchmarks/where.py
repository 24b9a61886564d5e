"""What it costs to say where small chunks come from: the same rotation, with and without."""

from __future__ import annotations

import inputs
import scenarios

from benchmarks import Once, requires

WAYS = ["tissue", "quotas", "target", "explorer"]


class Where(Once):
    """Patches per second beside those of the plain loader on the same slides, interleaved."""

    params = WAYS
    param_names = ["what"]

    def setup(self, way: str) -> None:
        requires("torch")
        if way == "tissue":
            requires("skimage")
        # with a mask only tissue is read, which takes longer to decode than glass: compared
        # where all is tissue, so that the ratio is what masking itself costs
        self.paths = inputs.slides("dense" if way == "tissue" else "mixed")

    def track_ratio_to_plain(self, way: str) -> float:
        return scenarios.restricted(self.paths, way, seconds=inputs.seconds(), rounds=1)

    track_ratio_to_plain.unit = "ratio"


class Plan(Once):
    """Planning alone, no pixels."""

    params = ["rotation", "quotas"]
    param_names = ["plan"]

    def setup(self, plan: str) -> None:
        pass

    def track_draws(self, plan: str) -> float:
        return scenarios.planning(plan)

    track_draws.unit = "draws/s"
