"""Work that `test_kill` starts in processes of its own, to be killed.

A module of its own so that a fork server can load it once, with everything that it imports.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np

from daskdmed import heatmap
from daskdmed.store.results import donemap


class Mean:
    """Mean of each window, slowly."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def __dask_tokenize__(self) -> str:
        return "mean"

    def __call__(self, windows):
        time.sleep(self.pause)
        return windows.mean(axis=(1, 2), dtype=np.float32)


def image():
    """160 x 320 pixels: 50 blocks."""
    return da.from_array(np.arange(160 * 320).reshape(160, 320), chunks=64, name="numbers")


def compute(out: str, pause: float = 0.0, started: str = "", **keywords) -> None:
    """Make the heatmap of `image`; a file `started` says when it begins."""
    # marks reach the disk within a run this short, as they do within longer ones
    donemap._FLUSH_EVERY = 0.05
    if started:
        Path(started).write_text(str(os.getpid()))
    with dask.config.set(num_workers=2):
        heatmap(
            image(), Mean(pause), kernel_size=16, block_windows=2, batch_size=2, out=out, **keywords
        )


def compute_on(address: str, out: str, pause: float, started: str) -> None:
    """The same as a client of a cluster."""
    from distributed import Client

    with Client(address) as client:
        compute(out, pause, started, client=client, resume=True)


def compute_with_cluster(out: str, pause: float, started: str) -> None:
    """The same, with scheduler, workers and client in this process group."""
    from distributed import Client, LocalCluster

    os.setsid()
    with (
        LocalCluster(1, threads_per_worker=2, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        compute(out, pause, started, client=client)
