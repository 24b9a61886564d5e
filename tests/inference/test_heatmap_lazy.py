"""`heatmap(compute=False)`: the same blocks as a lazy Dask array, on any scheduler."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import torch
from dask.core import flatten

from daskdmed import Dataset, Patient, Record, events, heatmap
from daskdmed.errors import DatasetError, ImageNotFoundError, UsageError
from daskdmed.samples import make_slide


class Weighted:
    """A value that depends on every pixel and its place; k of them."""

    def __init__(self, k=0):
        self.k, self.calls = k, 0

    def __dask_tokenize__(self):
        return "weighted", self.k

    def __call__(self, windows):
        self.calls += 1
        flat = np.asarray(windows, np.float64).reshape(len(windows), -1)
        value = flat @ np.linspace(1, 2, flat.shape[1])
        return value if not self.k else np.stack([value * (i + 1) for i in range(self.k)], 1)


def maps(windows):
    """A map of 2 x 2 for each window."""
    return windows.reshape(len(windows), 2, 8, 2, 8).mean((2, 4))


@pytest.fixture
def image():
    values = np.random.default_rng(0).random((150, 210))
    return da.from_array(values, chunks=64, name="numbers")


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return make_slide(tmp_path_factory.mktemp("lazy") / "a.tif", 900, levels=2, mpp=0.5).path


KEYWORDS = {"kernel_size": 16, "block_windows": 3, "batch_size": 5}


@pytest.mark.parametrize(
    ("k", "scheduler"), [(0, "threads"), (1, "synchronous"), (3, "processes"), (3, "threads")]
)
def test_equal_to_what_is_written(image, k, scheduler):
    mask = np.eye(5)
    found = heatmap(image, Weighted(k), compute=False, mask=mask, **KEYWORDS)
    whole = heatmap(image, Weighted(k), mask=mask, **KEYWORDS)
    wanted = whole.compute()
    assert isinstance(found, da.Array)
    assert found.name.startswith("heatmap-")
    assert (found.shape, found.dtype) == (whole.shape, whole.dtype)
    assert found.numblocks[-2:] == (4, 5)
    with dask.config.set(scheduler=scheduler, num_workers=1):
        np.testing.assert_array_equal(found.compute(), wanted)


@pytest.mark.parametrize("keywords", [{"stride": 10}, {"edge": "shift"}, {"edge": "drop"}])
def test_every_way_to_lay_windows(image, keywords):
    found = heatmap(image, Weighted(), compute=False, **KEYWORDS, **keywords)
    np.testing.assert_array_equal(found, heatmap(image, Weighted(), **KEYWORDS, **keywords))


def test_maps_lie_side_by_side(image):
    found = heatmap(image, maps, compute=False, **KEYWORDS)
    whole = heatmap(image, maps, **KEYWORDS)
    assert found.shape == whole.shape == (20, 28)
    np.testing.assert_array_equal(found, whole)


def test_a_slice_computes_its_blocks_only(image):
    model = Weighted()
    found = heatmap(image, model, compute=False, **KEYWORDS)
    whole = heatmap(image, Weighted(), **KEYWORDS)
    model.calls = 0
    part = found[3:6, 3:6].compute()
    assert model.calls == 3  # rows of windows of one block
    np.testing.assert_array_equal(part, whole[3:6, 3:6])


def test_the_name_says_what_it_is_and_is_always_the_same(image):
    names = [
        heatmap(image, Weighted(k), compute=False, **{**KEYWORDS, **more}).name
        for k, more in ((0, {}), (0, {}), (1, {}), (0, {"stride": 8}), (0, {"batch_size": 7}))
    ]
    assert names[0] == names[1] == names[4]
    assert len(set(names)) == 3


def test_the_graph_has_a_task_per_block_and_image_and_model_once(slide):
    found = heatmap(slide, Weighted(), compute=False, kernel_size=16, block_windows=4)
    graph = dict(found.__dask_graph__())
    blocks = set(flatten(found.__dask_keys__()))
    assert blocks < graph.keys()
    kinds = sorted("-".join(str(key).split("-")[:2]) for key in graph.keys() - blocks)
    assert kinds == ["heatmap-blocks", "heatmap-model"]
    largest = max(len(pickle.dumps(graph[key])) for key in blocks)
    assert largest < 2000
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again, found)


def test_nothing_is_written_and_what_is_for_writing_is_refused(image, tmp_path):
    for keywords in ({"out": tmp_path / "a.zarr"}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match="to_zarr"):
            heatmap(image, Weighted(), compute=False, **KEYWORDS, **keywords)
    found = heatmap(image, Weighted(), compute=False, **KEYWORDS)
    assert not list(tmp_path.iterdir())
    found.to_zarr(tmp_path / "own.zarr")
    np.testing.assert_array_equal(da.from_zarr(tmp_path / "own.zarr"), found)


def test_a_module_counts_as_it_was_and_in_evaluation_mode(image):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Flatten(), torch.nn.Linear(256, 2))
    image = image.astype(np.float32)
    found = heatmap(image, net, compute=False, **KEYWORDS)
    assert net.training
    whole = heatmap(image, net, **KEYWORDS).compute()
    with torch.no_grad():
        net[2].bias += 100
    np.testing.assert_allclose(found, whole, rtol=1e-6)


def test_a_dataset_gives_an_array_per_patient(image):
    data = Dataset.from_arrays({"a": image, "b": image + 1})
    model = Weighted()
    found = heatmap(data, model, compute=False, **KEYWORDS)
    assert model.calls == 1  # tried once, nothing computed
    assert list(found) == ["a", "b"]
    whole = heatmap(data, Weighted(), **KEYWORDS)
    for key in found:
        np.testing.assert_array_equal(found[key], whole[key])


@pytest.mark.parametrize("compute", [False, True])
def test_images_that_do_not_open_are_left_out_when_asked_for(image, tmp_path, compute):
    data = Dataset(
        "three",
        [
            Patient("good", {"wsi": Record(array=image)}),
            Patient("gone", {"wsi": Record(tmp_path / "gone.svs")}),
            Patient("fine", {"wsi": Record(array=image + 1)}),
        ],
    )
    with pytest.raises(ImageNotFoundError) as caught:
        heatmap(data, Weighted(), compute=compute, **KEYWORDS)
    assert "patient 'gone'" in caught.value.__notes__
    seen = []
    end = events.subscribe(seen.append)
    try:
        found = heatmap(data, Weighted(), compute=compute, on_error="skip", **KEYWORDS)
    finally:
        end()
    assert list(found) == ["good", "fine"]
    assert [(f.patient, f.record) for f in found.failures] == [("gone", "wsi")]
    skipped = [e for e in seen if isinstance(e, events.SlideSkipped)]
    assert [(e.patient, e.record) for e in skipped] == [("gone", "wsi")]
    assert "ImageNotFoundError" in skipped[0].reason
    alone = data.filter(lambda p: p.key == "gone")
    with pytest.raises(DatasetError, match="none of the 1 images"):
        heatmap(alone, Weighted(), compute=compute, on_error="skip", **KEYWORDS)


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as connected,
    ):
        yield connected


@pytest.mark.cluster
def test_on_a_cluster(image, slide, client):
    whole = heatmap(image, Weighted(), **KEYWORDS).compute(scheduler="synchronous")
    found = heatmap(image, Weighted(), compute=False, **KEYWORDS)
    np.testing.assert_array_equal(found.compute(), whole)
    np.testing.assert_array_equal(found.persist()[1:4], whole[1:4])
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
    net(torch.zeros(1, 3, 16, 16))
    whole = heatmap(slide, net, kernel_size=16).compute(scheduler="synchronous")
    found = heatmap(slide, net, kernel_size=16, compute=False)
    np.testing.assert_allclose(found.compute(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.cluster
def test_an_array_that_is_persisted_stays_on_its_cluster(image, client, tmp_path):
    whole = heatmap(image, Weighted(), **KEYWORDS).compute(scheduler="synchronous")
    held = client.persist(image)
    found = heatmap(held, Weighted(), compute=False, **KEYWORDS)
    np.testing.assert_array_equal(found.compute(), whole)
    there = heatmap(held, Weighted(), client=client, out=tmp_path / "a.zarr", **KEYWORDS)
    np.testing.assert_array_equal(there.compute(scheduler="synchronous"), whole)


@pytest.mark.cluster
def test_a_block_of_an_array_is_sent_with_its_own_pixels_only(client, tmp_path):
    """Each of the tasks, not the array with all of them."""
    image = da.from_array(np.random.default_rng(0).random((128, 128)), chunks=32)
    found = heatmap(image, Weighted(), compute=False, kernel_size=16, block_windows=2)
    graph = dict(found.__dask_graph__())
    parts = [node for key, node in graph.items() if str(key[0]).startswith("heatmap-image-")]
    assert len(parts) == 16
    assert max(len(pickle.dumps(node)) for node in parts) < 3 * image.nbytes / 16
    there = heatmap(
        image, Weighted(), kernel_size=16, block_windows=2, client=client, out=tmp_path / "a.zarr"
    )
    np.testing.assert_array_equal(there, found)


@pytest.mark.cluster
def test_what_the_dashboard_calls_it(image, client, tmp_path):
    heatmap(image, Weighted(), client=client, out=tmp_path / "a.zarr", **KEYWORDS)
    names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert "heatmap" in names
