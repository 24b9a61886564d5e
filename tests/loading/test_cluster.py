"""Workers that are not threads of this process: the same batches, whoever comes and goes.

Real processes where they matter (kills, restarts, shared state); elsewhere threads that speak
TCP, which are the same to a loader.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import Dataset, LightDL, Patient, Record
from daskdmed.errors import BudgetError, LoaderError
from daskdmed.persistence import ranks
from daskdmed.persistence.cluster import Workers
from daskdmed.samples import make_slide
from tests.loading.clusters import scale, tcp_cluster
from tests.loading.conftest import (
    SMALL,
    assert_same_batches,
    assert_true_to_place,
    collect,
    coordinate_dataset,
)
from tests.waiting import until

BATCHES = 16
SLIDES = {
    "smallchunk_size": 64,
    "batch_size": 16,
    "bigchunk_size": 384,
    "resident": "6 MiB",
    "smallchunks_per_bigchunk": 24,
    "seed": 5,
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    patients = []
    for i in range(2):
        made = make_slide(folder / f"s{i}.tif", 1024, seed=i)
        patients.append(Patient(f"s{i}", {"wsi": Record(made.path)}, {"class": i}))
    return Dataset("slides", patients)


@pytest.fixture(scope="module")
def expected(slides):
    with LightDL(slides, **SLIDES) as loader:
        return collect(loader, BATCHES)


@pytest.fixture(scope="module")
def threads():
    with tcp_cluster(2) as connection:
        yield connection


@pytest.fixture
def near(threads):
    """A client of two workers that are threads."""
    scale(threads[0], 2)
    return threads[1]


@pytest.fixture(scope="module")
def nannies():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="1 GiB", dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def client(nannies):
    """A client of two worker processes with nannies."""
    nannies.wait_for_workers(2)
    return nannies


def kill(client, workers):
    """As the kernel does when memory is used up."""
    for pid in list(client.run(os.getpid).values())[:workers]:
        os.kill(pid, signal.SIGKILL)


def test_in_process_client_of_the_user(slides, expected):
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as local,
        Client(local) as client,
    ):
        with LightDL(slides, **SLIDES, client=client) as loader:
            assert_same_batches(collect(loader, BATCHES), expected)
        assert client.status == "running", "the user's client is not ours to close"


def test_same_batches_for_any_number_of_workers(threads, near, slides, expected):
    for workers in (1, 3):
        scale(threads[0], workers)
        with LightDL(slides, **SLIDES, client=near) as loader:
            assert_same_batches(collect(loader, BATCHES), expected)
            stats = loader.stats()
            assert stats.resident_bytes <= stats.budget_bytes
        until(lambda: not threads[0].scheduler.tasks)


def test_what_dask_chooses_by_chance_is_not_taken_from_the_training_loop(near, slides):
    """Nor from a transform that is called meanwhile, for which the generators are seeded."""
    with LightDL(slides, **SLIDES, client=near) as loader:
        before = random.getstate()
        collect(loader, BATCHES)
        assert random.getstate() == before


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, 2])
def test_same_batches_after_one_of_the_workers_or_all_are_killed(client, slides, expected, workers):
    with LightDL(slides, **SLIDES, client=client) as loader:
        first = collect(loader, BATCHES // 3)
        kill(client, workers)
        rest = collect(loader, BATCHES - BATCHES // 3)
    assert_same_batches(first + rest, expected)


def test_a_worker_that_joins_changes_nothing(threads, near, slides, expected):
    with LightDL(slides, **SLIDES, client=near) as loader:
        first = collect(loader, 5)
        scale(threads[0], 3)
        assert_same_batches(first + collect(loader, BATCHES - 5), expected)


def test_hooks_errors_skips_and_ranks_on_a_cluster(near, monkeypatch):
    client = near
    dataset = coordinate_dataset(3)
    sizes = {**SMALL, "resident": "12 MiB"}

    def some(bigchunk, context, rng):
        return None if context.draw >= 3 + context.visit % 4 else tuple(rng.integers(90, size=2))

    def fails_for_p1(bigchunk, context, rng):
        if context.patient == "p1":
            raise RuntimeError("cannot look at p1")
        return (1, 2)

    def local(**kwargs):
        with LightDL(dataset, **sizes, **kwargs) as loader:
            return collect(loader, 10)

    monkeypatch.setattr(ranks, "JOIN_LIMIT", 0.0)  # they come one after the other
    with LightDL(dataset, **sizes, client=client, smallchunk_collector=some) as loader:
        assert_same_batches(collect(loader, 10), local(smallchunk_collector=some))
    with (
        LightDL(dataset, **sizes, client=client, smallchunk_collector=fails_for_p1) as loader,
        pytest.raises(LoaderError, match="patient 'p1', record 'wsi'.*cannot look at p1"),
    ):
        collect(loader, 10)
    skipping = {"smallchunk_collector": fails_for_p1, "on_error": "skip"}
    with LightDL(dataset, **sizes, client=client, **skipping) as loader:
        assert_same_batches(collect(loader, 10), local(**skipping))
        assert {f.patient for f in loader.stats().failed} == {"p1"}
    whole = local()
    for rank in range(2):
        with LightDL(dataset, **sizes, client=client, rank=rank, world_size=2) as loader:
            assert_same_batches(collect(loader, 5), whole[rank::2])
    with LightDL(dataset, **sizes, client=client, rotation="adaptive") as loader:
        for _ in range(10):
            x, _, chunks = next(loader)
            assert_true_to_place(x, chunks)


def test_two_loaders_share_big_chunks(threads, near, slides):
    with (
        Client(threads[0], set_as_default=False) as two,
        LightDL(slides, **SLIDES, client=near) as a,
        LightDL(slides, **SLIDES, client=two) as b,
    ):
        assert_same_batches(collect(a, 4), collect(b, 4))
        a.pause()
        b.pause()
        blocks = [k for held in near.has_what().values() for k in held if "big-chunk" in str(k)]
        assert len(set(blocks)) == len(blocks)
        capacity = a._assembly.planning.allotment.capacity
        assert len(blocks) <= capacity + 4, "both loaders hold the same blocks"


def fetched(cluster):
    """How many big chunks have travelled from one worker to another."""
    logs = [worker.transfer_incoming_log for worker in cluster.workers.values()]
    keys = [key for log in logs for entry in log for key in entry["keys"]]
    return sum("big-chunk" in str(key) for key in keys)


def test_loaders_that_choose_other_workers_hold_nothing_twice(
    threads, near, slides, expected, monkeypatch
):
    cluster, one = threads
    before = fetched(cluster)
    with Client(cluster, set_as_default=False) as two:
        homes = dict(zip((one.id, two.id), one.nthreads(), strict=True))
        monkeypatch.setattr(Workers, "pick", lambda self, count: homes[self._client.id])
        with LightDL(slides, **SLIDES, client=one) as a:
            first = collect(a, BATCHES // 2)
            with LightDL(slides, **SLIDES, client=two) as b:
                assert_same_batches(collect(b, BATCHES), expected)
            assert_same_batches(first + collect(a, BATCHES - BATCHES // 2), expected)
    assert fetched(cluster) == before


def test_big_chunks_that_were_read_elsewhere_than_asked_are_cropped_there(
    threads, near, slides, expected, monkeypatch
):
    """As when an idle worker steals a read."""
    everywhere = set(near.nthreads())
    submit = near.submit
    moved = []
    before = fetched(threads[0])

    def elsewhere(*args, workers=None, key=None, **options):
        if key[0] == "big-chunk":
            moved.append(key)
            (workers,) = everywhere - set(workers)
        return submit(*args, workers=workers, key=key, **options)

    monkeypatch.setattr(near, "submit", elsewhere)
    with LightDL(slides, **SLIDES, client=near) as loader:
        assert_same_batches(collect(loader, BATCHES), expected)
    assert len(moved) > 3
    assert fetched(threads[0]) == before


@pytest.mark.cluster
def test_a_persisted_array_is_a_record(client):
    values = np.arange(600 * 500, dtype="i4").reshape(600, 500)
    with client.as_current():
        array = (da.from_array(values, chunks=200) + 1).persist(scheduler=client.get)
    dataset = Dataset("p", [Patient("a", {"x": Record(array=array)})])
    sizes = {**SMALL, "bigchunk_size": 256}
    for connection in (None, client):
        with LightDL(dataset, **sizes, client=connection) as loader:
            x, _, chunks = loader.get()
        for sample, chunk in zip(x[:, 0].numpy(), chunks, strict=True):
            y, x0 = chunk.origin
            assert np.array_equal(sample, values[y : y + 64, x0 : x0 + 64] + 1)


@pytest.mark.cluster
def test_budget_against_the_workers_memory(client, slides):
    with pytest.raises(BudgetError, match=r"half of the workers' memory \(2\.00 GiB"):
        LightDL(slides, **{**SLIDES, "resident": "1.2 GiB"}, client=client).start()


def test_budget_against_what_else_workers_need(slides):
    with contextlib.ExitStack() as stack:
        # the worker is part of this process, which has more already
        with dask.config.set({"distributed.worker.memory.pause": False}):
            _, client = stack.enter_context(tcp_cluster(1, memory_limit="250 MiB"))
        big = {**SLIDES, "resident": "110 MiB"}
        with pytest.raises(BudgetError, match=r"worker's memory \(250.00 MiB\) 200.00 MiB can"):
            LightDL(slides, **big, client=client).start()


CONTINUE = """
import json, sys
import numpy as np
from daskdmed import Dataset, LightDL, Patient, Record
from tests.loading.conftest import collect
job = json.load(open(sys.argv[1]))
patients = [Patient(i, {"wsi": Record(u)}, {"class": k}) for k, (i, u) in enumerate(job["records"])]
dataset = Dataset("slides", patients)
loader = LightDL(dataset, **job["parameters"])
loader.load_state_dict(job["state"])
with loader:
    np.savez(sys.argv[2], *[x for x, _, _ in collect(loader, 6)])
"""


def test_state_continues_in_a_new_process(slides, expected, tmp_path):
    with LightDL(slides, **SLIDES) as loader:
        collect(loader, 9)
        state = loader.state_dict()
    job = {
        "records": [(p.id, str(p.records["wsi"].uri)) for p in slides],
        "parameters": SLIDES,
        "state": state,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-c", CONTINUE, str(tmp_path / "job.json"), str(tmp_path / "x.npz")]
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    subprocess.run(command, check=True, cwd=root)
    with np.load(tmp_path / "x.npz") as saved:
        pixels = [saved[k] for k in saved.files]
    assert all(np.array_equal(a, b[0]) for a, b in zip(pixels, expected[9:15], strict=True))


def test_a_client_that_is_closed_under_the_loader_is_an_error(slides):
    client = Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0")
    with LightDL(slides, **SLIDES, client=client) as loader:
        next(loader)
        client.close()
        with pytest.raises(LoaderError, match="connection|closed|cancelled"):
            for _ in range(10_000):
                loader.get()
