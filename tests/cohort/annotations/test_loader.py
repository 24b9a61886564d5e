"""Annotations and label maps as targets of the loader, in-process and on a cluster."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import shapely
from distributed import Client

from daskdmed import Annotations, Categories, Dataset, LightDL, Patient, Record
from daskdmed.cohort.annotations import Annotation, target_view
from daskdmed.core.region import Region
from daskdmed.images.arrayview import ArrayView
from daskdmed.persistence.reading import Job, read_for_others
from daskdmed.samples import CLASS_NAMES, MadeSlide, make_slide

pytest.importorskip("torch")
CLASSES = Categories({"tissue": ["benign", "tumour"], "tumour": "tumour"}, background="first")
SMALL = {
    "smallchunk_size": 64,
    "batch_size": 16,
    "bigchunk_size": 512,
    "resident": "8 MiB",
    "smallchunks_per_bigchunk": 20,
    "epoch_length": 4,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeSlide:
    return make_slide(tmp_path_factory.mktemp("slides") / "a.tif", 2048, levels=2, downsample=2)


@pytest.fixture(scope="module")
def dataset(made: MadeSlide, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    names = {1: CLASS_NAMES[1], 2: CLASS_NAMES[2]}
    path = tmp_path_factory.mktemp("drawn") / "a.geojson.gz"
    drawn = Annotations.from_mask(made.class_map, made.cell, names)
    drawn.to_geojson(path)
    records = {"wsi": Record(made.path)}
    return Dataset(
        "drawn",
        [
            Patient("file", {**records, "drawn": Record(path)}),
            Patient("memory", {**records, "drawn": Record(annotations=drawn)}),
        ],
    )


def assert_targets(loader, truth: np.ndarray) -> None:
    """Every target crop is the ground truth of the place of its small chunk."""
    seen = 0
    for x, _, smallchunks in loader:
        for image, chunk in zip(x, smallchunks):
            y, x0 = chunk.origin
            expected = truth[y : y + 64, x0 : x0 + 64]
            np.testing.assert_array_equal(np.asarray(chunk.target), expected)
            assert tuple(image.shape[1:]) == expected.shape[:2]
            seen += 1
    assert seen == 64


@pytest.mark.parametrize("level", [0, 1])
def test_targets_of_small_chunks(dataset, made, level) -> None:
    truth = made.mask(2.0**level)
    with LightDL(
        dataset, target="drawn", target_classes=["benign", "tumour"], level=level, **SMALL
    ) as loader:
        assert_targets(loader, truth)
    many = np.stack([truth == 0, truth > 0, truth == 2], -1)
    with LightDL(
        dataset, target="drawn", target_classes=CLASSES, target_channels=True, level=level, **SMALL
    ) as loader:
        assert_targets(loader, many)


def test_a_job_travels_with_the_shapes_near_it_only() -> None:
    boxes = [Annotation(shapely.box(8 * k, 0, 8 * k + 4, 60), "a") for k in range(200)]
    image = ArrayView(da.zeros((64, 1600, 3), chunks=64, dtype="u1"), 2)
    target = Annotations(boxes).view(image, classes=["a"])
    job = Job(image, target, Region((0, 100), (64, 64)))
    travelling, delivered = job.localised(client=None)
    assert delivered == (None, None)
    assert len(pickle.dumps(travelling.target)) < len(pickle.dumps(target)) / 5
    here, there = (j.target.read(job.region) for j in (job, pickle.loads(pickle.dumps(travelling))))
    np.testing.assert_array_equal(there, here)
    assert here.any()


@pytest.mark.cluster
def test_targets_on_a_cluster(dataset, made, tmp_path: Path) -> None:
    truth = made.mask(1.0)
    with Client(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as client:
        with LightDL(
            dataset, target="drawn", target_classes=["benign", "tumour"], client=client, **SMALL
        ) as loader:
            assert_targets(loader, truth)
        # a label map that the cluster holds, seen through categories
        labels = client.persist(da.from_array(truth, chunks=512))
        patient = Patient("p", {"wsi": Record(made.path), "labels": Record(array=labels)})
        with LightDL(
            Dataset("labels", [patient]),
            record="wsi",
            target="labels",
            target_classes=Categories({"any": [1, 2]}),
            client=client,
            **SMALL,
        ) as loader:
            assert_targets(loader, truth > 0)


def test_read_for_others_attaches_values_below_categories() -> None:
    values = np.arange(16, dtype="u1").reshape(4, 4) % 3
    image = Record(array=np.zeros((4, 4, 3), "u1")).view()
    record = Record(array=values)
    target = target_view(record, image, [2])
    region = Region((1, 1), (2, 3))
    detached = type(target)(target.source.detached(region), target.categories)
    assert detached.token == target.token
    job = Job(image, detached, region)
    (loaded,) = [read_for_others([job], [(None, values[region.slices])])]
    np.testing.assert_array_equal(loaded[0][2], values[region.slices] == 2)
