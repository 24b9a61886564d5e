"""Records and patients: what they accept, how they compare, and which image they give."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

from daskdmed.cohort import Dataset, Patient, Record
from daskdmed.core.frozen import FrozenMapping
from daskdmed.core.region import Region
from daskdmed.errors import (
    DatasetError,
    GeometryError,
    ImageNotFoundError,
    ResolutionError,
    UsageError,
)
from daskdmed.persistence.policy import LabelBalanced, Situation


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)


def test_exactly_one_of_uri_and_array(pixels: np.ndarray) -> None:
    with pytest.raises(DatasetError, match="neither"):
        Record()
    with pytest.raises(DatasetError, match=r"both.*a\.svs"):
        Record("a.svs", array=pixels)
    with pytest.raises(DatasetError, match="empty"):
        Record("")
    with pytest.raises(DatasetError, match=r"Record\(array=x\)"):
        Record(pixels)


def test_a_record_of_a_file_is_a_value() -> None:
    record = Record(Path("folder/a.svs"), mpp=0.5, facts={"stain": "H&E", "year": np.int64(2020)})
    assert record.uri == "folder/a.svs"
    assert record.mpp == (0.5, 0.5)
    assert type(record.facts["year"]) is int
    twin = pickle.loads(pickle.dumps(record))
    assert twin == record
    assert hash(twin) == hash(record)
    assert len({twin, record}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.uri = "b.svs"
    assert Record("a.svs") != Record("b.svs")
    assert Record("a.svs").key != Record("a.svs", backend="openslide").key
    # the same file at another scale: the same pixels at a level, another record
    assert Record("a.svs").key == Record("a.svs", mpp=0.25).key
    assert Record("a.svs") != Record("a.svs", mpp=0.25)


def test_keys_are_the_same_in_another_process(pixels: np.ndarray, tmp_path: Path) -> None:
    zarr.save_array(tmp_path / "a.zarr", np.zeros((64, 64), np.uint8))
    code = (
        "import numpy as np, zarr, sys; from daskdmed import Record;"
        "x = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8);"
        "z = zarr.open_array(sys.argv[1], mode='r');"
        "print(Record('x/a.svs').key, Record(array=x).key, Record(array=z).key)"
    )
    path = str(tmp_path / "a.zarr")
    out = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    here = [
        Record("x/a.svs").key,
        Record(array=pixels).key,
        Record(array=zarr.open_array(path)).key,
    ]
    assert out.stdout.split() == here
    assert len(set(here)) == 3


def test_arrays_of_every_kind_become_lazy(pixels: np.ndarray, tmp_path: Path) -> None:
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=(300, 200, 3), chunks=(64, 64, 3), dtype="u1"
    )
    stored[:] = pixels
    for array in (pixels, stored, da.from_array(pixels, chunks=100)):
        record = Record(array=array)
        assert isinstance(record.array, da.Array)
        view = record.view()
        assert view.shape == (300, 200, 3)
        assert view.spatial_ndim == 2
        region = Region((10, 20), (30, 40))
        np.testing.assert_array_equal(view.read(region), pixels[10:40, 20:60])
        twin = pickle.loads(pickle.dumps(record))
        assert twin == record
        assert hash(twin) == hash(record)
    assert Record(array=pixels) == Record(array=pixels.copy())
    assert Record(array=pixels) != Record(array=255 - pixels)
    with pytest.raises(DatasetError, match=r"builtins\.list"):
        Record(array=[[1, 2], [3, 4]])
    with pytest.raises(DatasetError, match=r"shape \(5,\)"):
        Record(array=np.zeros(5))
    with pytest.raises(DatasetError, match="backend"):
        Record(array=pixels, backend="tiff")


def test_zarr_chunks_are_whole_storage_chunks(tmp_path: Path) -> None:
    stored = zarr.create_array(tmp_path / "a", shape=(9000, 9000), chunks=(512, 512), dtype="u1")
    lazy = Record(array=stored).array
    assert all(c % 512 == 0 for c in lazy.chunks[0][:-1])
    assert 1 < lazy.npartitions < 100


def test_the_resolution_of_an_array(pixels: np.ndarray) -> None:
    record = Record(array=pixels, mpp=(0.5, 0.25))
    assert record.view(mpp=(0.5, 0.25)).mpp == (0.5, 0.25)
    for wrong in ({"level": 1}, {"mpp": 1.0}, {"power": 20}):
        with pytest.raises(ResolutionError, match="array"):
            record.view(**wrong)
    with pytest.raises(ResolutionError, match="no mpp"):
        Record(array=pixels).view(mpp=0.5)
    with pytest.raises(ResolutionError, match="exclude"):
        record.view(mpp=0.5, power=20)
    with pytest.raises(ResolutionError, match="positive"):
        Record("a.svs", mpp=-1)


def test_volumes() -> None:
    volume = np.zeros((20, 30, 40), np.int16)
    assert Record(array=volume).view(spatial_ndim=3).shape == (20, 30, 40)
    record = Record(array=volume, spatial_ndim=3)
    assert record.view().spatial_ndim == 3
    with pytest.raises(DatasetError, match="asked for 2"):
        record.view(spatial_ndim=2)
    with pytest.raises(DatasetError, match="spatial_ndim=4"):
        Record(array=volume, spatial_ndim=4)
    with pytest.raises(GeometryError):
        Record(array=np.zeros((2, 3, 4, 5), np.uint8)).view()
    with pytest.raises(ImageNotFoundError, match=r"a\.svs"):
        Record("a.svs").view(spatial_ndim=3)


def test_open_names_the_file(tmp_path: Path, pixels: np.ndarray) -> None:
    pytest.importorskip("daskdmed.images.slide")
    with pytest.raises(ImageNotFoundError, match=r"missing\.svs"):
        Record(tmp_path / "missing.svs").open()
    with pytest.raises(DatasetError, match="is an array"):
        Record(array=pixels).open()


def test_patients_are_values() -> None:
    patient = Patient("p1", {"wsi": Record("a.svs", name="other")}, {"grade": np.float32(0.5)})
    assert patient.record().name == "wsi"
    assert type(patient.labels["grade"]) is float
    twin = pickle.loads(pickle.dumps(patient))
    assert twin == patient
    assert hash(twin) == hash(patient)
    assert patient != Patient("p1", {"wsi": Record("a.svs")}, {"grade": 1})
    assert Patient(1, {"wsi": Record("a.svs")}) == Patient("1", {"wsi": Record("a.svs")})
    assert Patient(np.int32(7), {"wsi": Record("a.svs")}).id == 7
    with pytest.raises(TypeError):
        patient.labels["grade"] = 3
    with pytest.raises(AttributeError):
        patient.labels._items = {}


def test_a_label_may_be_an_array_or_nan() -> None:
    def build() -> Patient:
        return Patient("p", {"wsi": Record("a.svs")}, {"soft": np.ones(3), "grade": float("nan")})

    assert build() == build()
    assert pickle.loads(pickle.dumps(build())) == build()


@pytest.mark.parametrize("wrong", ["", None, 1.5, True, b"p"])
def test_ids_are_texts_or_integers(wrong: object) -> None:
    with pytest.raises(DatasetError, match="id"):
        Patient(wrong, {"wsi": Record("a.svs")})


def test_patients_need_records() -> None:
    with pytest.raises(DatasetError, match="no records"):
        Patient("p", {})
    with pytest.raises(DatasetError, match=r"wrap it as Record\(uri\)"):
        Patient("p", {"wsi": "a.svs"})
    with pytest.raises(DatasetError, match="no records"):
        Patient("p", [Record("a.svs")])


def test_which_record() -> None:
    a, b = Record("a.svs"), Record("b.svs")
    assert Patient("p", {"he": a}).record().uri == "a.svs"
    assert Patient("p", {"mask": b, "wsi": a}).record().uri == "a.svs"
    assert Patient("p", {"mask": b, "wsi": a}).record("mask").uri == "b.svs"
    with pytest.raises(DatasetError, match=r"2 records.*\['he', 'ihc'\]"):
        Patient("p", {"he": a, "ihc": b}).record()
    with pytest.raises(DatasetError, match=r"no record 'x'.*\['he'\]"):
        Patient("p", {"he": a}).record("x")


def test_frozen_mapping_behaves_as_a_mapping() -> None:
    mapping = FrozenMapping({"b": 1, "a": 2})
    assert list(mapping) == ["b", "a"]
    assert mapping == {"a": 2, "b": 1}
    assert pickle.loads(pickle.dumps(mapping)) == mapping
    assert repr(mapping) == "{'b': 1, 'a': 2}"


@pytest.mark.parametrize(
    "value", [None, float("nan"), np.float32("nan"), np.datetime64("NaT"), "pandas"]
)
def test_a_label_that_is_missing_is_no_label(value):
    """One rule for splits, tables and policies, whatever an empty cell is written as."""
    if value == "pandas":
        value = pytest.importorskip("pandas").NA
    known = Patient("a", {"x": Record("a.svs")}, {"y": 0, "z": "", "w": False})
    assert dict(known.labels) == {"y": 0, "z": "", "w": False}
    patient = Patient("b", {"x": Record("b.svs")}, {"y": value, "z": "s"})
    assert dict(patient.labels) == {"z": "s"}
    data = Dataset("d", [known, patient])
    assert data.labels("y", default=-1) == [0, -1]
    for call in (
        lambda: data.labels("y"),
        lambda: data.split([0.5, 0.5], by="y"),
        lambda: data.kfold(2, by=lambda p: value if p.id == "b" else 1),
    ):
        with pytest.raises(DatasetError, match="1 of 2 patients have no .*'b'"):
            call()
    situation = Situation(
        0, np.zeros(2), np.ones(2), np.ones(2), np.zeros(0), data.ids, [p.labels for p in data]
    )
    with pytest.raises(UsageError, match="'b' has no label 'y'"):
        LabelBalanced("y").admit(situation, np.random.default_rng(0))
