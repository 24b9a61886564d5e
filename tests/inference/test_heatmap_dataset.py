"""`heatmap` of datasets: one store per patient, in order, resumed and replaced together."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch

from daskdmed import Dataset, Patient, Record, heatmap
from daskdmed.core.waiting import workers_of
from daskdmed.errors import DatasetError, ResolutionError, StoreError, UsageError
from daskdmed.samples import make_slide
from tests.waiting import until


class Mean:
    """Mean of each window; tells how often it was called, and fails when it is told to."""

    def __init__(self, fail_above=np.inf):
        self.calls, self.fail_above = 0, fail_above

    def __dask_tokenize__(self):
        return "mean"

    def __call__(self, windows):
        self.calls += 1
        if windows.max() > self.fail_above:
            raise ZeroDivisionError("too bright")
        return windows.reshape(len(windows), -1).mean(1, dtype=np.float64)


def numbered(i, shape):
    return da.from_array(np.full(shape, i) + np.arange(shape[1]) / 1000, chunks=32, name=f"a{i}")


@pytest.fixture
def dataset():
    shapes = [(100, 60), (40, 130), (20, 20), (90, 90)]
    return Dataset.from_arrays(
        {f"p {i}/x": numbered(i, s) for i, s in enumerate(shapes)}, name="four"
    )


def one(patient, model=None, **keywords):
    return heatmap(patient.record(), model or Mean(), kernel_size=16, **keywords).compute()


def contents(folder):
    """Every file of the stores, by name; reports of runs tell times."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("run.json", "run.csv")
    }


@pytest.mark.parametrize("block_windows", [None, 2])
def test_one_store_per_patient(dataset, tmp_path, block_windows):
    keywords = {"kernel_size": 16, "block_windows": block_windows}
    found = heatmap(dataset, Mean(), out=tmp_path / "maps", **keywords)
    assert list(found) == list(dataset.ids)
    names = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "maps").glob("*/*.zarr"))
    assert names == [f"maps/p {i}%2Fx/image.zarr" for i in range(4)]
    memory = heatmap(dataset, Mean(), **keywords)
    for patient in dataset:
        assert isinstance(found[patient.key], da.Array)
        np.testing.assert_array_equal(found[patient.key], one(patient))
        np.testing.assert_array_equal(memory[patient.key], one(patient))


def test_the_model_is_tried_once_for_images_of_one_kind(dataset):
    model = Mean()
    heatmap(dataset, model, kernel_size=16, block_windows=1000, batch_size=1000)
    rows = sum(-(-p.record().array.shape[0] // 16) for p in dataset)
    assert model.calls == rows + 1


def test_the_next_patient_begins_before_the_last_one_ends():
    import threading

    import dask

    together = threading.Barrier(2)

    def model(windows):
        if len(windows) == 1:  # not the trial, which has two
            together.wait()
        return windows[:, 0, 0]

    data = Dataset.from_arrays([numbered(i, (16, 16)) for i in range(2)])
    with dask.config.set(num_workers=2):
        found = heatmap(data, model, kernel_size=16)
    assert [float(v.compute()[0, 0]) for v in found.values()] == [0, 1]


def test_resolutions_records_and_masks_per_patient(tmp_path):
    paths = [make_slide(tmp_path / f"{i}.tif", 700, levels=2, mpp=0.5).path for i in range(2)]
    patients = [
        Patient(str(i), {"stain": Record(p), "other": Record(array=np.zeros((4, 4)))}, {"level": i})
        for i, p in enumerate(paths)
    ]
    data = Dataset("two", patients)
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = True
    common = {"kernel_size": 50, "record": "stain"}
    by_level = heatmap(data, Mean(), level=lambda p: p.labels["level"], **common)
    assert [v.shape for v in by_level.values()] == [(14, 14), (4, 4)]
    by_mpp = heatmap(data, Mean(), mpp=lambda p: 0.5 + 1.5 * p.labels["level"], **common)
    for a, b in zip(by_level.values(), by_mpp.values()):
        np.testing.assert_array_equal(a, b)
    # a function may leave the choice to the others
    mixed = heatmap(
        data, Mean(), level=lambda p: p.labels["level"],
        mpp=lambda p: None if p.labels["level"] else 1.25, **common,
    )  # fmt: skip
    assert [v.shape for v in mixed.values()] == [(6, 6), (4, 4)]
    for given in ({"0": mask, 1: None}, lambda p: None if p.key == "1" else mask):
        found = heatmap(data, Mean(), mask=given, **common)
        assert [int(np.isfinite(v.compute()).sum()) for v in found.values()] == [4, 196]
    # one patient is one image
    single = heatmap(patients[1], Mean(), level=lambda p: p.labels["level"], **common)
    np.testing.assert_array_equal(single, by_level["1"])


def test_an_interrupted_dataset_goes_on(dataset, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    keywords = {"kernel_size": 16, "block_windows": 2}
    full = Mean()
    heatmap(dataset, full, out=whole, **keywords)
    with pytest.raises(StoreError, match="too bright") as caught:
        heatmap(dataset, Mean(fail_above=2), out=broken, **keywords)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "resume=True" in str(caught.value)
    again = Mean()
    heatmap(dataset, again, out=broken, resume=True, **keywords)
    assert contents(broken) == contents(whole)
    assert again.calls < full.calls
    before = contents(whole)
    with pytest.raises(StoreError, match=r"4 of 4 patients already: 'p 0/x', 'p 1/x'"):
        heatmap(dataset, Mean(), out=whole, **keywords)
    assert contents(whole) == before
    more = dataset + Dataset.from_arrays({"new": numbered(9, (30, 30))})
    found = heatmap(more, Mean(), out=whole, resume=True, **keywords)
    assert len(found) == 5
    heatmap(dataset, Mean(), out=broken, overwrite=True, **keywords)
    assert contents(broken) == before


def test_a_patient_that_cannot_be_read_is_named(tmp_path):
    from daskdmed.errors import ImageNotFoundError

    data = Dataset(
        "two",
        [
            Patient("good", {"wsi": Record(array=numbered(1, (40, 40)))}),
            Patient("gone", {"wsi": Record(tmp_path / "gone.svs")}),
        ],
    )
    with pytest.raises(ImageNotFoundError) as caught:
        heatmap(data, Mean(), kernel_size=16, out=tmp_path / "maps")
    assert "patient 'gone'" in caught.value.__notes__
    # what was done before is kept
    out = tmp_path / "maps" / "good" / "wsi.zarr"
    assert np.isfinite(heatmap(data[0], Mean(), kernel_size=16, out=out, resume=True)).all()


def test_bad_arguments(dataset, tmp_path):
    keywords = {"kernel_size": 16}
    with pytest.raises(DatasetError, match="no patients"):
        heatmap(dataset.filter(lambda p: False), Mean(), **keywords)
    with pytest.raises(DatasetError, match="no record 'wsi'"):
        heatmap(dataset, Mean(), record="wsi", **keywords)
    with pytest.raises(UsageError, match="several images"):
        heatmap(dataset, Mean(), mask=np.ones((3, 3)), **keywords)
    with pytest.raises(UsageError, match=r"no entry for 3 of 4 patients: \['p 1/x'"):
        heatmap(dataset, Mean(), mask={"p 0/x": None}, **keywords)
    with pytest.raises(UsageError, match="folder or URL"):
        import zarr

        heatmap(dataset, Mean(), out=zarr.storage.MemoryStore(), **keywords)
    with pytest.raises(ResolutionError):
        heatmap(dataset, Mean(), level=lambda p: -1, **keywords)
    with pytest.raises(DatasetError, match="no record 'wsi'"):
        heatmap(np.zeros((40, 40)), Mean(), record="wsi", **keywords)
    with pytest.raises(UsageError, match="give client="):
        heatmap(dataset, Mean(), resources={"GPU": 1}, **keywords)
    assert not list(tmp_path.iterdir())


def test_ids_become_file_names(tmp_path):
    ids = ["a/b", "..", ".hidden", "50%", "50%25", "Müller", "x y"]
    data = Dataset.from_arrays({i: numbered(1, (16, 16)) for i in ids})
    heatmap(data, Mean(), kernel_size=16, out=tmp_path / "maps")
    assert len(list((tmp_path / "maps").glob("[!.]*/image.zarr"))) == len(ids)
    assert [p.name for p in tmp_path.iterdir()] == ["maps"]


def test_progress_counts_the_blocks_of_all(dataset, capsys):
    heatmap(dataset, Mean(), kernel_size=16, block_windows=2, progress=True)
    blocks = sum(np.prod([-(-n // 32) for n in p.record().array.shape]) for p in dataset)
    assert f"{blocks}/{blocks}" in capsys.readouterr().err


def where(windows):
    """Runs the model on a worker, and says which: its port."""
    from distributed import get_worker

    try:
        port = int(get_worker().address.rsplit(":", 1)[1])
    except ValueError:  # the trial, in the client
        port = 0
    return np.stack([np.full(len(windows), port), windows[:, 0, 0]], 1)


@pytest.fixture(scope="module")
def client():
    """Two worker processes."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as connected,
    ):
        yield connected


@pytest.mark.cluster
def test_a_cluster_computes_several_patients_at_once(dataset, tmp_path, client):
    keywords = {"kernel_size": 16, "block_windows": 2}
    found = heatmap(dataset, Mean(), out=tmp_path / "there", client=client, **keywords)
    heatmap(dataset, Mean(), out=tmp_path / "here", **keywords)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    np.testing.assert_array_equal(found["p 2/x"], one(dataset["p 2/x"]))
    with pytest.raises(UsageError, match="out="):
        heatmap(dataset, Mean(), client=client, **keywords)
    with pytest.raises(StoreError, match="too bright"):
        heatmap(dataset, Mean(fail_above=2), out=tmp_path / "broken", client=client, **keywords)
    heatmap(dataset, Mean(), out=tmp_path / "broken", client=client, resume=True, **keywords)
    assert contents(tmp_path / "broken") == contents(tmp_path / "here")
    with pytest.raises(UsageError, match=r"no worker offers .*GPU.*they offer"):
        heatmap(
            dataset, Mean(), out=tmp_path / "gpu", client=client, resources={"GPU": 1},
            **keywords,
        )  # fmt: skip


@pytest.mark.cluster
def test_models_run_where_the_resources_are(dataset, tmp_path):
    """One worker of three offers a (made-up) GPU: the model runs there, anyone may read."""
    from distributed import Client, Scheduler, SpecCluster, Worker

    offers = [{}, {"GPU": 1}, {}]
    workers = {
        i: {"cls": Worker, "options": {"nthreads": 2, "resources": r, "memory_limit": 0}}
        for i, r in enumerate(offers)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0", "port": 0}}
    with (
        SpecCluster(workers=workers, scheduler=scheduler, asynchronous=False) as cluster,
        Client(cluster) as client,
    ):
        gpu = next(
            int(address.rsplit(":", 1)[1])
            for address, worker in workers_of(client).items()
            if worker["resources"]
        )
        client.run_on_scheduler(_note_restrictions)
        found = heatmap(
            dataset, where, kernel_size=16, block_windows=1, out=tmp_path / "maps", client=client,
            resources={"GPU": 1},
        )  # fmt: skip
        seen = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.seen_by_the_test)
        assert set(seen["heatmap"]) == {"{'GPU': 1}"}
        assert set(seen["heatmap-read"]) == {"None"}
        assert len(seen["heatmap-read"]) == len(seen["heatmap"])
        for values, patient in zip(found.values(), dataset):
            values = values.compute()
            assert (values[0] == gpu).all()
            first = patient.record().array.compute()[::16, ::16]
            np.testing.assert_allclose(values[1], first, rtol=1e-6)


def _note_restrictions(dask_scheduler):
    """Have the scheduler note by name which resources tasks ask for that are done."""
    from distributed.diagnostics.plugin import SchedulerPlugin

    seen = dask_scheduler.seen_by_the_test = {}

    class Note(SchedulerPlugin):
        def transition(self, key, start, finish, *args, **kwargs):
            if finish == "memory":
                task = dask_scheduler.tasks[key]
                wanted = task.resource_restrictions
                seen.setdefault(task.prefix.name, []).append(str(wanted or None))

    dask_scheduler.add_plugin(Note(), name="note")


@pytest.mark.cluster
def test_blocks_are_read_while_the_model_runs(tmp_path):
    """With one slot for the model, later blocks are read before it has ended."""
    from distributed import Client, LocalCluster

    log = []

    class Slow:
        def __call__(self, windows):
            log.append("model")
            calls = log.count("model") - 1
            if calls:  # not the trial
                until(lambda: log.count("read") >= min(calls + 1, 10))
            log.append("end")
            return windows[:, 0, 0]

        def __reduce__(self):
            return _the_slow, ()

    global _slow
    _slow = Slow()
    image = da.from_array(np.arange(16 * 160.0).reshape(16, 160), chunks=16, name="wide")
    image = image.map_blocks(_Noted(), dtype=float)
    _Noted.log = log
    with (
        LocalCluster(
            1,
            threads_per_worker=2,
            processes=False,
            resources={"GPU": 1},
            memory_limit=0,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        heatmap(
            image, _slow, kernel_size=16, block_windows=1, out=tmp_path / "a.zarr", client=client,
            resources={"GPU": 1},
        )  # fmt: skip
    assert log.count("read") == 10
    assert log.count("model") == 11  # the trial, and ten blocks one after the other
    assert "model model" not in " ".join(e for e in log if e != "read")


_slow = None


def _the_slow():
    return _slow


class _Noted:
    log: list[str] = []

    def __call__(self, block):
        if block.size:
            self.log.append("read")
        return block

    def __dask_tokenize__(self):
        return "noted"


@pytest.mark.cluster
def test_a_network_on_workers(tmp_path, client):
    image = np.random.default_rng(0).random((64, 96)).astype(np.float32)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.AdaptiveAvgPool2d(1))
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net.eval(), (torch.zeros(3, 1, 16, 16),)), path)
    expected = heatmap(image, net, kernel_size=16)
    for number, model in enumerate((net, path)):
        found = heatmap(
            image, model, kernel_size=16, client=client, out=tmp_path / f"{number}.zarr",
            block_windows=2, channels_last=model is net,
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, atol=1e-5)


class Sent:
    """What a worker of a cluster must be sent."""

    def __init__(self, payload):
        self.payload = payload

    def __call__(self, windows):
        return windows.mean(axis=(1, 2), dtype=np.float32) + len(self.payload)


@pytest.mark.cluster
def test_a_cluster_gives_the_same_store(tmp_path, client):
    image = da.from_array(np.arange(300.0 * 200).reshape(300, 200), chunks=64, name="numbers")
    here, there = tmp_path / "here.zarr", tmp_path / "there.zarr"
    keywords = {"kernel_size": 16, "block_windows": 3}
    expected = heatmap(image, Sent(b"x" * 3), out=here, **keywords)
    found = heatmap(image, Sent(b"x" * 3), out=there, client=client, **keywords)
    np.testing.assert_array_equal(found.compute(), expected.compute())
    assert contents(here) == contents(there)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 2)).train()
    vectors = heatmap(image, net, out=tmp_path / "net.zarr", client=client, **keywords)
    assert net.training
    np.testing.assert_allclose(vectors, heatmap(image, net, **keywords), rtol=1e-5, atol=1e-3)
