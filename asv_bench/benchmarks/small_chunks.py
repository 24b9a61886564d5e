"""Random small chunks through `LightDL`."""

from __future__ import annotations

from contextlib import ExitStack

import inputs
import scenarios

from benchmarks import Once, once_a_run, requires

#: (big chunk in pixels, small chunks drawn from each)
ROTATIONS = ["4096/16", "4096/32", "4096/128", "4096/512", "4096/2048", "1024/32"]


@once_a_run
def measure(kind: str, name: str) -> scenarios.SmallChunks:
    """A rotation on slides of a kind, for all figures of it."""
    bigchunk, draws = map(int, name.split("/"))
    return scenarios.small_chunks(
        inputs.slides(kind), seconds=inputs.seconds(), bigchunk=bigchunk, draws=draws
    )


class SmallChunks(Once):
    """In-process."""

    params = [["mixed", "dense"], ROTATIONS]
    param_names = ["slide", "bigchunk/draws"]

    def setup(self, kind: str, name: str) -> None:
        requires("torch")
        inputs.slides(kind)

    def track_patches(self, kind: str, name: str) -> float:
        return measure(kind, name).rate

    def track_ratio_to_gather(self, kind: str, name: str) -> float:
        return measure(kind, name).to_gather

    def track_ratio_to_cost_model(self, kind: str, name: str) -> float:
        return measure(kind, name).to_model

    def track_tiles_per_patch(self, kind: str, name: str) -> float:
        return measure(kind, name).tiles_per_patch

    track_patches.unit = "patches/s"
    track_tiles_per_patch.unit = "tiles"
    track_ratio_to_gather.unit = "ratio"
    track_ratio_to_cost_model.unit = "ratio"


class SmallChunksTcp(Once):
    """Two workers behind TCP, in this process: asv cannot start processes of its own."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        requires("torch")
        self.paths = inputs.slides(kind)
        self._stack = ExitStack()
        self.client = self._stack.enter_context(scenarios.local_cluster(processes=False))

    def teardown(self, kind: str) -> None:
        self._stack.close()

    def track_patches(self, kind: str) -> float:
        return scenarios.small_chunks(self.paths, seconds=inputs.seconds(), client=self.client).rate

    track_patches.unit = "patches/s"


class Idle(Once):
    """A loader that nobody asks."""

    def setup(self) -> None:
        requires("torch")
        self.paths = inputs.slides("mixed")

    def track_cores(self) -> float:
        return scenarios.idle_cpu(self.paths, min(3.0, inputs.seconds()))

    track_cores.unit = "cores"
