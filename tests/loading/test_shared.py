"""Big chunks in the shared memory of worker processes: cropped by reference, the same batches."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster

from daskdmed import LightDL, SlidingWindowDL
from daskdmed.core.shared import mapping, segments
from daskdmed.loading.ranks import on_this_machine
from daskdmed.loading.remote import RemoteEngine
from daskdmed.persistence import ranks
from tests.loading import test_everything, test_state
from tests.loading.clusters import tcp_cluster
from tests.loading.conftest import (
    SMALL,
    assert_same_batches,
    assert_true_to_place,
    collect,
    coordinate_dataset,
)
from tests.waiting import until

BATCHES = 24


@pytest.fixture(scope="module")
def expected(dataset):
    with LightDL(dataset, **SMALL, seed=5) as loader:
        return collect(loader, BATCHES)


@pytest.fixture(scope="module")
def near():
    """A client of two workers that share their memory."""
    with tcp_cluster(2, shared=True) as (_, client):
        yield client


@pytest.fixture(scope="module")
def machines():
    """A client of two worker processes, one of which plays another machine."""
    common = {"nthreads": 1, "memory_limit": 0}
    elsewhere = {**common, "config": {"daskdmed": {"machine": "elsewhere"}}}
    spec = {
        "here": {"cls": Nanny, "options": common},
        "elsewhere": {"cls": Nanny, "options": elsewhere},
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "port": 0}}
    with (
        SpecCluster(workers=spec, scheduler=scheduler, silence_logs=False) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def drawn(monkeypatch):
    """How many draws were cropped here, and how many came through sockets."""
    counts = {"here": 0, "elsewhere": 0}

    def count(name, method):
        original = getattr(RemoteEngine, method)

        def counted(*args):
            counts[name] += 1
            return original(*args)

        monkeypatch.setattr(RemoteEngine, method, counted)

    count("here", "crop")
    count("elsewhere", "_commit")
    return counts


def test_small_chunks_are_cropped_by_reference(near, dataset, expected, drawn):
    with LightDL(dataset, **SMALL, seed=5, client=near) as loader:
        got = collect(loader, BATCHES)
        x, _, chunks = next(loader)
        assert_true_to_place(x, chunks)
        stats = loader.stats()
        assert stats.resident_bytes <= stats.budget_bytes
    assert_same_batches(got, expected)
    assert drawn["here"] >= 16 * BATCHES
    assert not drawn["elsewhere"]


def test_here_and_elsewhere_in_one_batch(machines, dataset, expected, drawn):
    with LightDL(dataset, **SMALL, seed=5, client=machines) as loader:
        got = collect(loader, BATCHES)
    assert_same_batches(got, expected)
    assert min(drawn.values()) > 0


def test_a_killed_worker_takes_nothing_with_it(machines, dataset, expected, drawn):
    """What was mapped is there as long as it is needed."""
    with LightDL(dataset, **SMALL, seed=5, client=machines) as loader:
        got = collect(loader, BATCHES // 3)
        for pid in machines.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)
        got += collect(loader, BATCHES - BATCHES // 3)
    assert_same_batches(got, expected)
    machines.wait_for_workers(2)


def test_everything_at_once(near, tmp_path_factory):
    dataset = test_everything.dataset.__wrapped__(tmp_path_factory)
    with LightDL(dataset, **test_everything.options()) as loader:
        want = test_everything.take(loader, 8)
    with LightDL(dataset, **test_everything.options(), client=near) as loader:
        test_everything.assert_same(test_everything.take(loader, 8), want)


@pytest.mark.parametrize("bigchunk_size", [96, 512])
def test_big_chunks_that_share_a_task(near, dataset, bigchunk_size):
    options = {**SMALL, "bigchunk_size": bigchunk_size, "resident": "3 MiB"}
    with LightDL(dataset, **options) as loader:
        want = collect(loader, 6)
    with LightDL(dataset, **options, client=near) as loader:
        assert_same_batches(collect(loader, 6), want)


def test_memory_is_used_again_and_given_back(near, dataset, monkeypatch):
    """As long as one rotates through many more big chunks than fit into memory."""
    spare = 4 << 20
    monkeypatch.setattr(segments, "SPARE_LIMIT", spare)

    def held():
        gc.collect()
        segments.clear()
        mapping.clear()
        return segments.nbytes(), len(mapping._mappings)

    before = held()
    with LightDL(dataset, **SMALL, client=near) as loader:
        budget = loader.stats().budget_bytes
        for _ in range(150):
            next(loader)
            # sizes are rounded up by a quarter at most, that of what is let go of included
            assert segments.nbytes() - before[0] <= 1.25 * 2 * budget + spare
        assert loader.stats().visits_evicted > 60
    until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))


def test_ranks_share_one_resident_set(near, dataset, expected):
    """Each big chunk is read once, and both crop from it."""
    loaders = [
        LightDL(dataset, **{**SMALL, "batch_size": 8}, seed=5, client=near, rank=r, world_size=2)
        for r in range(2)
    ]
    got = []
    for _ in range(6):
        halves = [next(loader) for loader in loaders]
        got.append(np.concatenate([x.numpy() for x, _, _ in halves]))
    for loader in loaders:
        loader.close()
    for ours, (x, _, _) in zip(got, expected[:6], strict=True):
        assert np.array_equal(ours, x)


def test_ranks_of_other_machines_are_not_waited_for(near, monkeypatch):
    """They come to the scheduler of their own machine."""
    monkeypatch.setattr(ranks, "JOIN_LIMIT", 1e9)
    first, other = (ranks.Ranks(near, "a plan", number, 4, meeting=2) for number in (0, 3))
    first.join(0)
    first.finished(0)
    assert first.slowest == 0, "one of this machine has not come yet"
    other.join(0)
    other.finished(0)
    other.tell()
    first.tell()
    assert first.slowest == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert on_this_machine(4) == 2
    assert on_this_machine(1) == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert on_this_machine(4) == 4
    for one in (first, other):
        one.leave()


def test_a_collector_that_remembers(machines, dataset, drawn):
    options = {**SMALL, "smallchunk_collector": test_state.Counting}
    with LightDL(dataset, **options) as loader:
        want = collect(loader, 8)
    with LightDL(dataset, **options, client=machines) as loader:
        assert_same_batches(collect(loader, 8), want)


def test_windows_by_reference(near, dataset):
    options = {"kernel_size": 64, "stride": 64, "batch_size": 32}
    with SlidingWindowDL(dataset, **options) as loader:
        want = [(x.numpy().copy(), w.indices.copy()) for x, _, w in loader]
    with SlidingWindowDL(dataset, **options, client=near) as loader:
        got = [(x.numpy().copy(), w.indices.copy()) for x, _, w in loader]
    assert len(got) == len(want)
    for (xa, ia), (xb, ib) in zip(got, want, strict=True):
        assert np.array_equal(xa, xb)
        assert np.array_equal(ia, ib)


def shared_bytes(pid):
    """Shared memory that the system counts for a process: all it has touched, and its part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    [part] = [line for line in lines if line.startswith("Pss_Shmem:")]
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    [whole] = [line for line in status if line.startswith("RssShmem:")]
    return int(whole.split()[1]) << 10, int(part.split()[1]) << 10


def test_what_is_counted_is_what_the_system_counts():
    """Dask, `stats` and the kernel agree; a process more that reads takes nothing more."""
    dataset = coordinate_dataset(2)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, memory_limit=0, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        LightDL(dataset, **SMALL, client=client) as loader,
    ):
        mine = shared_bytes("self")
        for _ in range(40):
            next(loader)
        loader.pause()
        residents = loader._engine.residents
        until(lambda: all(u.mapped is not None for u in list(residents._units.values())))
        budget = loader.stats().budget_bytes
        [(pid, managed)] = client.run(
            lambda dask_worker: (os.getpid(), sum(map(sizeof, dask_worker.data.values())))
        ).values()
        assert 0 < managed <= budget
        whole, part = shared_bytes(pid)
        # beside blocks: what waits for its next use
        assert managed <= whole <= budget + segments.SPARE_LIMIT
        ours, our_part = (
            now - before for now, before in zip(shared_bytes("self"), mine, strict=True)
        )
        assert ours > 0
        assert part + our_part <= 1.1 * whole, "the same pages, counted once"
