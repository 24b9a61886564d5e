"""Composition of batches: labels of patients, classes of annotations, lost big chunks."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import Dataset, LightDL, Patient, Quota, Record
from daskdmed.errors import BudgetError, LoaderError, UsageError
from tests.loading.conftest import (
    SMALL,
    assert_same_batches,
    assert_true_to_place,
    collect,
    coordinate_array,
    coordinate_dataset,
)

OPTIONS = {**SMALL, "resident": "24 MiB"}


def square(label, x, y, side):
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": label}},
    }


@pytest.fixture
def annotated(tmp_path):
    """Six slides; 'Tumor' is in one place of one of them, 'Stroma' in all."""
    patients = []
    for i in range(6):
        shapes = [square("Stroma", 100, 700, 400)]
        if i == 4:
            shapes.append(square("Tumor", 900, 300, 120))
        path = tmp_path / f"p{i}.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": shapes}))
        records = {"wsi": Record(array=coordinate_array(number=i)), "shapes": Record(path)}
        patients.append(Patient(f"p{i}", records, {"grade": i // 4}))
    return Dataset("annotated", patients)


def centres(chunks):
    return chunks.origins + 32


def in_square(points, x, y, side, slack=1):
    """Within a square in (y, x), give or take a mask pixel."""
    low, high = np.array([y, x]) - slack, np.array([y, x]) + side + slack
    return ((points >= low) & (points <= high)).all(axis=1)


def test_a_class_that_one_slide_has_meets_its_quota_in_every_batch(annotated):
    with LightDL(annotated, **OPTIONS, quotas=[Quota(4, labels="Tumor")]) as loader:
        for _ in range(60):
            x, patients, chunks = next(loader)
            assert_true_to_place(x, chunks)
            inside = in_square(centres(chunks), 900, 300, 120)
            inside &= np.array([p.id == "p4" for p in patients])
            assert np.count_nonzero(inside) >= 4


def test_labels_alone_draw_from_the_classes_only(annotated):
    with LightDL(annotated, **OPTIONS, labels=["Stroma", "Tumor"]) as loader:
        seen = Counter()
        for _ in range(30):
            _, patients, chunks = next(loader)
            stroma = in_square(centres(chunks), 100, 700, 400)
            tumour = in_square(centres(chunks), 900, 300, 120)
            assert (stroma | tumour).all()
            seen.update(p.id for p in patients)
    assert set(seen) == {f"p{i}" for i in range(6)}


def test_shares_of_classes(annotated):
    with LightDL(annotated, **OPTIONS, labels={"Stroma": 0.25, "Tumor": 3}) as loader:
        for _ in range(30):
            _, _, chunks = next(loader)
            assert np.count_nonzero(in_square(centres(chunks), 100, 700, 400)) >= 4
            assert np.count_nonzero(in_square(centres(chunks), 900, 300, 120)) >= 3


@pytest.mark.parametrize("form", ["labels", "function"])
def test_quotas_by_label_of_the_patient(form):
    data = coordinate_dataset(10)
    rare = {"y": 1} if form == "labels" else lambda p: p.labels["y"] == 1
    quotas = [Quota(5, rare, name="rare"), Quota(0.5, lambda p: p.id == "p2")]
    with LightDL(data, **OPTIONS, quotas=quotas) as loader:
        for _ in range(40):
            patients = next(loader)[1]
            assert sum(p.labels["y"] == 1 for p in patients) >= 5
            assert sum(p.id == "p2" for p in patients) >= 8


def test_quotas_that_fill_the_batch_are_exact():
    data = coordinate_dataset(6)
    quotas = [Quota(3, {"y": 1}), Quota(13, {"y": 0})]
    with LightDL(data, **OPTIONS, quotas=quotas) as loader:
        for _ in range(30):
            assert Counter(p.labels["y"] for p in next(loader)[1]) == {1: 3, 0: 13}


def broken(block, block_info=None):
    if block_info[0]["array-location"][0][0] >= 1024:
        raise OSError("this part is broken")
    return block


def with_broken_slide():
    """The first of four slides is unreadable in its lower third."""
    data = coordinate_dataset(4)
    array = coordinate_array(number=0).map_blocks(
        broken, dtype="u1", meta=np.empty((0, 0, 0), "u1")
    )
    patients = [Patient("p0", {"wsi": Record(array=array)}, {"y": 0}), *list(data)[1:]]
    return Dataset("broken", patients)


def test_a_lost_big_chunk_does_not_cost_a_batch_its_share():
    data = with_broken_slide()
    quotas = [Quota(6, lambda p: p.id in ("p0", "p1")), Quota(10, lambda p: p.id in ("p2", "p3"))]
    options = {**OPTIONS, "quotas": quotas, "on_error": "skip", "seed": 5}
    with LightDL(data, **options) as loader:
        batches = []
        for _ in range(50):
            x, patients, chunks = next(loader)
            assert_true_to_place(x, chunks)
            assert sum(p.id in ("p0", "p1") for p in patients) == 6
            batches.append((x.numpy().copy(), [p.id for p in patients], chunks.origins.copy()))
        assert loader.stats().failed
        state = loader.state_dict()
        more = collect(loader, 5)
    again = LightDL(data, **options)
    again.load_state_dict(state)
    with again:
        assert_same_batches(collect(again, 5), more)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as c,
        Client(c) as client,
        LightDL(data, **options, client=client) as loader,
    ):
        assert_same_batches(collect(loader, 50), batches)


def test_a_quota_that_nothing_can_stand_in_for():
    data = with_broken_slide()
    array = data["p0"].record().array[1024:]
    alone = [Patient("p0", {"wsi": Record(array=array)}), *list(data)[1:]]
    quotas = [Quota(2, lambda p: p.id == "p0")]
    with (
        LightDL(Dataset("x", alone), **OPTIONS, quotas=quotas, on_error="skip") as loader,
        pytest.raises(LoaderError, match="no other one in memory belongs to the same quota"),
    ):
        for _ in range(20):
            next(loader)


@pytest.mark.cluster
def test_the_same_batches_in_processes_and_after_a_kill(annotated):
    options = {**OPTIONS, "labels": {"Tumor": 2, "Stroma": 6}, "target": "shapes"}
    options["target_classes"] = {"Tumor": 2, "Stroma": 1}
    with LightDL(annotated, **options) as loader:
        expected = collect(loader, 30)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        LightDL(annotated, **options, client=client) as loader,
    ):
        batches = collect(loader, 12)
        next(iter(cluster.workers.values())).process.process._process.kill()
        batches += collect(loader, 18)
    assert_same_batches(batches, expected)


@pytest.mark.parametrize(
    ("quotas", "error", "message"),
    [
        ([Quota(20)], UsageError, "ask for 20 small chunks of a batch of 16"),
        ([Quota(2, {"y": 7})], UsageError, "no record belongs to 'y=7'"),
        (["tumour"], UsageError, "sequence of daskdmed.Quota"),
        ([Quota(2, {"y": 0}), Quota(2, {"y": 1})], BudgetError, "shares need"),
    ],
)
def test_quotas_that_cannot_be(quotas, error, message):
    options = {**SMALL, "resident": "4 MiB"}
    with (
        pytest.raises(error, match=message),
        LightDL(coordinate_dataset(), **options, quotas=quotas) as loader,
    ):
        next(loader)


@pytest.mark.parametrize("share", [0, -1, 1.0, 1.5, "half", True])
def test_shares_that_are_none(share):
    with pytest.raises(UsageError, match="share of a quota"):
        Quota(share)
