"""Results copied to OME-Zarr of either version, and the format chosen by the file's name."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import zarr

import daskdmed
from daskdmed import heatmap
from daskdmed.cohort.record import Record
from daskdmed.errors import GeometryError, StoreError, UsageError
from daskdmed.store.export.heatmaps import export_heatmap, export_ome_zarr
from daskdmed.store.ngff.pyramid import add_pyramid
from daskdmed.store.results.finished import open_heatmap
from daskdmed.store.results.georeference import Georeference
from tests.store.ngff.test_pyramid import napari_layers


def pair(windows):
    first = windows.reshape(len(windows), -1)[:, 0].astype(np.float32)
    return np.stack([first, -first], 1)


@pytest.fixture(params=["plane", "vectors", "volume"])
def stored(request, tmp_path):
    out = tmp_path / "a.zarr"
    shape = (24, 60, 96) if request.param == "volume" else (600, 900)
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    kernel = (2, 3, 3) if request.param == "volume" else 10
    model = pair if request.param == "vectors" else lambda w: pair(w)[:, 0]
    heatmap(Record(array=image, mpp=0.5), model, kernel_size=kernel, out=out)
    return out


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_copy_in_either_version(stored, tmp_path, version):
    models = pytest.importorskip(f"ome_zarr_models.v{version.replace('.', '')}")
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    copy = tmp_path / "copy.ome.zarr"
    export_ome_zarr(stored, copy, version=version, smallest=16)
    image = models.Image.from_zarr(zarr.open_group(copy, mode="r"))
    attributes = image.ome_attributes if version == "0.5" else image.attributes
    levels = len(attributes.multiscales[0].datasets)
    add_pyramid(stored, smallest=16)
    here, there = zarr.open_group(copy, mode="r"), zarr.open_group(stored, mode="r")
    assert here.metadata.zarr_format == (2 if version == "0.4" else 3)
    assert levels > 1
    (node,) = list(Reader(parse_url(str(copy)))())
    for level in range(levels):
        np.testing.assert_array_equal(here[str(level)][...], there[str(level)][...])
        np.testing.assert_array_equal(np.asarray(node.data[level]), there[str(level)][...])
    assert open_heatmap(copy).georeference == open_heatmap(stored).georeference
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "copy.ome.zarr"]


def test_napari_reads_the_old_version_too(stored, tmp_path):
    export_ome_zarr(stored, tmp_path / "b.zarr", version="0.4", smallest=16)
    (layer,) = napari_layers(tmp_path / "b.zarr")
    assert layer[0] == "image"
    assert len(layer[1]) > 1


def test_copies_of_arrays_and_to_urls(tmp_path):
    import fsspec

    place = Georeference((4, 4), (4, 4), (1.0, 1.0), (0.5, 0.5))
    values = np.random.default_rng(0).random((3, 300, 400)).astype(np.float32)
    url = "memory://exports/a.zarr"
    for _ in range(2):
        export_ome_zarr(values, url, georeference=place, overwrite=True)
        np.testing.assert_array_equal(zarr.open_group(url, mode="r")["0"][...], values)
    with pytest.raises(StoreError, match="overwrite=True"):
        export_ome_zarr(values, url, georeference=place)
    fsspec.filesystem("memory").rm("/exports", recursive=True)
    export_ome_zarr(
        values, tmp_path / "a.zarr", georeference=place, channels=["a", "b", "c"], window=(0, 1)
    )
    names = zarr.open_group(tmp_path / "a.zarr").attrs["ome"]["omero"]["channels"]
    assert [c["label"] for c in names] == ["a", "b", "c"]


def test_a_copy_that_fails_leaves_nothing_half(stored, tmp_path, monkeypatch):
    out = tmp_path / "b.zarr"
    export_ome_zarr(stored, out, smallest=16)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    put, left = zarr.storage.LocalStore.set, iter(range(4))

    async def limited(store, key, value):
        if next(left, None) is None:
            raise OSError(28, os.strerror(28))
        return await put(store, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", limited)
        with pytest.raises(StoreError, match="disk is full"):
            export_ome_zarr(stored, out, smallest=16, overwrite=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    export_ome_zarr(stored, out, overwrite=True)
    assert not (tmp_path / ".b.zarr.new").exists()


def test_the_name_says_the_format(tmp_path):
    out = tmp_path / "a.zarr"
    lazy = heatmap(np.ones((60, 90)), lambda w: w.mean(axis=(1, 2)), kernel_size=10, out=out)
    pytest.importorskip("shapely")
    daskdmed.export_heatmap(lazy, tmp_path / "a.tif", dtype="float32")
    export_heatmap(out, tmp_path / "a.geojson", thresholds=0.5, smooth=False)
    export_heatmap(out, tmp_path / "b.geojson", kind="tiles", extent="cell")
    export_heatmap(out, str(tmp_path / "c.ome.zarr/"), version="0.4")
    kinds = [
        json.loads((tmp_path / f"{n}.geojson").read_text())["features"][0]["properties"][
            "objectType"
        ]
        for n in "ab"
    ]
    assert kinds == ["annotation", "tile"]
    for name, options, match in (
        ("a.png", {}, "plot.overlay"),
        ("a", {}, "says no format"),
        ("x.tif", {"kind": "tiles"}, "is for .geojson"),
        ("x.geojson", {"kind": "cells"}, "kind must be"),
        ("x.geojson", {"cmap": "magma"}, "export_contours has no option cmap; it has .*smooth"),
        ("x.tif", {"thresholds": 1}, "no option thresholds"),
    ):
        with pytest.raises(UsageError, match=match):
            export_heatmap(out, tmp_path / name, **options)
    with pytest.raises(StoreError, match="overwrite=True"):
        export_heatmap(out, tmp_path / "a.tif")
    line = Georeference((4,), (4,), (1.0,))
    with pytest.raises(GeometryError, match="two or three axes"):
        export_ome_zarr(np.ones(5), tmp_path / "l.zarr", georeference=line)
