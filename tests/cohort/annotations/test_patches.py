"""Patch coordinates of CLAM and TRIDENT."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import Annotations
from daskdmed.cohort.annotations import Annotation, PatchCoordinates
from daskdmed.errors import AnnotationError, AnnotationNotFoundError, StoreError, UsageError

COORDS = np.array([[0, 0], [1024, 0], [512, 2048]])
TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "name": "slide",
    "savetodir": "out",
    "level0_width": 5000,
    "level0_height": 4000,
}
CLAM = {
    "patch_size": 256,
    "patch_level": 1,
    "downsample": (4.0, 4.0001),
    "downsampled_level_dim": (1250, 1000),
    "level_dim": (1250, 1000),
    "name": "slide",
    "save_path": "out",
}


def store(path: Path, coords, attributes, **others) -> Path:
    """As both programs write it: attributes on the dataset."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("coords", data=coords)
        for key, value in attributes.items():
            data.attrs[key] = value
        for key, value in others.items():
            file.create_dataset(key, data=value)
    return path


def test_reading_trident(tmp_path: Path) -> None:
    patches = PatchCoordinates.read(store(tmp_path / "a.h5", COORDS, TRIDENT))
    np.testing.assert_array_equal(patches.coords, COORDS)
    assert patches.coords.dtype == np.int64
    assert not patches.coords.flags.writeable
    assert (patches.patch_size, patches.size0, patches.level) == (256, (512, 512), None)
    assert (patches.power0, patches.power, patches.extent0) == (40, 20, (5000, 4000))
    assert (patches.name, patches.overlap) == ("slide", 0)
    assert dict(patches.attributes) == {"savetodir": "out"}
    assert pickle.loads(pickle.dumps(patches)) == patches


def test_reading_clam(tmp_path: Path) -> None:
    path = store(tmp_path / "a.h5", COORDS.astype(np.int32), CLAM, features=np.zeros((3, 8)))
    patches = PatchCoordinates.read(path)
    assert (patches.patch_size, patches.level) == (256, 1)
    assert patches.size0 == (1024.0, 256 * 4.0001)
    assert dict(patches.attributes) == {"save_path": "out"}
    zero = {"patch_size": 224, "patch_level": 0, "level_dim": (3000, 3000)}
    patches = PatchCoordinates.read(store(tmp_path / "b.h5", COORDS.astype(float), zero))
    assert (patches.size0, patches.extent0) == ((224, 224), (3000, 3000))
    # TRIDENT's features have a leading axis of one
    store(tmp_path / "c.h5", COORDS, TRIDENT, features=np.zeros((1, 3, 8)))
    assert len(PatchCoordinates.read(tmp_path / "c.h5")) == 3


coordinates = st.lists(st.tuples(*[st.integers(0, 3000)] * 2), max_size=5)


@settings(max_examples=30)
@given(coordinates, st.sampled_from([224, 256, 512]), st.sampled_from(["trident", "clam"]))
def test_round_trip(tmp_path_factory, coords, size, format) -> None:
    path = tmp_path_factory.mktemp("h5") / "a.h5"
    coords = np.array(coords, np.int64).reshape(-1, 2)
    facts = {"power0": 40.0, "power": 20.0} if format == "trident" else {"level": 1}
    extent = (6000, 6000) if format == "trident" else None
    patches = PatchCoordinates(
        coords, size, (size * 2, size * 2), extent0=extent, name="s", **facts
    )
    patches.write(path, format)
    assert PatchCoordinates.read(path) == patches
    with h5py.File(path) as file:
        assert file["coords"].dtype == np.int64
        assert file["coords"].shape == coords.shape
        wanted = set(TRIDENT if format == "trident" else CLAM)
        optional = {"savetodir", "save_path", "level_dim", "downsampled_level_dim"}
        assert set(file["coords"].attrs) >= wanted - optional
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"]


def test_boxes_and_back() -> None:
    patches = PatchCoordinates(COORDS, 256, 512, level=1, name="s")
    table = patches.to_annotations("tile")
    assert len(table) == 3
    assert table.labels == ("tile",)
    assert {a.kind for a in table} == {"tile"}
    assert table[2].geometry.bounds == (512, 2048, 1024, 2560)
    again = PatchCoordinates.from_annotations(table, 256, level=1, name="s")
    assert again == patches
    triangle = Annotations([Annotation(shapely.Polygon([(0, 0), (512, 0), (0, 512)]))])
    other = Annotations([Annotation(shapely.box(0, 0, 100, 512))])
    half = Annotations([Annotation(shapely.box(0.5, 0, 512.5, 512))])
    for wrong in (triangle, other, Annotations([Annotation(shapely.Point(3, 3))])):
        with pytest.raises(AnnotationError, match="annotation 3 is no box") as caught:
            PatchCoordinates.from_annotations(table + wrong, 256)
        assert caught.value.index == 3
    with pytest.raises(AnnotationError, match="whole numbers"):
        PatchCoordinates.from_annotations(half, 256)
    with pytest.raises(AnnotationError, match="no box"):
        PatchCoordinates.from_annotations(Annotations(), 256)


@pytest.mark.parametrize(
    ("coords", "attributes", "cause"),
    [
        (COORDS, {k: v for k, v in TRIDENT.items() if k != "patch_size"}, "'patch_size'"),
        (COORDS, {**TRIDENT, "patch_size_level0": 300}, "covers 512 .* says 300"),
        (COORDS, {**TRIDENT, "target_magnification": 0}, "positive"),
        (COORDS, {**TRIDENT, "patch_size": "big"}, "no number"),
        (COORDS, {**TRIDENT, "patch_size": -5, "patch_size_level0": -10}, "must be positive"),
        (COORDS, {**TRIDENT, "patch_size_level0": float("nan")}, "no number"),
        (COORDS, {**TRIDENT, "level0_width": 600}, r"patch 1 at \(1024, 0\) lies outside"),
        (COORDS - 5000, TRIDENT, "patch 0 at .* lies outside"),
        (COORDS[:, :1], TRIDENT, r"\(n, 2\), here \(3, 1\)"),
        (COORDS.ravel(), TRIDENT, r"\(n, 2\), here \(6,\)"),
        (COORDS + 0.5, TRIDENT, "whole numbers"),
        (COORDS * np.nan, TRIDENT, "whole numbers"),
        (COORDS, {"patch_size": 256}, "'patch_level'"),
        (COORDS, {"patch_size": 256, "patch_level": 2}, "without the attribute 'downsample'"),
        (COORDS, {**CLAM, "downsample": (0.0, 1.0)}, "contradict"),
        (COORDS, {**CLAM, "patch_level": 0}, "contradict"),
        (COORDS, {**CLAM, "downsample": "x"}, "'downsample' is not"),
        (COORDS, {**CLAM, "custom_downsample": 2}, "custom_downsample"),
        (COORDS * 100, CLAM, "lies outside"),
    ],
)
def test_files_that_contradict_themselves(tmp_path: Path, coords, attributes, cause) -> None:
    path = store(tmp_path / "bad.h5", coords, attributes)
    with pytest.raises(AnnotationError, match=cause) as caught:
        PatchCoordinates.read(path)
    assert str(path) in str(caught.value)
    assert caught.value.uri == str(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="features of shape"):
        PatchCoordinates.read(store(tmp_path / "a.h5", COORDS, TRIDENT, features=np.zeros((4, 8))))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_group("coords")
    with pytest.raises(AnnotationError, match="no dataset 'coords'"):
        PatchCoordinates.read(tmp_path / "b.h5")
    (tmp_path / "c.h5").write_bytes(b"not an HDF5 file at all")
    with pytest.raises(AnnotationError, match="cannot be read as HDF5"):
        PatchCoordinates.read(tmp_path / "c.h5")
    content = store(tmp_path / "d.h5", COORDS, TRIDENT).read_bytes()
    (tmp_path / "e.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(AnnotationError, match="cannot be read as HDF5"):
        PatchCoordinates.read(tmp_path / "e.h5")
    with pytest.raises(AnnotationNotFoundError):
        PatchCoordinates.read(tmp_path / "missing.h5")


def test_what_a_format_needs(tmp_path: Path) -> None:
    patches = PatchCoordinates(COORDS, 256, 512)
    with pytest.raises(AnnotationError, match="needs power0="):
        patches.write(tmp_path / "a.h5")
    with pytest.raises(AnnotationError, match="needs level="):
        patches.write(tmp_path / "a.h5", "clam")
    with pytest.raises(UsageError, match="format"):
        patches.write(tmp_path / "a.h5", "csv")
    facts = {"power0": 40, "power": 20, "extent0": (9000, 9000)}
    with pytest.raises(AnnotationError, match="square"):
        PatchCoordinates(COORDS, 256, (512, 511), **facts).write(tmp_path / "a.h5")
    with pytest.raises(AnnotationError, match="covers 512"):
        PatchCoordinates(COORDS, 256, 256, **facts).write(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        PatchCoordinates(COORDS, 256, 512, **facts).write(tmp_path / "file" / "a.h5")


def test_damaged_hdf5(tmp_path) -> None:
    path = tmp_path / "patches.h5"
    PatchCoordinates(COORDS, 256, 512, level=1, name="s").write(path, "clam")
    data = path.read_bytes()
    failed = 0
    for place in range(0, len(data) - 8, 97):  # whatever HDF5 makes of it
        path.write_bytes(data[:place] + b"\xff" * 8 + data[place + 8 :])
        try:
            PatchCoordinates.read(path)
        except AnnotationError as error:
            failed += "patches.h5" in str(error)
    assert failed > 5


def test_a_heap_of_texts_that_has_no_end(tmp_path) -> None:
    path = store(tmp_path / "slide.h5", COORDS, TRIDENT)
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    data[heap + 16 : heap + 64] = bytes(48)
    path.write_bytes(data)
    with pytest.raises(AnnotationError, match=r"slide\.h5.*object of 0 bytes"):
        PatchCoordinates.read(path)


def test_coordinates_that_are_only_claimed(tmp_path) -> None:
    """Chunks that were never written would be made up."""
    path = tmp_path / "patches.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("coords", (10**9, 2), "i8", chunks=(4096, 2))
        data.attrs.update(CLAM)
    with pytest.raises(AnnotationError, match=r"patches\.h5.*more than any slide"):
        PatchCoordinates.read(path)
