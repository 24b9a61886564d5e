"""``~`` and ``file:`` mean the same wherever a cohort takes a path."""

from __future__ import annotations

import json

import numpy as np
import pytest

from daskdmed import (
    Annotations,
    Dataset,
    Patient,
    Record,
    TissueMask,
    read_annotations,
    tissue_mask,
)
from daskdmed.cohort.annotations import PatchCoordinates
from daskdmed.errors import AnnotationError, DatasetError, StoreError, UsageError
from daskdmed.samples import make_slide

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "a.tif"
    make_slide(path, 256)
    return path


@pytest.fixture
def home(tmp_path, monkeypatch, slide):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.tif").symlink_to(slide)
    (tmp_path / "a.geojson").write_text(json.dumps(SQUARE))
    (tmp_path / "labels.csv").write_text("patient,y\na,1\n")
    return tmp_path


@pytest.fixture(params=["~", "file"])
def at(request, home):
    """A path below the home folder, written in one of two ways."""
    return (lambda name: f"~/{name}") if request.param == "~" else (lambda n: f"file://{home}/{n}")


def test_folders_and_labels(at, home):
    data = Dataset.from_folder(at("slides"), labels=at("labels.csv"))
    assert [(p.id, p.labels["y"], p.record().uri) for p in data] == [
        ("a", 1, str(home / "slides" / "a.tif"))
    ]


def test_manifests(at, home):
    data = Dataset("d", [Patient("a", {"wsi": Record("~/slides/a.tif")})])
    for name in ("m.json", "m.csv"):
        data.to_manifest(at(name))
        assert "slides/a.tif" in (home / name).read_text()
        assert str(home) not in (home / name).read_text()  # below the manifest
        again = Dataset.from_manifest(at(name))
        assert again["a"].record().uri == str(home / "slides" / "a.tif")
    (home / "sub").mkdir()
    (home / "sub" / "m.csv").write_text("patient,uri\na,~/slides/a.tif\n")
    by_hand = Dataset.from_manifest(at("sub/m.csv"))["a"].record()
    assert by_hand.open().dimensions == (256, 256)


def test_annotations(at, home):
    table = read_annotations(at("a.geojson"))
    assert table.source == str(home / "a.geojson")
    assert Record(at("a.geojson")).annotations() == table
    table.to_geojson(at("b.geojson.gz"))
    assert read_annotations(at("b.geojson.gz")) == table
    (home / "a.geojson").write_text(json.dumps([SQUARE, SQUARE]))
    assert len(Record(at("a.geojson")).annotations()) == 2  # noticed


def test_masks_and_patches(at, home):
    mask = TissueMask(np.eye(8, dtype=bool), shape0=(256, 256))
    mask.save(at("m.npz"))
    assert TissueMask.load(at("m.npz")) == mask
    for place in ("m.npz", "m.npy"):
        np.save(home / "m.npy", np.eye(8, dtype=bool))
        found = tissue_mask(at("slides/a.tif"), method=at(place))
        np.testing.assert_array_equal(found.data, mask.data)
    pytest.importorskip("h5py")
    patches = PatchCoordinates([[0, 0]], 64, (64, 64), level=0)
    patches.write(at("p.h5"), "clam")
    assert PatchCoordinates.read(at("p.h5")) == patches


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda url: Dataset.from_folder("~/slides", labels=url), DatasetError),
        (lambda url: Dataset.from_manifest(f"{url}.csv"), DatasetError),
        (read_annotations, AnnotationError),
        (lambda url: Annotations().to_geojson(url), StoreError),
        (PatchCoordinates.read, AnnotationError),
        (TissueMask.load, UsageError),
    ],
)
def test_places_elsewhere_are_called_so(home, call, error):
    with pytest.raises(error, match=r"s3://bucket/a.*(local|manifest)"):
        call("s3://bucket/a")
