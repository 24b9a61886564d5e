"""`SlidingWindowDL` on real worker processes: exactly once, whoever dies."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

pytest.importorskip("torch")

from daskdmed import Dataset, Patient, Record, SlidingWindowDL
from daskdmed.errors import BudgetError, LoaderError
from daskdmed.samples import make_slide
from tests.waiting import until

SIZE = (900, 780)
OPTIONS = {"kernel_size": 60, "stride": 45, "batch_size": 16, "block_windows": 4}


def encode(block, block_info=None, patient=0, slow=0.0):
    """Fill a block with what its place says: y mod 251, x mod 241, patient."""
    (y0, y1), (x0, x1) = block_info[None]["array-location"][:2]
    time.sleep(slow)
    y, x = np.mgrid[y0:y1, x0:x1]
    return np.stack([y % 251, x % 241, np.full_like(y, patient)], -1).astype("u1")


def image(patient=0, slow=0.0, function=encode, size=SIZE):
    chunks = da.core.normalize_chunks((200, 200, 3), (*size, 3), dtype="u1")
    empty = da.zeros((*size, 3), chunks=chunks, dtype="u1")
    return empty.map_blocks(
        function, patient=patient, slow=slow, dtype="u1", meta=np.empty((0, 0, 0), "u1")
    )


def dataset_of(n=2, **options):
    return Dataset(
        "places",
        [Patient(f"p{i}", {"wsi": Record(array=image(i, **options))}, {"n": i}) for i in range(n)],
    )


def seen(batches):
    """(patient, index) of each window, whose pixels must say that place."""
    found = []
    for x, _, windows in batches:
        data = np.moveaxis(x.numpy(), 1, -1)
        for row, window in zip(data, windows, strict=True):
            (y, x0), k = window.origin, OPTIONS["kernel_size"]
            inside = row[: min(k, SIZE[0] - y), : min(k, SIZE[1] - x0)]
            ys, xs = np.mgrid[y : y + inside.shape[0], x0 : x0 + inside.shape[1]]
            assert (inside[..., 0] == ys % 251).all()
            assert (inside[..., 1] == xs % 241).all()
            assert (inside[..., 2] == window.patient.labels["n"]).all()
            found.append((window.patient.id, window.index))
    return found


def assert_clean(client):
    """No block stays on the workers, once the scheduler has heard that they are let go."""
    # an array that an earlier test has persisted may be part of a cycle
    until(lambda: (gc.collect(), not client.who_has())[1])


@pytest.fixture(scope="module")
def expected():
    with SlidingWindowDL(dataset_of(), **OPTIONS) as loader:
        return seen(loader)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="1 GiB", dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.cluster
@pytest.mark.parametrize("order", ["sequential", "interleaved"])
def test_the_same_windows_on_worker_processes(client, expected, order):
    with SlidingWindowDL(dataset_of(), **OPTIONS, order=order, client=client) as loader:
        found = seen(loader)
        stats = loader.stats()
    assert sorted(found) == sorted(expected)
    assert len(set(found)) == len(found)
    if order == "sequential":
        assert found == expected
    assert stats.blocks_read == stats.total_blocks
    assert_clean(client)


@pytest.mark.cluster
def test_a_tiny_budget_and_a_slow_consumer(client, expected):
    found = []
    with SlidingWindowDL(dataset_of(), **OPTIONS, resident="250 kB", client=client) as loader:
        for i, batch in enumerate(loader):
            if i % 20 == 0:
                time.sleep(0.05)
            found += seen([batch])
        assert loader.stats().peak_bytes <= 250_000
    assert found == expected


@pytest.mark.cluster
def test_slides_masks_and_ranks(client, tmp_path):
    path = make_slide(tmp_path / "a.tif", 1536, levels=1, seed=2).path
    mask = np.random.default_rng(0).random((12, 12)) < 0.3
    options = {"kernel_size": 100, "mask": mask, "block_windows": 3}
    with SlidingWindowDL(path, **options) as loader:
        whole = {w.index: x.numpy().copy() for xs, _, ws in loader for x, w in zip(xs, ws)}
    parts = []
    for rank in range(2):
        with SlidingWindowDL(path, **options, client=client, rank=rank, world_size=2) as loader:
            for xs, _, ws in loader:
                for x, w in zip(xs, ws):
                    assert np.array_equal(x.numpy(), whole[w.index])
                    parts.append(w.index)
    assert sorted(parts) == sorted(whole)


@pytest.mark.cluster
def test_a_killed_worker(expected):
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="1 GiB", dashboard_address=":0",
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
        SlidingWindowDL(
            dataset_of(slow=0.01), **OPTIONS, resident="1 MiB", client=client
        ) as loader,
    ):  # fmt: skip
        victims = list(client.run(os.getpid).values())
        found = []
        for i, batch in enumerate(loader):
            if i == 3:
                os.kill(victims.pop(), signal.SIGKILL)
            found += seen([batch])
        assert found == expected
        assert not loader.stats().failed


def deadly(block, block_info=None, patient=0, slow=0.0):
    """Kills the worker that computes one of the blocks."""
    if patient == 1 and block_info[None]["chunk-location"][:2] == (2, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(block, block_info, patient)


@pytest.mark.cluster
def test_a_block_that_kills_every_worker(expected):
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="1 GiB", dashboard_address=":0",
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        dataset = dataset_of(function=deadly)
        with SlidingWindowDL(dataset, **OPTIONS, client=client) as loader:
            with pytest.raises(LoaderError, match=r"'p1'.*'wsi'.*windows.*workers died") as error:
                seen(loader)
            assert error.value.patient == "p1"
            assert loader.stats().retries >= 2


def torn(block, block_info=None, patient=0, slow=0.0):
    if patient == 1 and block_info[None]["chunk-location"][:2] == (2, 2):
        raise OSError("block (2, 2) is torn")
    return encode(block, block_info, patient)


@pytest.mark.cluster
def test_errors_on_workers(client, expected):
    dataset = dataset_of(function=torn)
    with SlidingWindowDL(dataset, **OPTIONS, client=client) as loader:
        with pytest.raises(LoaderError, match=r"'p1'.*pixels.*is torn"):
            seen(loader)
    with SlidingWindowDL(dataset, **OPTIONS, client=client, on_error="skip") as loader:
        found = seen(loader)
        failed = loader.stats().failed
    lost = {("p1", tuple(w)) for f in failed for w in f.windows.tolist()}
    # rows and columns of windows that reach into pixels 400 to 600
    touching = {i for i in range(20) if i * 45 < 600 and i * 45 + 60 > 400}
    assert lost == {("p1", (i, j)) for i in touching for j in touching}
    assert set(found) == set(expected) - lost


@pytest.mark.cluster
def test_an_array_that_is_persisted(client):
    values = np.arange(300 * 280, dtype="f4").reshape(300, 280)
    array = (da.from_array(values, chunks=100) + 1).persist()
    for connection in (None, client):
        total = 0
        with SlidingWindowDL(array, kernel_size=50, client=connection) as loader:
            for x, _, windows in loader:
                for sample, window in zip(x, windows):
                    y, x0 = window.origin
                    part = values[y : y + 50, x0 : x0 + 50] + 1
                    assert np.array_equal(sample[0, : part.shape[0], : part.shape[1]], part)
                    total += 1
        assert total == 36


@pytest.mark.parametrize("threads", [1, 3])
def test_a_client_of_this_process(expected, threads):
    secret = threading.Lock()  # a closure that cannot be pickled

    def locked(block, block_info=None, patient=0, slow=0.0):
        with secret:
            return encode(block, block_info, patient)

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=":0"
        ) as cluster,
        # not the default client: there may be another, or none
        Client(cluster, set_as_default=False) as client,
        SlidingWindowDL(dataset_of(function=locked), **OPTIONS, client=client) as loader,
    ):
        assert seen(loader) == expected


@pytest.mark.cluster
def test_closing_in_the_middle_leaves_the_cluster_clean(client, expected):
    loader = SlidingWindowDL(dataset_of(slow=0.02), **OPTIONS, client=client)
    next(loader)
    loader.close()
    assert_clean(client)
    with SlidingWindowDL(dataset_of(), **OPTIONS, client=client) as again:
        assert seen(again) == expected


@pytest.mark.cluster
def test_the_budget_against_the_workers_memory(client):
    with pytest.raises(BudgetError, match="half of the workers' memory"):
        SlidingWindowDL(dataset_of(), **OPTIONS, resident="1.5 GiB", client=client).start()
