"""Label images: valid, as many levels as their image, names and colours."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr

import daskdmed
from daskdmed import heatmap
from daskdmed.cohort.record import Record
from daskdmed.errors import GeometryError, StoreError, UsageError
from daskdmed.samples import make_slide
from daskdmed.store.ngff.labels import argmax_labels, write_labels
from daskdmed.store.ngff.pyramid import add_pyramid
from daskdmed.store.ngff.reduction import reduce_block
from daskdmed.store.results.georeference import Georeference
from tests.store.ngff.test_pyramid import napari_layers


def three(windows):
    """Scores of three classes that differ from place to place."""
    mean = windows.reshape(len(windows), -1).mean(1)
    return np.stack([np.sin(mean / 50), np.cos(mean / 90), 0.2 + 0 * mean], 1)


@pytest.fixture
def stored(tmp_path):
    out = tmp_path / "a.ome.zarr"
    y, x = np.mgrid[:300, :420]
    mask = np.ones((10, 14))
    mask[2:5, 3:8] = 0
    record = Record(array=(y * 7 + x * 3).astype(np.float32), mpp=0.5)
    heatmap(record, three, kernel_size=10, out=out, block_windows=8, mask=mask)
    add_pyramid(out, smallest=10)
    return out


def expected(values):
    known = ~np.isnan(values).any(axis=0)
    return np.where(known, np.nan_to_num(values, nan=-9).argmax(0) + 1, 0)


def test_classes_of_a_result(stored):
    values = zarr.open_group(stored, mode="r")["0"][...]
    labels = argmax_labels(stored)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected(values))
    strict = argmax_labels(stored, threshold=0.9).compute()
    np.testing.assert_array_equal(strict > 0, np.nan_to_num(values, nan=-9).max(0) >= 0.9)
    place = Georeference((10, 10), (10, 10), (1.0, 1.0))
    one = daskdmed.store.results.finished.open_heatmap(values[0], place)
    with pytest.raises(UsageError, match="threshold"):
        argmax_labels(one)
    above = argmax_labels(one, threshold=0).compute()
    np.testing.assert_array_equal(above, np.nan_to_num(values[0], nan=-9) >= 0)


@pytest.mark.parametrize("source", ["dask", "numpy", "zarr"])
def test_labels_lie_on_their_image(stored, source):
    lazy = argmax_labels(stored)
    labels = lazy
    if source != "dask":
        labels = lazy.compute()
    if source == "zarr":
        labels = zarr.array(labels)
    write_labels(stored, labels, classes=["low", "high", "rest"], colors={2: "#FF8000"})
    group = zarr.open_group(stored, mode="r")
    found = group["labels/classes"]
    image = group.attrs["ome"]["multiscales"][0]
    ome = found.attrs["ome"]
    assert len(ome["multiscales"][0]["datasets"]) == len(image["datasets"]) == 4
    level = lazy.compute()
    for own, theirs in zip(ome["multiscales"][0]["datasets"], image["datasets"]):
        np.testing.assert_array_equal(found[own["path"]][...], level)
        assert found[own["path"]].shape == group[theirs["path"]].shape[1:]
        for mine, step in zip(
            own["coordinateTransformations"], theirs["coordinateTransformations"]
        ):
            kind = mine["type"]
            assert mine[kind] == pytest.approx(step[kind][1:])
        level = reduce_block(level, (2, 2), "mode")
    colors = {c["label-value"]: c["rgba"] for c in ome["image-label"]["colors"]}
    assert colors[0] == [0, 0, 0, 0]
    assert colors[2] == [255, 128, 0, 255]
    assert set(colors) == {0, 1, 2, 3}
    named = {p["label-value"]: p["class"] for p in ome["image-label"]["properties"]}
    assert named == {0: "background", 1: "low", 2: "high", 3: "rest"}


def test_validators_and_readers(stored):
    v05 = pytest.importorskip("ome_zarr_models.v05")
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    write_labels(stored, argmax_labels(stored), name="classes")
    write_labels(stored, argmax_labels(stored, threshold=0.5) > 0, name="mask")
    image = v05.Image.from_zarr(zarr.open_group(stored, mode="r"))
    assert sorted(image.labels.label_paths) == ["classes", "mask"]
    label = v05.ImageLabel.from_zarr(zarr.open_group(stored / "labels" / "classes", mode="r"))
    assert len(label.ome_attributes.multiscales[0].datasets) == 4
    nodes = list(Reader(parse_url(str(stored)))())
    shapes = [tuple(node.data[0].shape) for node in nodes if len(node.data)]
    assert shapes == [(3, 30, 42), (30, 42), (30, 42)]


def test_napari_shows_labels_over_the_image(stored):
    write_labels(stored, argmax_labels(stored))
    layers = napari_layers(stored)
    kinds = [layer[0] for layer in layers]
    assert kinds == ["image", "labels"]
    assert layers[1][1][0] == [30, 42]
    assert layers[1][2][-2:] == layers[0][2][-2:]


def test_labels_of_a_converted_slide(tmp_path):
    made = make_slide(tmp_path / "s.tif", (1100, 900), tile=128, levels=2)
    for version in ("0.5", "0.4"):
        out = tmp_path / f"{version}.ome.zarr"
        slide = daskdmed.open_slide(made.path).to_ome_zarr(out, version=version, pyramid="copy")
        assert slide.level_count == 2
        labels = da.from_array(np.repeat(np.repeat(made.class_map, made.cell, 0), made.cell, 1))
        write_labels(out, labels[:900, :1100], name="truth", classes=["benign", "tumour"])
        model = pytest.importorskip(f"ome_zarr_models.v{version.replace('.', '')}")
        image = model.Image.from_zarr(zarr.open_group(out, mode="r"))
        assert image.labels is not None
        group = zarr.open_group(out, mode="r")["labels/truth"]
        np.testing.assert_array_equal(group["0"][...], labels[:900, :1100])
        level = reduce_block(labels[:900, :1100].compute(), (4, 4), "mode")
        np.testing.assert_array_equal(group["1"][...], level)


def test_replacing(stored, monkeypatch):
    write_labels(stored, argmax_labels(stored))
    before = zarr.open_group(stored, mode="r")["labels/classes/0"][...]
    with pytest.raises(StoreError, match="overwrite=True"):
        write_labels(stored, argmax_labels(stored))
    with pytest.raises(UsageError, match="0 or larger"):
        write_labels(stored, np.full((30, 42), -1), overwrite=True)
    np.testing.assert_array_equal(zarr.open_group(stored)["labels/classes/0"][...], before)
    write_labels(stored, np.full((30, 42), 7, np.int32), overwrite=True)
    group = zarr.open_group(stored, mode="r")["labels"]
    assert (group["classes/0"][...] == 7).all()
    assert group.attrs["ome"]["labels"] == ["classes"]
    assert sorted(p.name for p in (stored / "labels").iterdir()) == ["classes", "zarr.json"]


def test_in_memory():
    store = zarr.storage.MemoryStore()
    heatmap(np.ones((40, 40)), three, kernel_size=10, out=store)
    write_labels(store, np.ones((4, 4), bool))
    assert (zarr.open_group(store, mode="r")["labels/classes/0"][...] == 1).all()


def test_wrong_labels(stored, tmp_path):
    good = np.zeros((30, 42), np.uint8)
    for arguments, error, match in (
        ({"labels": good[1:]}, GeometryError, r"\(29, 42\).*\(30, 42\)"),
        ({"labels": good.astype(float)}, UsageError, "integers or bool"),
        ({"labels": good, "name": "a/b"}, UsageError, "without slashes"),
        ({"labels": good, "name": ""}, UsageError, "one word"),
        ({"labels": good, "colors": ["red"]}, UsageError, "hexadecimal"),
        ({"labels": good, "classes": "tumour"}, UsageError, "a list or a mapping"),
    ):
        with pytest.raises(error, match=match):
            write_labels(stored, **arguments)
    with pytest.raises(StoreError, match="cannot open"):
        write_labels(tmp_path / "nothing.zarr", good)
