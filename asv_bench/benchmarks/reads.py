"""Reading in seconds of CPU: patches, Zarr, windows, tissue only, opening many slides."""

from __future__ import annotations

import inputs
import reads

from benchmarks import Once, once_a_run, requires

# each for all figures of it
opening = once_a_run(reads.opening)
tissue_only = once_a_run(reads.tissue_only)
windows = once_a_run(reads.windows)
zarr_block = once_a_run(reads.zarr_block)


class Patches(Once):
    """Single patches of 224 at random places, against cuCIM and decoding their tiles."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        self.path = inputs.slide(kind)

    def track_ratio_to_raw_decode(self, kind: str) -> float:
        found = reads.patches(self.path, rounds=inputs.rounds(3))
        return found["ours"] / found["raw"]

    track_ratio_to_raw_decode.unit = "ratio"


class PatchesAgainstCuCim(Patches):
    """Patches per second of CPU, in units of cuCIM's."""

    def setup(self, kind: str) -> None:
        requires("cucim")
        super().setup(kind)

    def track_ratio_to_cucim(self, kind: str) -> float:
        found = reads.patches(self.path, rounds=inputs.rounds(3), cucim=True)
        return found["cucim"] / found["ours"]

    track_ratio_to_cucim.unit = "ratio"


class FewDraws(Once):
    """Random patches of which each big chunk gives few: microseconds of CPU of each."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        self.paths = inputs.slides(kind)

    def track_cpu(self, kind: str) -> float:
        return 1e6 * reads.few_draws(self.paths, inputs.rounds(3))["ours"][0]

    track_cpu.unit = "us"


class FewDrawsAgainstCuCim(FewDraws):
    """Of cuCIM's batched reads, in units of ours."""

    def setup(self, kind: str) -> None:
        requires("cucim")
        super().setup(kind)

    def track_ratio_to_cucim(self, kind: str) -> float:
        found = reads.few_draws(self.paths, inputs.rounds(3), cucim=True)
        return found["cucim"][0] / found["ours"][0]

    track_ratio_to_cucim.unit = "ratio"


class ZarrBlock(Once):
    """A block of what `to_ome_zarr` writes."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        reads.zarr_copy(kind)

    def track_megapixels(self, kind: str) -> float:
        return zarr_block(kind, inputs.rounds(4))[0] / 1e6

    def track_ratio_to_limit(self, kind: str) -> float:
        return zarr_block(kind, inputs.rounds(4))[1]

    track_megapixels.unit = "Mpix/CPU-s"
    track_ratio_to_limit.unit = "ratio"


class Windows(Once):
    """All windows of 224, against decoding every tile once."""

    params = [["mixed", "dense"], [224, 112], ["heatmap", "loader"]]
    param_names = ["slide", "stride", "by"]

    def setup(self, kind: str, stride: int, by: str) -> None:
        requires("torch")
        self.path = inputs.slide(kind)

    def track_ratio_to_raw_decode(self, kind: str, stride: int, by: str) -> float:
        return windows(self.path, stride, inputs.rounds(2))[by]

    track_ratio_to_raw_decode.unit = "ratio"


class TissueOnly(Once):
    """Tiles decoded where a fifth of the slide is tissue."""

    params = ["heatmap", "loader"]
    param_names = ["by"]

    def setup(self, by: str) -> None:
        requires("torch")
        self.path = inputs.slide("dense")

    def track_decodes_per_tile_with_tissue(self, by: str) -> float:
        return tissue_only(self.path)[by]

    track_decodes_per_tile_with_tissue.unit = "decodes"


class Opening(Once):
    """Five hundred slides."""

    def setup(self) -> None:
        requires("psutil")

    def track_seconds(self) -> float:
        return opening()[0]

    def track_mebibytes_per_slide(self) -> float:
        return opening()[1]

    track_seconds.unit = "CPU-s"
    track_mebibytes_per_slide.unit = "MiB"
