"""Every window of a whole slide as torch batches, and what becomes rows on disk."""

from __future__ import annotations

import shutil
import time

import dask
import inputs
import numpy as np
from limits import RawTiles
from scenarios import THREADS, median_of

from benchmarks import Once, once_a_run, requires
from daskdmed import SlidingWindowDL
from daskdmed.images.tiff.decode import count_tiles
from daskdmed.tables import ProcessedPiece, StreamWriter

#: kernel/stride
GEOMETRIES = ["224/224", "224/112", "300/300"]


@once_a_run
def measure(kind: str, geometry: str) -> tuple[float, ...]:
    """Windows per second, the ratio to the limit, decodes per tile."""
    path = inputs.slide(kind)
    kernel, stride = map(int, geometry.split("/"))

    def once(_: int) -> tuple[float, ...]:
        with RawTiles(path) as tiles:
            everything = np.arange(len(tiles.offsets))
            decoding = tiles.decode_seconds(everything)
        with (
            count_tiles() as counted,
            dask.config.set(num_workers=THREADS),
            SlidingWindowDL(path, kernel_size=kernel, stride=stride) as loader,
        ):
            began = time.perf_counter()
            for x, _, _ in loader:
                x[0, 0, 0, 0].item()
            seconds = time.perf_counter() - began
            windows = loader.windows
        limit = decoding + windows * _copy_seconds(kernel)
        return windows / seconds, seconds / limit, counted.tiles / len(everything)

    return median_of(inputs.rounds(3), once)


def _copy_seconds(k: int) -> float:
    """Of one window, out of memory that is not in the cache."""
    source = np.full((4096, 4096, 3), 1, np.uint8)  # zeros would be one page
    places = range(0, 4096 - k, k)
    out = np.empty((64, k, k, 3), np.uint8)
    began = time.perf_counter()
    for n, (y, x) in enumerate((y, x) for y in places for x in places):
        out[n % 64] = source[y : y + k, x : x + k]
    return (time.perf_counter() - began) / len(places) ** 2


class SlidingLoader(Once):
    """Against decoding every tile once with two threads, and copying every window once.

    Both are needed and share two cores: the limit is their sum.
    """

    params = [["mixed", "dense"], GEOMETRIES]
    param_names = ["slide", "kernel/stride"]

    def setup(self, kind: str, geometry: str) -> None:
        requires("torch")
        inputs.slide(kind)

    def track_windows_per_second(self, kind: str, geometry: str) -> float:
        return measure(kind, geometry)[0]

    def track_ratio_to_limit(self, kind: str, geometry: str) -> float:
        return measure(kind, geometry)[1]

    def track_decodes_per_tile(self, kind: str, geometry: str) -> float:
        return measure(kind, geometry)[2]

    track_windows_per_second.unit = "windows/s"
    track_ratio_to_limit.unit = "ratio"
    track_decodes_per_tile.unit = "decodes"


class Rows(Once):
    """Rows of 8 numbers per second through a `StreamWriter`."""

    params = [["parquet", "csv"]]
    param_names = ["format"]

    def setup(self, kind: str) -> None:
        requires("torch")
        requires("pyarrow")
        image = np.zeros((1024, 1024, 3), np.uint8)
        with SlidingWindowDL(image, kernel_size=16, batch_size=64) as loader:
            _, _, windows = next(loader)
        self.pieces = ProcessedPiece.of_batch(windows, np.random.default_rng(0).random((64, 8)))
        self.folder = inputs.folder() / "rows"

    def track_rows_per_second(self, kind: str) -> float:
        batches = max(2, int(20 * inputs.seconds()))
        shutil.rmtree(self.folder, ignore_errors=True)
        began = time.perf_counter()
        with StreamWriter(self.folder / f"rows.{kind}") as writer:
            for _ in range(batches):
                writer.write(self.pieces)
        rate = batches * 64 / (time.perf_counter() - began)
        shutil.rmtree(self.folder)
        return rate

    track_rows_per_second.unit = "rows/s"
