"""The same loader on a cluster: crops are made where the big chunks live.

`LocalCluster` stands for any Dask cluster here; give the address of a scheduler to use
yours. Its workers must see the slides under the same path.

    python examples/cluster.py [tcp://SCHEDULER:8786]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import daskdmed
from daskdmed import Dataset, LightDL, samples

OUTPUT = Path("output/cluster")


def brightness(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A model may be any function: (n, y, x, c) -> (n,)."""
    return windows[:, ::16, ::16].mean(axis=(1, 2, 3))


def run(client: Client) -> None:
    quick = bool(os.environ.get("DASKDMED_QUICK"))
    folder = (OUTPUT / "slides").absolute()
    samples.make_cohort(folder, n=4, size=2048 if quick else 8192)
    dataset = Dataset.from_folder(folder, labels=folder / "labels.csv")
    steps = 10 if quick else 200
    with LightDL(
        dataset,
        bigchunk_size=2048,
        smallchunks_per_bigchunk=256,
        resident="256 MiB",
        epoch_length=steps,
        client=client,
    ) as loader:
        start = time.perf_counter()
        total = sum(len(x) for x, _, _ in loader)
        print(f"{total} patches, {total / (time.perf_counter() - start):,.0f} per second")
        print(loader.stats())
    # the heatmap is computed by the same workers
    heat = daskdmed.heatmap(
        dataset[0].record(), brightness, kernel_size=224, client=client,
        out=(OUTPUT / "brightness.ome.zarr").absolute(), overwrite=True,
    )  # fmt: skip
    print("heatmap", heat)


def main() -> None:
    if len(sys.argv) > 1:
        with Client(sys.argv[1]) as client:
            run(client)
        return
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        run(client)


if __name__ == "__main__":
    main()
