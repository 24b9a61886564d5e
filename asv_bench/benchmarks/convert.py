"""A whole slide to OME-Zarr, beside decoding and compressing every tile and nothing else."""

from __future__ import annotations

import shutil
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
from benchmarks import Once

#: pixels a side at most: a lossless copy of a slide is ten times as large as its JPEG
_LARGEST = 12_800
_ZSTD_LEVEL = 3


class Convert(Once):
    """Level 0 only, sharded, Zstandard, to a folder."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        self.path = inputs.slide(kind, min(inputs.side(), _LARGEST))
        self.folder = Path(tempfile.mkdtemp(dir=inputs.folder()))

    def teardown(self, kind: str) -> None:
        shutil.rmtree(self.folder)

    def _seconds(self) -> float:
        slide = daskdmed.open_slide(self.path)
        with dask.config.set(num_workers=THREADS):
            began = time.perf_counter()
            slide.to_ome_zarr(self.folder / "a.zarr", pyramid="none", overwrite=True)
            return time.perf_counter() - began

    def track_megapixels(self, kind: str) -> float:
        width, height = daskdmed.open_slide(self.path).dimensions
        return width * height / self._seconds() / 1e6

    def track_ratio_to_limit(self, kind: str) -> float:
        """Time over that of decoding and compressing the same tiles in memory."""
        return self._seconds() / _limit(self.path)

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
