"""SpatialData opens its images. The files are laid out as spatialdata 0.7 writes them."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from daskdmed.core.region import Region
from daskdmed.errors import UnsupportedImageError, UsageError
from daskdmed.images.ngff import ZarrBackend
from daskdmed.images.opening import open_slide
from daskdmed.testing import BackendConformance


def image(height, width, channels, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, (channels, height, width)).astype(dtype)


def write(root, path, levels, names=(), label=False):
    """One element: levels (c, y, x), or (y, x) of labels."""
    group = root.create_group(path)
    axes = [{"name": "c", "type": "channel"}] if levels[0].ndim == 3 else []
    axes += [{"name": n, "type": "space"} for n in "yx"]
    datasets = []
    for i, level in enumerate(levels):
        chunks = (*level.shape[:-2], 64, 64)
        array = group.create_array(f"s{i}", shape=level.shape, chunks=chunks, dtype=level.dtype)
        array[...] = level
        scale = [1.0] * (level.ndim - 2) + [2.0**i, 2.0**i]
        datasets.append(
            {"path": f"s{i}", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    units = [{**axis, "unit": "unit"} if axis["type"] == "space" else axis for axis in axes]
    system = {"axes": units, "name": "global"}
    to_global = {"type": "identity", "input": {"axes": units, "name": "cyx"}, "output": system}
    ome = {
        "version": "0.5-dev-spatialdata",
        "multiscales": [
            {
                "name": f"/{path}",
                "axes": axes,
                "datasets": datasets,
                "coordinateTransformations": [to_global],
            }
        ],
        "omero": {"channels": [{"label": name} for name in names]},
    }
    if label:
        ome["image-label"] = {"version": "0.5-dev-spatialdata"}
    kind = "labels" if label else "raster"
    group.attrs.update({"ome": ome, "spatialdata_attrs": {"version": "0.3"}, "kind": kind})


def root_of(path):
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs["spatialdata_attrs"] = {"version": "0.2", "spatialdata_software_version": "0.7.3"}
    return root


@pytest.fixture
def two(tmp_path):
    root = root_of(tmp_path / "sdata.zarr")
    he = [image(120, 150, 3, np.uint8), image(60, 75, 3, np.uint8, 1)]
    write(root, "images/he", he, "rgb")
    morphology = [image(90, 100, 2, np.uint16)]
    write(root, "images/morphology", morphology, ("DAPI", "CD3"))
    cells = [np.random.default_rng(0).integers(0, 900, (120, 150)).astype(np.int32)]
    write(root, "labels/cells", cells, label=True)
    root.create_group("tables/table")
    root.create_group("shapes/nuclei")
    return tmp_path / "sdata.zarr", {"he": he, "morphology": morphology, "labels/cells": cells}


class TestSpatialData(BackendConformance):
    backend = ZarrBackend()

    def make(self, tmp_path):
        levels = [image(120, 150, 3, np.uint8), image(60, 75, 3, np.uint8, 1)]
        write(root_of(tmp_path / "sdata.zarr"), "images/he", levels)
        return str(tmp_path / "sdata.zarr"), [np.moveaxis(level, 0, -1) for level in levels]

    def make_missing(self, tmp_path):
        return str(tmp_path / "missing.zarr")


def test_images_by_name(two, caplog):
    path, elements = two
    with open_slide(path) as slide:
        assert slide.images == ("he", "morphology")
        assert slide.dimensions == (150, 120)
        assert slide.level_count == 2
        assert slide.mpp is None
    assert "image= chooses" in caplog.text
    with open_slide(path, image="morphology") as slide:
        assert slide.channels == ("DAPI", "CD3")
        got = slide.read_region((0, 0), 0, slide.dimensions)
        assert np.array_equal(got, np.moveaxis(elements["morphology"][0], 0, -1))


def test_label_maps_are_opened_when_they_are_named(two):
    path, elements = two
    with open_slide(path, image="labels/cells") as slide:
        assert slide.is_labels
        view = slide.view()
        got = view.read(Region.of(view.spatial_shape))
        assert np.array_equal(got[..., 0], elements["labels/cells"][0])
    with pytest.raises(UsageError, match="labels/cells"):
        open_slide(path, image="nuclei")


def test_without_images(tmp_path):
    root = root_of(tmp_path / "a.zarr")
    root.create_group("tables/table")
    with pytest.raises(UnsupportedImageError, match="no image"):
        open_slide(tmp_path / "a.zarr")
    cells = [np.zeros((20, 30), np.int32)]
    write(root, "labels/cells", cells, label=True)
    with pytest.raises(UnsupportedImageError, match="labels/cells"):
        open_slide(tmp_path / "a.zarr")


def test_a_changed_image_changes_the_fingerprint(two):
    path, _ = two
    before = ZarrBackend().fingerprint(str(path))
    root = zarr.open_group(path, mode="a")
    del root["images/morphology"]
    write(root, "images/morphology", [image(90, 100, 2, np.uint16, 5)])
    assert ZarrBackend().fingerprint(str(path)) != before
