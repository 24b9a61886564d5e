"""A whole slide as OME-Zarr: sharded, pixel for pixel the same, resumed when it was killed.

python examples/convert_slide.py [SLIDE]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import zarr

import daskdmed
from daskdmed import samples

OUTPUT = Path("output/convert_slide")


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT / "slide.svs"
    if not path.exists():
        samples.make_slide(path, 2048 if os.environ.get("DASKDMED_QUICK") else 6144)
    slide = daskdmed.open_slide(path)
    print("from", slide)

    # resume=True goes on where an interrupted call with the same arguments stopped; there is
    # nothing at the path until all of it is done
    converted = slide.to_ome_zarr(OUTPUT / "slide.ome.zarr", resume=True, progress=True)
    print("to  ", converted)
    array = zarr.open_group(OUTPUT / "slide.ome.zarr", mode="r")["0"]
    print(f"objects of {array.shards}, decoded in {array.chunks}, axes c, y, x")

    size = (500, 400)
    same = [
        np.array_equal(
            slide.read_region((300, 200), level, size),
            converted.read_region((300, 200), level, size),
        )
        for level in range(slide.level_count)
    ]
    print(f"the same pixels on {len(same)} levels: {all(same)}")

    # at another resolution, for Zarr v2 readers, every level built anew
    coarse = slide.to_ome_zarr(OUTPUT / "2um.ome.zarr", mpp=2.0, version="0.4", overwrite=True)
    print("2 um", coarse)


if __name__ == "__main__":
    main()
