"""A slide is a Dask array: look at it, map over it, filter it, keep the result.

python examples/read_and_compute.py [SLIDE]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np

import daskdmed
from daskdmed import samples

OUTPUT = Path("output/read_and_compute")


def tissue_share(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Share of coloured pixels of one block: (y, x, c) -> (1, 1)."""
    colour = block.max(axis=2).astype(np.int16) - block.min(axis=2)
    return np.full((1, 1), (colour > 20).mean(), np.float32)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT / "slide.svs"
    if len(sys.argv) < 2:
        samples.make_slide(path, 2048 if os.environ.get("DASKDMED_QUICK") else 6144)

    slide = daskdmed.open_slide(path)
    print(slide, f"mpp {slide.mpp}, power {slide.power}, downsamples {slide.level_downsamples}")
    print("thumbnail", slide.get_thumbnail((256, 256)).shape)
    print("a region ", slide.read_region((100, 200), 0, (300, 200)).shape)

    x = slide.to_dask(chunks=1024)
    print("level 0  ", x)
    share = x.map_blocks(tissue_share, chunks=((1,) * x.numblocks[0], (1,) * x.numblocks[1]),
                         drop_axis=2, dtype=np.float32)  # fmt: skip
    with dask.config.set(scheduler="threads"):
        print("tissue per block, in percent\n", (100 * share.compute()).round().astype(int))

    # any resolution between the levels, area-correct
    coarse = slide.to_dask(mpp=2.0, chunks=512)
    print("2 um/px  ", coarse)
    # smooth across block borders, then write: one block in memory per thread
    smooth = coarse.astype(np.float32).map_overlap(blur, depth={0: 4, 1: 4}, dtype=np.float32)
    da.to_zarr(smooth.astype(np.uint8), OUTPUT / "smooth.zarr", mode="w")
    # and an array is as good a record as a file
    record = daskdmed.Record(array=da.from_zarr(OUTPUT / "smooth.zarr"), mpp=2.0)
    print("record   ", record, "view", record.view(mpp=2.0).shape)


def blur(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean over 5 x 5 pixels."""
    for axis in (0, 1):
        block = np.mean([np.roll(block, shift, axis) for shift in range(-2, 3)], axis=0)
    return block


if __name__ == "__main__":
    main()
