"""A whole slide to OME-Zarr, beside decoding and compressing every tile and nothing else."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import imagecodecs
import inputs
import numpy as np
from limits import THREADS, RawTiles, fast_scratch

import daskdmed
from benchmarks import Once, once_a_run

#: pixels a side at most: a lossless copy of a slide is ten times as large as its JPEG
_LARGEST = 12_800
_ZSTD_LEVEL = 3


@once_a_run
def measure(kind: str) -> tuple[float, float]:
    """Pixels per second, and seconds in units of those of what bounds it."""
    slide = daskdmed.open_slide(_slide(kind))
    width, height = slide.dimensions
    with (
        tempfile.TemporaryDirectory(dir=inputs.folder()) as folder,
        dask.config.set(num_workers=THREADS),
    ):
        began = time.perf_counter()
        slide.to_ome_zarr(Path(folder) / "a.zarr", pyramid="none")
        seconds = time.perf_counter() - began
    return width * height / seconds, seconds / _limit(_slide(kind))


def _slide(kind: str) -> Path:
    return inputs.slide(kind, min(inputs.side(), _LARGEST))


class Convert(Once):
    """Level 0 only, sharded, Zstandard, to a folder."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        _slide(kind)

    def track_megapixels(self, kind: str) -> float:
        return measure(kind)[0] / 1e6

    def track_ratio_to_limit(self, kind: str) -> float:
        """Time over that of decoding and compressing the same tiles in memory."""
        return measure(kind)[1]

    track_megapixels.unit = "Mpix/s"
    track_ratio_to_limit.unit = "ratio"


def _limit(path: Path) -> float:
    """Seconds that two threads take to decode all tiles and compress each, planes apart."""
    with RawTiles(path) as tiles, open(path, "rb", buffering=0) as file:
        data = []
        for offset, count in zip(tiles.offsets.tolist(), tiles.counts.tolist(), strict=True):
            file.seek(offset)
            data.append(file.read(count))

        def work(part: list[bytes]) -> None:
            scratch = fast_scratch((*tiles.tile, 3))
            for encoded in part:
                imagecodecs.jpeg8_decode(
                    encoded, tables=tiles.tables, colorspace="YCBCR", outcolorspace="RGB",
                    out=scratch,
                )  # fmt: skip
                planes = np.ascontiguousarray(scratch.transpose(2, 0, 1))
                imagecodecs.zstd_encode(planes, level=_ZSTD_LEVEL)

        parts = [data[i :: 8 * THREADS] for i in range(8 * THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            began = time.perf_counter()
            list(pool.map(work, parts))
            return time.perf_counter() - began
