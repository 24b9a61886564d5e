"""Real worker processes: the same batches however many there are, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import Dataset, LightDL, Patient, Record
from daskdmed.errors import LoaderError
from daskdmed.persistence import ranks
from daskdmed.persistence.cluster import Workers
from daskdmed.samples import make_slide
from tests.loading.conftest import (
    SMALL,
    assert_same_batches,
    assert_true_to_place,
    collect,
    coordinate_dataset,
)
from tests.waiting import until

BATCHES = 24
SLIDES = {
    "smallchunk_size": 64,
    "batch_size": 16,
    "bigchunk_size": 512,
    "resident": "12 MiB",
    "smallchunks_per_bigchunk": 24,
    "seed": 5,
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    patients = []
    for i in range(3):
        made = make_slide(folder / f"s{i}.tif", 2048, seed=i)
        patients.append(Patient(f"s{i}", {"wsi": Record(made.path)}, {"class": i}))
    return Dataset("slides", patients)


@pytest.fixture(scope="module")
def expected(slides):
    with LightDL(slides, **SLIDES) as loader:
        return collect(loader, BATCHES)


def cluster(n, **kwargs):
    return LocalCluster(
        n_workers=n,
        threads_per_worker=1,
        processes=True,
        memory_limit="1 GiB",
        dashboard_address=":0",
        **kwargs,
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_in_process_client_of_the_user(slides, expected, threads):
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=":0"
        ) as local,
        Client(local) as client,
    ):
        with LightDL(slides, **SLIDES, client=client) as loader:
            assert_same_batches(collect(loader, BATCHES), expected)
        assert client.status == "running", "the user's client is not ours to close"


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, 3])
def test_same_batches_for_any_number_of_workers(slides, expected, workers):
    with cluster(workers) as local, Client(local) as client:
        with LightDL(slides, **SLIDES, client=client) as loader:
            assert_same_batches(collect(loader, BATCHES), expected)
            stats = loader.stats()
            assert stats.resident_bytes <= stats.budget_bytes
        until(lambda: not any("chunk" in str(k) for h in client.has_what().values() for k in h))


@pytest.mark.cluster
def test_same_batches_after_a_worker_is_killed(slides, expected):
    with cluster(2) as local, Client(local) as client:
        pids = list(client.run(os.getpid).values())
        with LightDL(slides, **SLIDES, client=client) as loader:
            first = collect(loader, BATCHES // 3)
            os.kill(pids[0], signal.SIGKILL)
            rest = collect(loader, BATCHES - BATCHES // 3)
        assert_same_batches(first + rest, expected)


@pytest.mark.cluster
def test_a_worker_that_joins_changes_nothing(slides, expected):
    with (
        cluster(1) as local,
        Client(local) as client,
        LightDL(slides, **SLIDES, client=client) as loader,
    ):
        first = collect(loader, 8)
        local.scale(2)
        client.wait_for_workers(2)
        assert_same_batches(first + collect(loader, BATCHES - 8), expected)


@pytest.mark.cluster
def test_hooks_errors_skips_and_ranks_on_a_cluster(monkeypatch):
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
            return collect(loader, 12)

    monkeypatch.setattr(ranks, "JOIN_LIMIT", 0.2)  # they come one after the other
    with cluster(2) as workers, Client(workers) as client:
        with LightDL(dataset, **sizes, client=client, smallchunk_collector=some) as loader:
            assert_same_batches(collect(loader, 12), local(smallchunk_collector=some))
        with (
            LightDL(dataset, **sizes, client=client, smallchunk_collector=fails_for_p1) as loader,
            pytest.raises(LoaderError, match="patient 'p1', record 'wsi'.*cannot look at p1"),
        ):
            collect(loader, 12)
        skipping = {"smallchunk_collector": fails_for_p1, "on_error": "skip"}
        with LightDL(dataset, **sizes, client=client, **skipping) as loader:
            assert_same_batches(collect(loader, 12), local(**skipping))
            assert {f.patient for f in loader.stats().failed} == {"p1"}
        whole = local()
        for rank in range(2):
            with LightDL(dataset, **sizes, client=client, rank=rank, world_size=2) as loader:
                assert_same_batches(collect(loader, 6), whole[rank::2])
        with LightDL(dataset, **sizes, client=client, rotation="adaptive") as loader:
            for _ in range(12):
                x, _, chunks = next(loader)
                assert_true_to_place(x, chunks)


@pytest.mark.cluster
def test_two_loaders_share_big_chunks(slides):
    with cluster(2) as local, Client(local) as one, Client(local.scheduler_address) as two:
        with LightDL(slides, **SLIDES, client=one) as a, LightDL(slides, **SLIDES, client=two) as b:
            assert_same_batches(collect(a, 4), collect(b, 4))
            a.pause()
            b.pause()
            blocks = [k for held in one.has_what().values() for k in held if "big-chunk" in str(k)]
            assert len(set(blocks)) == len(blocks)
            capacity = a._assembly.planning.allotment.capacity
            assert len(blocks) <= capacity + 4, "both loaders hold the same blocks"


def fetched(client):
    """Big chunks that have travelled from one worker to another."""
    logs = client.run(
        lambda dask_worker: [
            k for entry in dask_worker.transfer_incoming_log for k in entry["keys"]
        ]
    )
    return [k for keys in logs.values() for k in keys if "big-chunk" in str(k)]


@pytest.mark.cluster
def test_loaders_that_choose_other_workers_hold_nothing_twice(slides, expected, monkeypatch):
    with cluster(2) as local, Client(local) as one, Client(local.scheduler_address) as two:
        homes = dict(zip((one.id, two.id), one.nthreads(), strict=True))
        monkeypatch.setattr(Workers, "pick", lambda self, count: homes[self._client.id])
        with LightDL(slides, **SLIDES, client=one) as a:
            first = collect(a, BATCHES // 2)
            with LightDL(slides, **SLIDES, client=two) as b:
                assert_same_batches(collect(b, BATCHES), expected)
            assert_same_batches(first + collect(a, BATCHES - BATCHES // 2), expected)
        assert not fetched(one)


@pytest.mark.cluster
def test_big_chunks_that_were_read_elsewhere_than_asked_are_cropped_there(slides, expected):
    """As when an idle worker steals a read."""
    with cluster(2) as local, Client(local) as client:
        everywhere = set(client.nthreads())
        submit = client.submit
        moved = []

        def elsewhere(*args, workers=None, key=None, **options):
            if key[0] == "big-chunk":
                moved.append(key)
                (workers,) = everywhere - set(workers)
            return submit(*args, workers=workers, key=key, **options)

        client.submit = elsewhere
        with LightDL(slides, **SLIDES, client=client) as loader:
            assert_same_batches(collect(loader, BATCHES), expected)
        assert len(moved) > 3
        assert not fetched(client)


@pytest.mark.cluster
def test_a_persisted_array_is_a_record():
    import dask.array as da

    with cluster(2) as local, Client(local) as client:
        values = np.arange(600 * 500, dtype="i4").reshape(600, 500)
        array = (da.from_array(values, chunks=200) + 1).persist()
        dataset = Dataset("p", [Patient("a", {"x": Record(array=array)})])
        sizes = {**SMALL, "bigchunk_size": 256}
        for connection in (None, client):
            with LightDL(dataset, **sizes, client=connection) as loader:
                x, _, chunks = loader.get()
            for sample, chunk in zip(x[:, 0].numpy(), chunks, strict=True):
                y, x0 = chunk.origin
                assert np.array_equal(sample, values[y : y + 64, x0 : x0 + 64] + 1)


@pytest.mark.cluster
def test_budget_against_the_workers_memory(slides):
    from daskdmed.errors import BudgetError

    with cluster(1) as local, Client(local) as client:
        big = {**SLIDES, "resident": "600 MiB"}
        with pytest.raises(BudgetError, match=r"half of the workers' memory \(1\.00 GiB"):
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
        collect(loader, 11)
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
    assert all(np.array_equal(a, b[0]) for a, b in zip(pixels, expected[11:17], strict=True))


def test_a_client_that_is_closed_under_the_loader_is_an_error(slides):
    client = Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0")
    with LightDL(slides, **SLIDES, client=client) as loader:
        next(loader)
        client.close()
        with pytest.raises(LoaderError, match="connection|closed|cancelled"):
            for _ in range(10_000):
                loader.get()
