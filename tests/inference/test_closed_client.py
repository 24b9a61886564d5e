"""A client that closes in the middle of a run: an error that says so, and what is done stays."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import events, heatmap, predict
from daskdmed.errors import DaskdmedError

IMAGE = np.random.default_rng(0).integers(0, 255, (256, 256), dtype=np.uint8)


#: blocks are held back until the client is closed, but for the first few
closed, calls = threading.Event(), itertools.count()


def hold():
    if next(calls) > 20:
        closed.wait()


class Held:
    """A model whose name does not depend on what was called before."""

    def __init__(self, function):
        self.function = function

    def __dask_tokenize__(self):
        return "Held", self.function.__name__

    def __call__(self, windows):
        hold()
        return self.function(windows)


def mean(windows):
    return windows.mean(axis=(1, 2), dtype=np.float32)


def same(windows):
    return windows.astype(np.float32)


RUNS = {
    "heatmap": lambda **k: heatmap(IMAGE, Held(mean), kernel_size=16, block_windows=2, **k),
    "predict": lambda **k: predict(IMAGE, Held(same), kernel_size=32, chunks=32, **k),
}


@pytest.mark.parametrize("kind", RUNS)
def test_what_is_done_stays(tmp_path, monkeypatch, kind):
    run = RUNS[kind]
    closed.set()
    expected = run(out=tmp_path / "whole.zarr").compute()
    closed.clear()
    monkeypatch.setattr(f"{__name__}.calls", itertools.count())
    with LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        client = Client(cluster, set_as_default=False)
        done = []

        def listen(event):
            if isinstance(event, events.BlockDone):
                done.append(event.index)
                if len(done) == 1:
                    client.close()
                    closed.set()

        stop = events.subscribe(listen)
        try:
            with pytest.raises((DaskdmedError, RuntimeError)) as caught:
                run(out=tmp_path / "a.zarr", client=client)
        finally:
            stop()
            client.close()
    assert "resume=True" in f"{caught.value} {getattr(caught.value, '__notes__', '')}"
    assert done
    found = run(out=tmp_path / "a.zarr", resume=True)
    np.testing.assert_array_equal(found.compute(), expected)
