"""Composition of batches: labels of patients, classes of annotations, lost big chunks."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import Dataset, LightDL, Patient, Quota, Record, read_annotations
from daskdmed.errors import BudgetError, LoaderError, UsageError
from daskdmed.persistence.areas import Places
from daskdmed.persistence.labelmaps import Classes
from daskdmed.policies import OnePass
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


# -- what can be drawn, and what cannot -----------------------------------------------------


def drawn(*features):
    text = json.dumps({"type": "FeatureCollection", "features": list(features)})
    return Record(annotations=read_annotations(text))


def dot(label, x, y):
    feature = square(label, 0, 0, 1)
    return {**feature, "geometry": {"type": "Point", "coordinates": [x, y]}}


def one_slide(*features, **more):
    image = Record(array=coordinate_array(1024, 1024))
    return Dataset("one", [Patient("p0", {"wsi": image, "shapes": drawn(*features)}, **more)])


def centres_of(dataset, batches=4, **options):
    with LightDL(dataset, **{**OPTIONS, **options}) as loader:
        return np.concatenate([centres(next(loader)[2]) for _ in range(batches)])


def every_centre(dataset, label):
    """Centres of all small chunks that may be drawn of a class."""
    loader = LightDL(dataset, **OPTIONS, labels=label)
    areas, (entry,) = loader._assembly.planning.areas, loader._catalogue.entries
    weights = areas.weights(0, Classes((label,)))
    regions = [entry.grid.region(k) for k in np.flatnonzero(weights)]
    found = [
        Places(areas.local(0, Classes((label,)), r), [r], (64, 64)).all()[:, 1:] for r in regions
    ]
    return np.concatenate(found) + 32


@pytest.mark.parametrize("at", [(508, 300), (512, 512), (32, 32), (992, 500), (448, 991)])
def test_a_point_near_the_edge_of_a_big_chunk_is_drawn(at):
    points = centres_of(one_slide(dot("mitosis", *at)), labels="mitosis")
    assert (np.abs(points - at[::-1]) <= 1).all()


@pytest.mark.parametrize("size", [(0.3, 0.3), (200, 0.01), (0.01, 90)])
def test_what_is_smaller_than_a_pixel_is_drawn_beside_what_is_not(size):
    """A shape that holds no pixel's centre, near a large one of the same class."""
    width, height = size
    x, y = 300.1, 700.1
    ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    tiny = square("a", 0, 0, 1)
    tiny["geometry"]["coordinates"] = [ring]
    points = every_centre(one_slide(tiny, square("a", 340, 760, 90)), "a")
    near = ((points >= (y - 1, x - 1)) & (points <= (y + height + 1, x + width + 1))).all(axis=1)
    assert near.any()
    assert (near | in_square(points, 340, 760, 90)).all()


def test_places_of_points_are_counted_so_that_no_visit_is_refused():
    data = one_slide(dot("a", 300, 500), dot("a", 301, 500), dot("a", 700, 700))
    areas = LightDL(data, **OPTIONS, labels="a")._assembly.planning.areas
    weights = areas.weights(0, Classes(("a",)))
    assert weights.sum() == 3
    rng = np.random.default_rng(0)
    assert all(
        areas.accepts(0, Classes(("a",)), k, rng) for k in np.flatnonzero(weights) for _ in range(9)
    )


def test_what_lies_too_near_to_the_edge_is_named_and_the_rest_is_drawn(caplog):
    features = [dot("a", 20, 500), dot("a", 500, 500), dot("a", -7, 500), square("a", 0, 900, 500)]
    points = centres_of(one_slide(*features), labels="a")
    shape = in_square(points, 0, 900, 500)
    assert (shape | (np.abs(points - 500) <= 1).all(axis=1)).all()
    (record,) = [r for r in caplog.records if "centred" in r.message]
    assert record.levelname == "WARNING"
    for said in (
        "class 'a'",
        "2 of the 4 do not",
        "'p0': annotation 0 lies 20 level-0 pixels from the edge",
        "annotation 2 lies 7 level-0 pixels outside the edge of the slide",
        "smallchunk_size",
    ):
        assert said in record.message


@pytest.mark.parametrize("form", ["labels", "quotas"])
def test_a_class_that_cannot_be_drawn_at_all_is_an_error_at_once(form):
    asked = {"labels": "a"} if form == "labels" else {"quotas": [Quota(2, labels="a")]}
    with pytest.raises(UsageError, match=r"'a'.*none of the 1: patient 'p0': annotation 0 lies 20"):
        LightDL(one_slide(dot("a", 20, 500), dot("b", 500, 500)), **OPTIONS, **asked)
    at_an_edge = one_slide(dot("a", 508, 500))
    with pytest.raises(UsageError, match="edge between two big chunks"):
        LightDL(at_an_edge, **OPTIONS, **asked, policy=OnePass())
    with pytest.raises(UsageError, match=r"none of 1 patients has an annotation of 'A'.*'a' meant"):
        LightDL(at_an_edge, **OPTIONS, labels="A")


def test_a_volume_or_padded_image_is_measured_as_it_is():
    small = Record(array=coordinate_array(50, 200))
    data = Dataset("x", [Patient("p0", {"wsi": small, "shapes": drawn(dot("a", 90, 32))})])
    points = centres_of(data, labels="a", pad=True)
    assert (np.abs(points - (32, 90)) <= 1).all()


# -- slides that nobody annotated -----------------------------------------------------------


def with_normal(*records):
    """One slide with tumour, and normal ones that have no annotations."""
    image = [Record(array=coordinate_array(number=i)) for i in range(3)]
    tumour = {"wsi": image[0], "shapes": drawn(square("Tumor", 300, 300, 600))}
    normal = [Patient(f"p{i}", {"wsi": image[i]}) for i in (1, 2)]
    return Dataset("camelyon", [Patient("p0", tumour), *normal])


@pytest.mark.parametrize("name", [None, "shapes"])
def test_slides_without_annotations_serve_the_rest(name):
    quotas = [Quota(0.5, labels="Tumor")]
    with LightDL(with_normal(), **OPTIONS, quotas=quotas, annotations=name) as loader:
        seen = Counter()
        for _ in range(12):
            _, patients, chunks = next(loader)
            inside = in_square(centres(chunks), 300, 300, 600)
            assert np.count_nonzero(inside & np.array([p.id == "p0" for p in patients])) >= 8
            seen.update(p.id for p in patients)
    assert set(seen) == {"p0", "p1", "p2"}
    with LightDL(with_normal(), **OPTIONS, labels="Tumor", annotations=name) as loader:
        assert {p.id for _ in range(3) for p in next(loader)[1]} == {"p0"}


def test_a_record_of_annotations_that_nobody_has_is_misspelt():
    with pytest.raises(
        UsageError, match=r"none of 3 patients has the record 'shape'.*'shapes' mean"
    ):
        LightDL(with_normal(), **OPTIONS, labels="Tumor", annotations="shape")
    with pytest.raises(UsageError, match="'wsi' holds no annotations"):
        LightDL(with_normal(), **OPTIONS, labels="Tumor", annotations="wsi")
    with pytest.raises(UsageError, match="0 records with annotations"):
        LightDL(with_normal()[1:], **OPTIONS, labels="Tumor")
    two = one_slide(square("a", 100, 100, 300))["p0"]
    both = Patient("p0", {**two.records, "more": two.records["shapes"]})
    with pytest.raises(UsageError, match=r"2 records with annotations \(shapes, more\)"):
        LightDL(Dataset("x", [both]), **OPTIONS, labels="a")


def test_annotations_that_cannot_be_read_are_told_once(tmp_path):
    path = tmp_path / "bad.geojson"
    path.write_text("{")
    bad = Patient("p9", {"wsi": Record(array=coordinate_array()), "shapes": Record(path)})
    data = Dataset("x", [*with_normal(), bad])
    with pytest.raises(LoaderError, match=r"'p9'.*not complete JSON"):
        LightDL(data, **OPTIONS, labels="Tumor")
    with LightDL(data, **OPTIONS, labels="Tumor", on_error="skip") as loader:
        assert {p.id for _ in range(3) for p in next(loader)[1]} == {"p0"}
        assert [f.patient for f in loader.stats().failed] == ["p9"]


@pytest.mark.parametrize("value", [None, float("nan"), np.float32("nan")])
def test_a_quota_of_those_without_a_label(value):
    data = Dataset(
        "x", [Patient(p.id, p.records, {"y": value if p.id == "p1" else 1}) for p in with_normal()]
    )
    assert data.labels("y", "none") == [1, "none", 1]
    with LightDL(data, **OPTIONS, quotas=[Quota(4, {"y": value}), Quota(12, {"y": 1})]) as loader:
        assert sum(p.id == "p1" for p in next(loader)[1]) == 4
