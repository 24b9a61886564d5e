"""Stacks in TIFF files against tifffile: axes, encodings, sizes of voxels, damage."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile

from daskdmed import Record, open_slide, open_volume
from daskdmed.core.region import Region
from daskdmed.errors import CorruptImageError, DatasetError, UnsupportedImageError, UsageError
from daskdmed.images.registry import get_backend
from daskdmed.testing import BackendConformance

SHAPE = (5, 40, 52)
VALUES = np.random.default_rng(0).integers(0, 900, SHAPE).astype("u2")
MANY = np.stack([VALUES + i for i in range(6)]).reshape(3, 2, *SHAPE)  # t, c, z, y, x

ENCODINGS = {
    "shaped": {},
    "pages": {"metadata": None},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "zlib": {"metadata": None, "compression": "zlib", "predictor": True, "rowsperstrip": 7},
    "tiles": {"tile": (16, 16), "compression": "lzw"},
    "big": {"bigtiff": True, "byteorder": ">", "metadata": None},
    "big-endian": {"byteorder": ">", "imagej": True, "metadata": {"axes": "ZYX"}},
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings(tmp_path, name):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, VALUES, **ENCODINGS[name])
    volume = open_volume(path)
    assert (volume.shape, volume.dtype, volume.backend) == (SHAPE, np.uint16, "tiff-volume")
    assert (volume.space, volume.spacing, volume.channels) == (None, None, None)
    np.testing.assert_array_equal(volume.to_dask(chunks=20).compute(), VALUES)
    np.testing.assert_array_equal(volume.read((1, 9, 20), (3, 4, 31)), VALUES[1:4, 9:13, 20:51])
    assert Record(path, spatial_ndim=3).view().shape == SHAPE


@pytest.mark.parametrize("dtype", ["i2", "f4", "u1", "i4", "f8", "?"])
@pytest.mark.parametrize("name", ["pages", "zlib", "shaped"])
def test_types(tmp_path, dtype, name):
    values = (VALUES % 2 == 0) if dtype == "?" else (VALUES.astype(dtype) - 3).astype(dtype)
    options = {k: v for k, v in ENCODINGS[name].items() if k != "predictor" or dtype != "?"}
    # tifffile would write masks with 0 for white
    tifffile.imwrite(tmp_path / "stack.tif", values, photometric="minisblack", **options)
    if name == "zlib" and dtype[0] == "f":
        with pytest.raises(UnsupportedImageError, match=r"stack.tif.*(convert|predictor 3)"):
            open_volume(tmp_path / "stack.tif")
        return
    found = open_volume(tmp_path / "stack.tif").to_dask().compute()
    assert found.dtype == (np.uint8 if dtype == "?" else values.dtype)  # one bit: 0 and 1
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("name", ["imagej", "ome"])
def test_time_points_and_channels(tmp_path, name):
    path = tmp_path / "many.tif"
    stored = MANY if name == "ome" else MANY.transpose(0, 2, 1, 3, 4)
    axes = {"axes": "TCZYX" if name == "ome" else "TZCYX"}
    tifffile.imwrite(path, stored, **{name: True}, metadata=axes)
    with pytest.raises(UsageError, match="3 time points"):
        open_volume(path)
    volume = open_volume(path, time=2)
    assert volume.channels == 2
    np.testing.assert_array_equal(volume.to_dask().compute(), np.moveaxis(MANY[2], 0, -1))
    with pytest.raises(UsageError, match="no time point 3"):
        open_volume(path, time=3)
    tifffile.imwrite(path, MANY[:, 0], **{name: True}, metadata={"axes": "TZYX"})
    every = open_volume(path, time="channels")
    np.testing.assert_array_equal(every.to_dask().compute(), np.moveaxis(MANY[:, 0], 0, -1))


@pytest.mark.parametrize("options", [{}, {"planarconfig": "separate"}, {"compression": "zlib"}])
def test_colours(tmp_path, options):
    rgb = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), "u1")
    stored = rgb if "planarconfig" not in options else np.moveaxis(rgb, -1, 1)
    tifffile.imwrite(tmp_path / "rgb.tif", stored, photometric="rgb", metadata=None, **options)
    volume = open_volume(tmp_path / "rgb.tif")
    assert volume.channels == 3
    np.testing.assert_array_equal(volume.to_dask().compute(), rgb)


def test_unnamed_axes(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, MANY[:, 0])
    np.testing.assert_array_equal(open_volume(path, time=1).to_dask().compute(), MANY[1, 0])
    tifffile.imwrite(path, MANY)
    with pytest.raises(UnsupportedImageError, match="axes QQQYX"):
        open_volume(path)
    tifffile.imwrite(path, VALUES[0])
    assert open_volume(path).shape == (1, 40, 52)


def test_size_of_voxels(tmp_path):
    path = tmp_path / "stack.tif"
    for unit, factor in {"micron": 0.001, "\\u00B5m": 0.001, "mm": 1, "cm": 10}.items():
        told = {"axes": "ZYX", "spacing": 3.0, "unit": unit}
        tifffile.imwrite(path, VALUES, imagej=True, resolution=(4, 2), metadata=told)
        assert open_volume(path).spacing == pytest.approx((3 * factor, 0.5 * factor, 0.25 * factor))
    tifffile.imwrite(
        path, VALUES, imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "unit": "um"}
    )
    assert open_volume(path).spacing is None
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 3}
    units = {"PhysicalSizeZUnit": "mm"}
    tifffile.imwrite(path, VALUES, ome=True, metadata={"axes": "ZYX", **sizes, **units})
    assert open_volume(path).spacing == pytest.approx((3, 0.0005, 0.00025))


def test_size_of_voxels_of_one_of_several_images(tmp_path):
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        for step in (2, 5):  # of one size
            sizes = {f"PhysicalSize{axis}": step for axis in "XYZ"}
            tif.write(VALUES + step, metadata={"axes": "ZYX", "Name": f"by {step}", **sizes})
    volume = open_volume(path, series="by 5")
    assert volume.spacing == (0.005, 0.005, 0.005)
    np.testing.assert_array_equal(volume.to_dask().compute(), VALUES + 5)


def test_levels(tmp_path):
    path = tmp_path / "stack.ome.tif"
    half = VALUES[:, ::2, ::2]
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(VALUES, subifds=1, tile=(16, 16), metadata={"axes": "ZYX"})
        tif.write(half, subfiletype=1, tile=(16, 16))
    volume = open_volume(path)
    assert [level.shape for level in volume.levels] == [(*SHAPE, 1), (*half.shape, 1)]
    np.testing.assert_array_equal(volume.to_dask(1).compute(), half)


def test_several_images(tmp_path):
    path = tmp_path / "mixed.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(VALUES, metadata=None)
        tif.write(VALUES[:2, :30], metadata=None)
    with pytest.raises(UsageError, match=r"2 images.*\(5, 40, 52\).*\(2, 30, 52\).*series="):
        open_volume(path)
    second = Record(path, series="1", spatial_ndim=3)
    np.testing.assert_array_equal(second.view().read(Region.of((2, 30, 52))), VALUES[:2, :30])
    with pytest.raises(UsageError, match="no series='2'"):
        open_volume(path, series="2")
    tifffile.imwrite(path, VALUES[:4], tile=(4, 16, 16), volumetric=True, photometric="minisblack")
    with pytest.raises(UnsupportedImageError, match="stored in one page"):
        open_volume(path)


def test_files_without_a_hint_are_slides(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", VALUES, imagej=True)
    with pytest.raises(DatasetError, match="3 spatial"):
        Record(tmp_path / "stack.tif", backend="tiff-volume").view(spatial_ndim=2)
    tifffile.imwrite(tmp_path / "page.tif", VALUES[0])
    assert Record(tmp_path / "page.tif").view().spatial_ndim == 2
    assert open_slide(tmp_path / "page.tif").dimensions == (52, 40)


def test_stacks_of_one_bit_are_labels(tmp_path):
    mask = VALUES > 450
    tifffile.imwrite(path := tmp_path / "a.tif", mask, bitspersample=1, photometric="minisblack")
    volume = open_volume(path)
    assert volume.info.is_labels
    assert volume.view(level=0).labels
    assert np.array_equal(volume.read((0, 0, 0), SHAPE), mask)
    tifffile.imwrite(path := tmp_path / "b.tif", VALUES, metadata=None)
    assert not open_volume(path).info.is_labels


def test_voxels_that_begin_outside_the_file(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((3, 16, 20), "u2"), imagej=True)
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[0].tags[273].offset
    with path.open("r+b") as file:
        file.seek(tag + 2)
        file.write(struct.pack(f"{tif.byteorder}HIi", 9, 1, -256))
    with pytest.raises(CorruptImageError, match=r"a\.tif.* begin at byte -256 of"):
        open_volume(path)


def test_damaged_files(tmp_path):
    for name, options in ENCODINGS.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, VALUES, **options)
        content = path.read_bytes()
        for count in (len(content) // 2, 300, 9):
            path.write_bytes(content[:count])
            with pytest.raises((CorruptImageError, UnsupportedImageError), match=path.name):
                volume = open_volume(path)
                volume.read((0, 0, 0), SHAPE)
                pytest.fail(f"{name} cut to {count} bytes reads as {volume}")


class TestTiffVolume(BackendConformance):
    backend = get_backend("tiff-volume")

    def make(self, tmp_path):
        path = tmp_path / "stack.tif"
        tifffile.imwrite(path, VALUES, metadata=None, tile=(16, 16), compression="zlib")
        return str(path), [VALUES[..., None]]

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        with tifffile.TiffFile(uri) as tif:
            page = tif.pages[3]
            at, count = page.dataoffsets[5], page.databytecounts[5]  # of 3 x 4 tiles
        with open(uri, "r+b") as file:
            file.seek(at)
            file.write(b"\xff" * count)
        return uri, levels, Region((3, 16, 16), (1, 16, 16))


class TestInOnePiece(BackendConformance):
    backend = get_backend("tiff-volume")

    def make(self, tmp_path):
        path = tmp_path / "stack.tif"
        tifffile.imwrite(path, VALUES, **ENCODINGS["imagej"])
        return str(path), [VALUES[..., None]]
