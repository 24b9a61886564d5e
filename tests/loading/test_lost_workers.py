"""Clusters that lose every worker, and get others: work goes on, the same as undisturbed."""

from __future__ import annotations

import logging

import dask
import numpy as np
import pytest

from daskdmed import LightDL, SlidingWindowDL, events, heatmap, predict
from daskdmed.errors import LoaderError
from daskdmed.persistence import cluster as clusters
from tests.loading.clusters import assert_nothing_is_left, scale, tcp_cluster, tied_to_the_gone
from tests.loading.conftest import SMALL, assert_same_batches, collect, coordinate_dataset
from tests.waiting import until

BATCHES = 20
LOADERS = {
    "light": lambda client: LightDL(coordinate_dataset(2), **SMALL, seed=3, client=client),
    "sliding": lambda client: SlidingWindowDL(
        coordinate_dataset(2),
        kernel_size=64,
        batch_size=16,
        block_windows=3,
        resident="300 kB",
        client=client,
    ),
}


@pytest.fixture(scope="module")
def connection():
    with tcp_cluster(1, threads=2) as connection:
        yield connection


@pytest.fixture
def cluster(connection):
    scale(connection[0], 1)
    return connection[0]


@pytest.fixture
def client(connection, cluster):
    return connection[1]


@pytest.fixture(scope="module")
def expected():
    found = {}
    for name, make in LOADERS.items():
        with make(None) as loader:
            found[name] = collect(loader, BATCHES)
    return found


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_go_on_with_workers_of_other_addresses(cluster, client, expected, kind):
    with LOADERS[kind](client) as loader:
        batches = collect(loader, 3)
        for _ in range(2):
            scale(cluster, 0)
            scale(cluster, 1)
            batches += collect(loader, 6)
        assert not tied_to_the_gone(cluster)
        assert_same_batches(batches + collect(loader, BATCHES - len(batches)), expected[kind])
    assert_nothing_is_left(cluster)


@pytest.mark.parametrize("kind", LOADERS)
def test_without_workers_it_says_so_and_goes_on_when_one_comes(
    cluster, client, expected, kind, caplog
):
    with LOADERS[kind](client) as loader, caplog.at_level(logging.WARNING, "daskdmed"):
        batches = collect(loader, 2)
        scale(cluster, 0)
        said = ""
        while "has no workers" not in said:
            try:
                x, patients, chunks = loader.get(timeout=0.1)
            except TimeoutError as error:
                said = str(error)
            else:
                batches.append((x.numpy().copy(), [p.id for p in patients], chunks.origins.copy()))
        assert said.startswith("no batch within 0.1 s (")
        with dask.config.set({"daskdmed.report-after": 0}), pytest.raises(TimeoutError):
            loader.get(timeout=0.1)
        scale(cluster, 1)
        assert_same_batches(batches + collect(loader, 4), expected[kind][: len(batches) + 4])
    lines = [
        r.message for r in caplog.records if r.message.startswith(f"no batch of {loader.name}")
    ]
    assert len(lines) == 1
    assert "has no workers; it goes on when one comes" in lines[0]
    assert "in memory or being read" in lines[0]


@pytest.mark.parametrize("kind", LOADERS)
def test_closing_without_workers_leaves_nothing_on_the_scheduler(cluster, client, kind):
    with LOADERS[kind](client) as loader:
        collect(loader, 2)
        scale(cluster, 0)
        with pytest.raises(TimeoutError):
            while True:
                loader.get(timeout=0.05)
    assert_nothing_is_left(cluster)


def test_after_long_without_workers_it_is_an_error(cluster, client, monkeypatch):
    monkeypatch.setattr(clusters, "WORKERLESS_LIMIT", 0.0)
    monkeypatch.setattr("daskdmed.persistence.arrivals.LOOK_EVERY", 0.01)
    monkeypatch.setattr(clusters, "LOOK_EVERY", 0.01)
    with LOADERS["light"](client) as loader:
        scale(cluster, 0)
        with pytest.raises(LoaderError, match=r"has had no workers for .* state_dict\(\)"):
            collect(loader, 1000)


def test_a_worker_that_retires_and_one_that_joins_change_nothing(cluster, client, expected):
    with LOADERS["light"](client) as loader:
        batches = collect(loader, 3)
        scale(cluster, 3)
        batches += collect(loader, 4)
        retired = min(cluster.scheduler.workers)
        client.retire_workers([retired])
        until(lambda: retired not in cluster.scheduler.workers)
        batches += collect(loader, BATCHES - len(batches))
        assert_same_batches(batches, expected["light"])
        assert not tied_to_the_gone(cluster)
    assert_nothing_is_left(cluster)


def test_tasks_of_others_keep_their_restrictions(cluster, client):
    """Only what a loader has sent is untied; strict restrictions are the user's wish."""
    with LOADERS["light"](client) as loader:
        collect(loader, 1)
        gone = next(iter(cluster.scheduler.workers))
        future = client.submit(np.arange, 3, workers=[gone], key="of-the-user", pure=False)
        future.result()
        scale(cluster, 0)
        scale(cluster, 1)
        collect(loader, 3)
        assert cluster.scheduler.tasks["of-the-user"].worker_restrictions == {gone}
        future.release()
    assert_nothing_is_left(cluster)


def mean(windows):
    return windows.mean((1, 2, 3), dtype="f4")


def same(windows):
    return windows[..., 0].astype("f4")


RUNS = {
    "heatmap": lambda image, **how: heatmap(image, mean, kernel_size=16, block_windows=1, **how),
    "predict": lambda image, **how: predict(image, same, kernel_size=8, stride=8, chunks=16, **how),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_goes_on_when_all_workers_were_lost_in_its_middle(cluster, client, kind, tmp_path):
    image = np.random.default_rng(1).integers(0, 255, (224, 208, 3), "u1")
    total, done, lost = [], [], []

    def look(event):
        if isinstance(event, events.RunStarted):
            total.append(event.total)
        elif isinstance(event, events.BlockDone):
            done.append(event.index)
            # others are under way, or are done and their results are lost before they are told
            if len(done) in (total[0] // 3, 2 * total[0] // 3):
                lost.extend(cluster.scheduler.workers)
                scale(cluster, 0)
                scale(cluster, 1)

    unsubscribe = events.subscribe(look)
    try:
        found = RUNS[kind](image, client=client, out=tmp_path / "out.zarr").compute()
    finally:
        unsubscribe()
    assert len(set(lost) - set(cluster.scheduler.workers)) == 2
    assert total == [len(done)] == [len(set(done))]
    assert np.array_equal(found, RUNS[kind](image).compute())
    assert_nothing_is_left(cluster)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_restart_of_the_cluster_is_an_error_at_once(kind):
    """Also when no worker comes back."""
    with tcp_cluster(1) as (_, client), LOADERS[kind](client) as loader:
        next(loader)
        client.restart(wait_for_workers=False)
        with pytest.raises(LoaderError, match=r"(?s)it was restarted .*state_dict\(\)"):
            collect(loader, 1000)


def test_a_restart_between_two_reads_is_an_error_too():
    """No task is under way then, which could be cancelled."""
    with tcp_cluster(1) as (_, client):
        workers = clusters.Workers(client)
        workers.check_alive()
        client.restart(wait_for_workers=False)
        until(lambda: client.generation == 1)  # the client hears of it as of any task
        with pytest.raises(LoaderError, match=r"(?s)it was restarted .*state_dict\(\)"):
            workers.check_alive()
