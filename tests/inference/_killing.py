"""Work that `test_kill` starts in processes of its own, to be killed.

A moment of a run is an event, not a time: a call of the model, or a file of the result that
is opened for writing or put in place. A process ends itself at its n-th moment, whatever the
speed of the machine. A module of its own so that a fork server can load it once, with
everything that it imports.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np

from daskdmed import heatmap
from daskdmed.store.results import donemap


class Moments:
    """Counts the moments of this process, and ends it at one of them.

    Parameters
    ----------
    folder : str
        The files that count are below it.
    last : int
        The moment at which the process is killed; 0: it is not.
    """

    def __init__(self, folder: str, last: int = 0) -> None:
        self.folder, self.last = folder, last
        self._numbers = itertools.count(1)
        self.seen = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments) -> None:
        if event == "os.rename" or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            path = arguments[0]
            if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder):
                self.tick()

    def tick(self) -> None:
        self.seen = next(self._numbers)
        if self.seen == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class Mean:
    """Mean of each window; the same model to a store whatever happens at a call.

    Parameters
    ----------
    at_call : callable, optional
        Called first.
    """

    def __init__(self, at_call=None) -> None:
        self.at_call = at_call

    def __dask_tokenize__(self) -> str:
        return "mean"

    def __call__(self, windows):
        if self.at_call is not None:
            self.at_call()
        return windows.mean(axis=(1, 2), dtype=np.float32)


class Held:
    """Waits at one call, over all processes, until a file is there.

    Parameters
    ----------
    folder : path
        ``calls`` there grows by a byte with each call; ``held`` says that one waits, until
        ``go`` is there.
    number : int
        The call that waits.
    """

    def __init__(self, folder, number: int) -> None:
        self.folder, self.number = Path(folder), number

    def __call__(self) -> None:
        calls = os.open(self.folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(calls, b".")
        enough = os.fstat(calls).st_size >= self.number
        os.close(calls)
        if enough and first(self.folder / "held"):
            while not (self.folder / "go").exists():
                time.sleep(0.01)


class KillsWorker:
    """Kills the process that makes one call, over all processes, once."""

    def __init__(self, folder, number: int) -> None:
        self.folder, self.number, self.calls = Path(folder), number, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls >= self.number and first(self.folder / "killed"):
            os.kill(os.getpid(), signal.SIGKILL)


def first(path: Path) -> bool:
    """Whether the caller is the first to ask, of all processes."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def image():
    """160 x 320 pixels: 50 blocks."""
    return da.from_array(np.arange(160 * 320).reshape(160, 320), chunks=64, name="numbers")


def compute(out: str, at_call=None, **keywords) -> None:
    """Make the heatmap of `image`."""
    # every mark reaches the disk, so that each run has as many moments as another
    donemap._FLUSH_EVERY = 0.0
    with dask.config.set(num_workers=2):
        heatmap(
            image(), Mean(at_call), kernel_size=16, block_windows=2, batch_size=2, out=out,
            **keywords,
        )  # fmt: skip


def killed_at(out: str, last: int, **keywords) -> None:
    """The same, until moment `last`; when it is 0, ``<out>.moments`` says how many there are."""
    moments = Moments(os.path.dirname(out), last)
    compute(out, moments.tick, **keywords)
    if not last:
        Path(f"{out}.moments").write_text(str(moments.seen))


def compute_on(address: str, out: str, at_call) -> None:
    """The same as a client of a cluster."""
    from distributed import Client

    with Client(address) as client:
        compute(out, at_call, client=client, resume=True)


def compute_with_cluster(out: str, folder: str, number: int) -> None:
    """The same, with scheduler, workers and client in this process group, held at a call."""
    from distributed import Client, LocalCluster

    os.setsid()
    with (
        LocalCluster(1, threads_per_worker=2, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        compute(out, Held(folder, number), client=client)
