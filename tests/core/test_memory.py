"""One account of memory for everybody in a process, and on a cluster."""

from __future__ import annotations

import gc
import threading

import dask
import numpy as np
import pytest

from daskdmed import LightDL, SlidingWindowDL, heatmap, predict
from daskdmed.core import memory
from daskdmed.errors import BudgetError, LoaderError
from tests.loading.clusters import tcp_cluster
from tests.loading.conftest import SMALL, coordinate_dataset
from tests.waiting import until

MIB = 1 << 20


class Owner:
    pass


@pytest.fixture(autouse=True)
def thirty_two(monkeypatch):
    """A process that may use 32 MiB."""
    monkeypatch.setattr(memory, "machine_memory", lambda: 32 * MIB)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    gc.collect()
    assert not memory._here


def test_more_than_half_is_refused_with_numbers():
    memory.check_memory("resident=2 MiB", 2 * MIB, 4 * MIB)
    memory.check_memory("resident=much", 1 << 60, None)
    memory.check_memory("resident=much", 1 << 60, 0)
    with pytest.raises(BudgetError, match=r"^x exceeds half.*4\.00 MiB.*at most 2\.00 MiB, or add"):
        memory.check_memory("x", 3 * MIB, 4 * MIB)
    with pytest.raises(
        BudgetError,
        match=r"x together with what others hold \(a 1\.00 MiB\) in each of 2 processes of this "
        r"machine \(LOCAL_WORLD_SIZE\), in all 6\.00 MiB, exceeds half.*at most 1\.00 MiB, close",
    ):
        memory.check_memory("x", 2 * MIB, 8 * MIB, {"a": MIB}, 2)


def test_processes_of_a_machine_are_multiplied(monkeypatch):
    owner = Owner()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    memory.claim(owner, "small", 4 * MIB, here=True)()
    with pytest.raises(BudgetError, match="in each of 4 processes"):
        memory.claim(owner, "large", 5 * MIB, here=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "many")
    memory.claim(owner, "large", 16 * MIB, here=True)()


def loader(resident="8 MiB", **options):
    return LightDL(coordinate_dataset(1), **{**SMALL, "resident": resident}, **options)


def test_loaders_of_a_process_are_checked_together():
    with loader() as train:
        validation = loader("9 MiB")
        with pytest.raises(
            BudgetError, match=rf"{train.name} 8\.00 MiB.*in all 17\.00 MiB.*at most 8\.00 MiB"
        ):
            validation.start()
        windows = SlidingWindowDL(coordinate_dataset(1), kernel_size=64, resident="9 MiB")
        with pytest.raises(BudgetError, match=train.name):
            windows.start()
        with loader("8 MiB") as second:
            assert len(next(second)[0]) == 16
    with validation, pytest.raises(BudgetError, match="LightDL-"):
        windows.start()
    with windows:
        next(windows)
    assert not memory._here


def test_epochs_and_a_second_start_hold_it_once():
    with loader("10 MiB") as one:
        for epoch in range(3):
            one.set_epoch(epoch)
            next(one)
        one.start()
    assert not memory._here


def test_a_loader_that_is_forgotten_or_fails_gives_its_share_back(monkeypatch):
    forgotten = loader("16 MiB").start()
    next(forgotten)
    del forgotten
    gc.collect()
    assert not memory._here
    failing = loader("16 MiB")

    def fail(*args, **kwargs):
        raise LoaderError("no engine today")

    monkeypatch.setattr("daskdmed.loading.assembly.ResidentSet", fail)
    with pytest.raises(LoaderError, match="no engine today"):
        failing.start()
    assert not memory._here


def model(windows):
    return np.ones(len(windows), "f4")


def test_a_heatmap_beside_a_loader():
    image = np.zeros((512, 512, 3), "u1")
    options = {"kernel_size": 64, "batch_size": 64}
    heatmap(image, model, **options)
    with loader("15 MiB") as one:
        next(one)
        with pytest.raises(BudgetError, match=rf"heatmap \(.* blocks at a time\).*{one.name} 15"):
            heatmap(image, model, **options)
        assert list(memory._here) == [one.name]
    held = []

    def looks(windows):
        held.append(dict(memory._here))
        return model(windows)

    with loader("2 MiB") as one:
        assert heatmap(image, looks, kernel_size=32, batch_size=1, block_windows=1).shape == (
            16,
            16,
        )
        assert any(name.startswith("heatmap-") for name in held[-1])
        assert one.name in held[-1]
    assert not memory._here


def test_a_prediction_beside_a_loader():
    image = np.zeros((1024, 1024, 3), "u1")
    held = []

    def maps(windows):
        held.append(dict(memory._here))
        return windows[..., 0].astype("f4")

    options = {"kernel_size": 64, "stride": 64, "chunks": 512, "batch_size": 4}
    with dask.config.set(num_workers=2):
        predict(image, maps, **options)
        ((name, nbytes),) = held[-1].items()
        assert name.startswith("predict-")
        # of each thread: pixels and sums of a step, and a batch
        assert nbytes == 2 * (512 * 512 * (3 + 4) + 4 * 64 * 64 * 3 * 4)
        with loader("15 MiB") as one:
            next(one)
            with pytest.raises(BudgetError, match=rf"predict \(.* for 2 blocks.*{one.name} 15"):
                predict(image, maps, **options)
    assert not memory._here


def test_clients_of_a_cluster_are_counted_together():
    from distributed import Client

    def shares(cluster):
        return vars(cluster.scheduler).get("_daskdmed_shares", {})

    with (
        # a worker in this process measures all that it holds, and would pause
        dask.config.set({"distributed.worker.memory.pause": False}),
        tcp_cluster(1, memory_limit="1 GiB") as (cluster, client),
        Client(cluster, set_as_default=False) as other,
    ):
        a, b = Owner(), Owner()
        one = memory.claim(a, "LightDL-0", 300 * MIB, client=client)
        with pytest.raises(BudgetError, match=r"LightDL-0 of Client-\S+ 300.* in all 600.* 212"):
            memory.claim(b, "LightDL-0", 300 * MIB, client=other)
        memory.claim(b, "LightDL-0", 200 * MIB, client=other)
        with pytest.raises(BudgetError, match="half of the workers' memory"):
            memory.claim(a, "LightDL-0", 320 * MIB, client=client)
        assert len(shares(cluster)) == 2, "the share from before is kept"
        one()
        assert len(shares(cluster)) == 1
        # ranks that share big chunks hold them once
        for rank, connection in enumerate((client, other)):
            memory.claim(a, f"rank-{rank}", 300 * MIB, client=connection, shared="a plan")
        with pytest.raises(BudgetError, match=r"300\.00 MiB"):
            memory.claim(a, "more", 50 * MIB, client=client)
        with pytest.raises(BudgetError, match="1.00 GiB in all"), loader("100 MiB", client=client):
            pass
        other.close()
        gone = threading.Event()
        while not gone.is_set():  # until the scheduler has heard of it
            try:
                memory.claim(a, "more", 200 * MIB, client=client)()
                gone.set()
            except BudgetError:
                continue
        del a
        gc.collect()
        assert not shares(cluster)
        forgotten = memory.claim(b, "forgotten", MIB, client=client)
        client.loop.add_callback(forgotten)  # a collection may run in any thread
        until(lambda: not shares(cluster))
