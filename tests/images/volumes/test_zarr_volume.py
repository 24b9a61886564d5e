"""Volumes over Zarr: axes in any order, time and channels, levels, and where they lie."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from daskdmed import Record, Space, heatmap, open_slide, open_volume, predict
from daskdmed.core.region import Region
from daskdmed.errors import CorruptImageError, TileError, UnsupportedImageError, UsageError
from daskdmed.images.ngff.metadata import Axis, LevelPlace, Multiscale
from daskdmed.images.protocols import VolumeOptions
from daskdmed.images.registry import get_backend
from daskdmed.testing import BackendConformance

BACKEND = get_backend("zarr-volume")
SHAPE = (12, 20, 24)
VALUES = np.random.default_rng(0).integers(0, 900, SHAPE).astype("u2")
HALF = VALUES.reshape(6, 2, 10, 2, 12, 2).mean((1, 3, 5)).astype("u2")


def write(path, levels, axes="zyx", version="0.5", letters="", unit="millimeter", chunk=8):
    """An OME-Zarr image of voxels of 3 x 1 x 0.5 units along z, y, x."""
    steps, first = {"z": 3.0, "y": 1.0, "x": 0.5}, {"z": -7.0, "y": 11.0, "x": 2.5}
    grows = dict(zip("zyx", letters))
    named = [Axis.named(n, unit if n in steps else None, grows.get(n)) for n in axes]
    places = []
    for number in range(len(levels)):
        factor = 2**number
        scale = tuple(steps.get(n, 1.0) * (factor if n in steps else 1) for n in axes)
        places.append(LevelPlace(str(number), scale, tuple(first.get(n, 0.0) for n in axes)))
    image = Multiscale(tuple(named), tuple(places), name="scan", version=version)
    group = zarr.open_group(
        path, mode="w", zarr_format=2 if version == "0.4" else 3, attributes=image.attributes()
    )
    for number, values in enumerate(levels):
        group.create_array(
            str(number), data=values, chunks=tuple(min(chunk, n) for n in values.shape)
        )
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx", "tczyx", "zyxc"])
def test_axes_in_any_order(tmp_path, axes, version):
    stored = VALUES.transpose(["zyx".index(a) for a in axes if a in "zyx"])
    for position, axis in enumerate(axes):
        if axis in "tc":
            stored = np.expand_dims(stored, position)
    volume = open_volume(write(tmp_path / "v.zarr", [stored], axes, version))
    assert (volume.shape, volume.channels, volume.backend) == (SHAPE, None, "zarr-volume")
    assert volume.spacing == (3, 1, 0.5)
    assert volume.space is None
    np.testing.assert_array_equal(volume.to_dask(chunks=10).compute(), VALUES)
    np.testing.assert_array_equal(volume.read((1, 2, 3), (7, 5, 4)), VALUES[1:8, 2:7, 3:7])


def test_time_points_and_channels(tmp_path):
    both = np.stack([np.stack([VALUES + 10 * t + c for c in range(2)]) for t in range(3)])
    path = write(tmp_path / "v.zarr", [both], "tczyx")
    with pytest.raises(UsageError, match="3 time points"):
        open_volume(path)
    with pytest.raises(UsageError, match="2 channels at 3 time points"):
        open_volume(path, time="channels")
    volume = open_volume(path, time=2)
    assert volume.channels == 2
    np.testing.assert_array_equal(volume.to_dask(chunks=10).compute(), np.moveaxis(both[2], 0, -1))
    times = open_volume(write(tmp_path / "t.zarr", [both[:, 0]], "tzyx"), time="channels")
    np.testing.assert_array_equal(times.to_dask().compute(), np.moveaxis(both[:, 0], 0, -1))


def test_units_and_levels(tmp_path):
    for unit, factor in {"micrometer": 0.001, "meter": 1000}.items():
        volume = open_volume(write(tmp_path / f"{unit}.zarr", [VALUES, HALF], unit=unit))
        assert volume.spacing == pytest.approx((3 * factor, factor, 0.5 * factor))
        assert [level.shape for level in volume.levels] == [(*SHAPE, 1), (*HALF.shape, 1)]
        np.testing.assert_array_equal(volume.to_dask(1).compute(), HALF)
    assert open_volume(write(tmp_path / "none.zarr", [VALUES], unit=None)).spacing is None


def test_anatomical_orientation(tmp_path):
    volume = open_volume(write(tmp_path / "v.zarr", [VALUES, HALF], letters="SPL"))
    expected = [[0, 0, -0.5, -2.5], [0, -1, 0, -11], [3, 0, 0, -7], [0, 0, 0, 1]]
    assert volume.space == Space(expected, SHAPE)
    assert volume.space.axcodes == "SPL"
    half = volume.view(level=1)
    assert half.space.spacing == (6, 2, 1)
    turned = open_volume(
        write(tmp_path / "t.zarr", [VALUES.transpose(2, 0, 1)], "xzy", letters="SPL")
    )
    assert turned.space == volume.space
    odd = open_volume(write(tmp_path / "odd.zarr", [VALUES], letters="SSL"))
    assert (odd.space, odd.spacing) == (None, (3, 1, 0.5))


def test_results_of_this_library(tmp_path):
    space = Space([[0.1, 0, -0.5, 9], [0, 2, 0.1, -5], [-4, 0, 0, 3], [0, 0, 0, 1]], SHAPE)
    record = Record(array=VALUES.astype("f4"), space=space)
    predict(
        record.view(spatial_ndim=3),
        lambda w: w + 1,
        kernel_size=(6, 10, 12),
        out=tmp_path / "p.zarr",
    )
    found = open_volume(tmp_path / "p.zarr")
    assert found.space.isclose(space, 1e-9)
    np.testing.assert_allclose(found.to_dask().compute(), VALUES + 1, rtol=1e-5)
    heatmap(
        record.view(spatial_ndim=3),
        lambda w: np.stack([w.reshape(len(w), -1).mean(-1)] * 2, -1),
        kernel_size=(6, 10, 12),
        out=tmp_path / "h.zarr",
    )
    cells = open_volume(tmp_path / "h.zarr")
    assert (cells.shape, cells.channels) == ((2, 2, 2), 2)
    np.testing.assert_allclose(
        cells.space.to_world((1, 0, 1)), space.to_world((8.5, 4.5, 17.5)), atol=1e-9
    )
    view = Record(tmp_path / "p.zarr").open(spatial_ndim=3).view(orientation="RAS")
    assert view.space.orientation == "RAS"


def test_plain_arrays(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=VALUES, chunks=(5, 6, 7))
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.levels[0].tile_shape == (5, 6, 7)
    np.testing.assert_array_equal(volume.to_dask(chunks=10).compute(), VALUES)
    zarr.create_array(
        tmp_path / "n.zarr", data=VALUES, dimension_names=["x", "y", "z"], chunks=(5, 6, 7)
    )
    named = open_volume(tmp_path / "n.zarr")
    assert named.levels[0].tile_shape == (7, 6, 5)
    np.testing.assert_array_equal(named.to_dask().compute(), VALUES.T)
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("one", data=VALUES)
    np.testing.assert_array_equal(open_volume(tmp_path / "g.zarr").to_dask().compute(), VALUES)
    group.create_array("deep/two", data=VALUES + 1)
    group.create_array("three", data=VALUES > 5)
    with pytest.raises(UsageError, match=r"2 arrays.*deep/two \(12, 20, 24\) uint16.*three"):
        open_volume(tmp_path / "g.zarr")
    record = Record(tmp_path / "g.zarr", dataset="deep/two")
    np.testing.assert_array_equal(record.view().read(Region.of(SHAPE)), VALUES + 1)
    with pytest.raises(UsageError, match="dataset='four' is not there.*three"):
        open_volume(tmp_path / "g.zarr", dataset="four")
    zarr.open_group(tmp_path / "e.zarr", mode="w").create_array("deep/two", data=VALUES)
    with pytest.raises(UnsupportedImageError, match=r"without arrays.*deep/two"):
        open_volume(tmp_path / "e.zarr")


@pytest.mark.parametrize(("fill", "background"), [(-1024, (-1024,)), (0, None), (None, None)])
def test_chunks_that_were_never_written(tmp_path, fill, background):
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=SHAPE,
        chunks=(4, 20, 24),
        dtype="i2",
        fill_value=fill,
        zarr_format=2,
    )
    array[:4] = 7
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.background == background
    found = volume.to_dask().compute()
    assert set(np.unique(found[:4])) == {7}
    assert set(np.unique(found[4:])) == {fill or 0}


def test_one_of_several_images(tmp_path):
    group = zarr.open_group(tmp_path / "b.zarr", mode="w")
    group.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    write(tmp_path / "b.zarr" / "0", [VALUES[:2]])
    write(tmp_path / "b.zarr" / "1", [VALUES], letters="SAR")
    assert open_volume(tmp_path / "b.zarr", series="0").shape == (2, 20, 24)
    assert open_volume(tmp_path / "b.zarr", series="1").space.axcodes == "SAR"
    assert open_volume(tmp_path / "b.zarr", dataset="1").space.axcodes == "SAR"
    with pytest.raises(UsageError, match="no series='7'"):
        open_volume(tmp_path / "b.zarr", series="7")


def test_a_dataset_that_changes_is_another_one(tmp_path):
    path = tmp_path / "g.zarr"
    group = zarr.open_group(path, mode="w")
    group.create_array("deep/two", data=VALUES)
    options = VolumeOptions(dataset="deep/two")
    before = BACKEND.fingerprint(str(path), options)
    assert BACKEND.fingerprint(str(path), options) == before
    facts = path / "deep" / "two" / "zarr.json"
    os.utime(facts, ns=(1, 1))
    assert BACKEND.fingerprint(str(path), options) != before


def test_zip_files(tmp_path):
    write(tmp_path / "v.zarr", [VALUES], letters="SAR")
    store = ZipStore(tmp_path / "v.zarr.zip", mode="w")
    group = zarr.open_group(
        store, mode="w", attributes=dict(zarr.open_group(tmp_path / "v.zarr").attrs)
    )
    group.create_array("0", data=VALUES, chunks=(5, 6, 7))
    store.close()
    volume = open_volume(tmp_path / "v.zarr.zip")
    assert volume.space.axcodes == "SAR"
    np.testing.assert_array_equal(volume.to_dask().compute(), VALUES)


def test_metadata_that_cannot_be_true(tmp_path):
    path = write(tmp_path / "v.zarr", [VALUES])
    group = zarr.open_group(path)
    good = dict(group.attrs)
    bad = {
        "malformed": {"ome": {"multiscales": [{"axes": 3, "datasets": []}]}},
        "no levels": {"ome": {"multiscales": [{"axes": [], "datasets": []}]}},
        "is missing": {
            "ome": {"multiscales": [{"axes": list("zyx"), "datasets": [{"path": "9"}]}]}
        },
        "has 3 dimensions": {
            "ome": {"multiscales": [{"axes": list("yx"), "datasets": [{"path": "0"}]}]}
        },
        "not an affine": {
            **good,
            "daskdmed": {
                "georeference": {"space": {"affine": np.zeros((4, 4)).tolist(), "shape": SHAPE}}
            },
        },
    }
    for message, attributes in bad.items():
        group.attrs.clear()
        group.attrs.update(attributes)
        with pytest.raises(CorruptImageError, match=message):
            open_volume(path)
    with pytest.raises(UnsupportedImageError, match="axis|axes"):
        open_volume(write(tmp_path / "odd.zarr", [VALUES], "zya"))
    with pytest.raises(UnsupportedImageError, match="voxels are numbers"):
        open_volume(write(tmp_path / "complex.zarr", [VALUES.astype("c8")]))
    zarr.create_array(tmp_path / "huge.zarr", shape=(4096,) * 3, chunks=(4096,) * 3, dtype="u1")
    with pytest.raises(UnsupportedImageError, match=r"takes 64.0 GiB"):
        open_volume(tmp_path / "huge.zarr")


def test_a_fill_value_that_the_type_cannot_hold(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("scan", data=VALUES)
    place = tmp_path / "a.zarr" / "scan" / ".zarray"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"fill_value": -(2**31)}))
    with pytest.raises(CorruptImageError, match=r"a\.zarr.*out.of.bound"):
        open_volume(tmp_path / "a.zarr")
    with pytest.raises(CorruptImageError, match=r"a\.zarr.*out.of.bound"):
        open_slide(tmp_path / "a.zarr", backend="zarr")


def test_a_volume_opened_as_a_slide_is_its_first_plane_and_says_how(tmp_path, caplog):
    path = write(tmp_path / "v.zarr", [VALUES])
    plane = Record(path).open()
    assert (plane.plane, len(plane.planes)) == ("z=0", SHAPE[0])
    (told,) = (r.getMessage() for r in caplog.records if "reads the plane" in r.getMessage())
    assert "open_volume, or Record(..., spatial_ndim=3)" in told
    assert Record(path, spatial_ndim=3).view().shape == SHAPE


class TestZarrVolume(BackendConformance):
    backend = BACKEND

    def make(self, tmp_path):
        path = write(tmp_path / "v.zarr", [VALUES, HALF])
        return str(path), [VALUES[..., None], HALF[..., None]]

    def make_missing(self, tmp_path):
        return str(tmp_path / "none.zarr")

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        (tmp_path / "v.zarr" / "0" / "c" / "1" / "1" / "2").write_bytes(b"damaged")
        return uri, levels, Region((8, 8, 16), (4, 8, 8))


def test_which_chunk_is_damaged(tmp_path):
    uri, _, box = TestZarrVolume().make_damaged(tmp_path)
    with pytest.raises(TileError, match=r"\(1, 1, 2\)"):
        open_volume(uri).read(box.origin, box.shape)
