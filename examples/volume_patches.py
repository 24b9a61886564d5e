"""Volumes, or arrays of any dimension: the same loader, a longer ``smallchunk_size``.

python examples/volume_patches.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from daskdmed import Dataset, LightDL

OUTPUT = Path("output/volume_patches")


def make_volumes(n: int) -> list[zarr.Array]:
    """Volumes (z, y, x) of noise around a bright ball, in Zarr."""
    rng = np.random.default_rng(0)
    volumes = []
    for i in range(n):
        z, y, x = np.ogrid[:96, :160, :160]
        inside = (z - 48) ** 2 + (y - 80) ** 2 + (x - 80) ** 2 < (20 + 5 * i) ** 2
        volume = zarr.create_array(
            OUTPUT / f"{i}.zarr",
            shape=inside.shape,
            chunks=(32, 80, 80),
            dtype="i2",
            overwrite=True,
        )
        volume[:] = (1000 * inside + rng.normal(0, 100, inside.shape)).astype(np.int16)
        volumes.append(volume)
    return volumes


def main() -> None:
    dataset = Dataset.from_arrays(make_volumes(4), labels=[0, 0, 1, 1])
    print(dataset)
    with LightDL(
        dataset,
        smallchunk_size=(32, 64, 64),
        bigchunk_size=(64, 128, 128),
        smallchunks_per_bigchunk=16,
        batch_size=8,
        resident="64 MiB",
        epoch_length=5,
    ) as loader:
        for x, patients, smallchunks in loader:
            labels = [p.labels["label"] for p in patients]
            print(tuple(x.shape), x.dtype, "labels", labels, "first at", smallchunks[0].location)
    # slices of a volume are chunks with one pixel along z
    with LightDL(
        dataset, smallchunk_size=(1, 96, 96), bigchunk_size=(16, 160, 160), epoch_length=1
    ) as loader:
        x, _, _ = next(iter(loader))
        print("slices", tuple(x.shape))


if __name__ == "__main__":
    main()
