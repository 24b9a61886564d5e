"""Whoever waits long for a batch is told what for, once, in the log and by `TimeoutError`."""

from __future__ import annotations

import logging
import threading

import dask
import numpy as np
import pytest

from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL
from tests.loading.conftest import SMALL, coordinate_array

LOADERS = {
    "light": lambda data: LightDL(data, **SMALL),
    "sliding": lambda data: SlidingWindowDL(data, kernel_size=64, batch_size=4),
}


def slow_dataset(gate):
    def read(block):
        gate.wait()
        return block

    array = coordinate_array(512, 512).map_blocks(read, dtype="u1", meta=np.empty((0, 0, 0), "u1"))
    return Dataset("slow", [Patient("p0", {"wsi": Record(array=array)})])


@pytest.mark.parametrize("kind", LOADERS)
def test_a_slow_read_is_named(kind, caplog):
    gate = threading.Event()
    with LOADERS[kind](slow_dataset(gate)) as loader:
        said = ""
        while "patient 'p0', record 'wsi'" not in said:  # else the thread is still on its way there
            with pytest.raises(TimeoutError) as error:
                loader.get(timeout=0.05)
            said = str(error.value)
        with dask.config.set({"daskdmed.report-after": "0 s"}):
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    loader.get(timeout=0.05)
        gate.set()
        assert len(next(loader)[0]) == loader.batch_size
    lines = [r for r in caplog.records if r.name == "daskdmed.loading"]
    assert len(lines) == 1, "once, however often it was asked for"
    assert lines[0].levelno == logging.WARNING
    assert lines[0].message.startswith(f"no batch of {loader.name} for ")
    assert "patient 'p0', record 'wsi'" in lines[0].message


@pytest.mark.parametrize("kind", LOADERS)
def test_a_paused_loader_is_named(kind, caplog):
    gate = threading.Event()
    gate.set()
    with LOADERS[kind](slow_dataset(gate)) as loader:
        next(loader)
        loader.pause()
        with (
            dask.config.set({"daskdmed.report-after": 0}),
            pytest.raises(TimeoutError, match=r"the loader is paused, call resume\(\)"),
        ):
            while True:
                loader.get(timeout=0.05)
        loader.resume()
        assert len(next(loader)[0]) == loader.batch_size
    assert any("the loader is paused, call resume()" in r.message for r in caplog.records)
