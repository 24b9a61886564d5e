"""All that can be said about sampling at once: still the same batches everywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import Categories, Dataset, LightDL, Patient, Quota, Record
from daskdmed.policies import LabelBalanced
from daskdmed.samples import make_slide
from daskdmed.transforms import ColorJitter, Compose, HEDJitter, RandomFlip, RandomRotate90
from tests.loading.test_quotas import square


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everything")
    patients = []
    for i in range(4):
        make_slide(folder / f"s{i}.tif", 2048, tissue=0.4, seed=i, levels=2)
        shapes = [square("Stroma", 300, 300, 500)]
        if i == 2:
            shapes.append(square("Tumor", 1200, 1000, 200))
        (folder / f"s{i}.geojson").write_text(json.dumps(shapes))
        records = {"wsi": Record(folder / f"s{i}.tif"), "drawn": Record(folder / f"s{i}.geojson")}
        patients.append(Patient(f"s{i}", records, {"grade": i % 2}))
    return Dataset("everything", patients)


def options():
    return {
        "smallchunk_size": 64,
        "batch_size": 16,
        "bigchunk_size": 512,
        "smallchunks_per_bigchunk": 24,
        "resident": "24 MiB",
        "tissue": True,
        "min_tissue": 0.3,
        "quotas": [Quota(3, labels="Tumor"), Quota(0.3, patients={"grade": 1})],
        "policy": LabelBalanced("grade"),
        "target": "drawn",
        "target_classes": Categories({"stroma": "Stroma", "tumour": "Tumor"}),
        "target_mpp": 2.0,
        "batch_tfms": Compose(
            [RandomFlip(), RandomRotate90(), ColorJitter(0.1, 0.1, 0.1, 0.05), HEDJitter()], seed=5
        ),
        "seed": 11,
    }


def take(loader, n):
    out = []
    for _ in range(n):
        x, patients, chunks = next(loader)
        y = np.asarray(chunks.targets)
        out.append((x.numpy().copy(), y.copy(), [p.id for p in patients], chunks.origins.copy()))
    return out


def assert_same(a, b):
    assert len(a) == len(b)
    for (x1, y1, p1, o1), (x2, y2, p2, o2) in zip(a, b, strict=True):
        assert p1 == p2
        np.testing.assert_array_equal(o1, o2)
        np.testing.assert_array_equal(x1, x2)
        np.testing.assert_array_equal(y1, y2)


@pytest.fixture(scope="module")
def expected(dataset):
    with LightDL(dataset, **options()) as loader:
        return take(loader, 24)


def test_what_was_asked_for_is_there(expected):
    for x, y, patients, _ in expected:
        assert x.shape == (16, 3, 64, 64)
        assert y.shape[-2:] == (16, 16) or y.shape[1:3] == (16, 16)
        assert sum(p in ("s1", "s3") for p in patients) >= 4
        assert sum(bool((crop == 2).any()) for crop in y) >= 3  # tumour at its own resolution


def test_state_goes_on_with_all_of_it(dataset, expected):
    with LightDL(dataset, **options()) as loader:
        take(loader, 9)
        state = json.loads(json.dumps(loader.state_dict()))
    loader = LightDL(dataset, **options())
    loader.load_state_dict(state)
    with loader:
        assert_same(take(loader, 15), expected[9:])


def test_two_ranks_are_the_single_plan(dataset, expected):
    for rank in range(2):
        with LightDL(dataset, **options(), rank=rank, world_size=2) as loader:
            assert_same(take(loader, 12), expected[rank::2])


@pytest.mark.cluster
def test_workers_of_which_one_is_killed(dataset, expected):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        LightDL(dataset, **options(), client=client) as loader,
    ):
        batches = take(loader, 8)
        next(iter(cluster.workers.values())).process.process._process.kill()
        batches += take(loader, 16)
    assert_same(batches, expected)
