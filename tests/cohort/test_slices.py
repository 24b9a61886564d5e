"""Volumes of which every slice is a file: read lazily, in order, and what is wrong is named."""

from __future__ import annotations

import os

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile

import daskdmed
from daskdmed import Record, Region, Space
from daskdmed.errors import (
    CorruptImageError,
    DatasetError,
    GeometryError,
    ImageError,
    ImageNotFoundError,
    LoaderError,
    UnsupportedImageError,
)

VOLUME = np.random.default_rng(0).integers(0, 255, (20, 8, 12), dtype=np.uint8)


def hdf5(path, values, name="data"):
    with h5py.File(path, "w") as file:
        file[name] = values


WRITERS = {
    "npy": np.save,
    "png": lambda p, v: p.write_bytes(imagecodecs.png_encode(v)),
    "tif": lambda p, v: tifffile.imwrite(p, v),
    "im": hdf5,
    # MedSegPy's, with the axis of the slice
    "seg": lambda p, v: hdf5(p, v[:, :, None]),
}


def written(folder, suffix="npy", volume=VOLUME):
    for number, plane in enumerate(volume, start=1):
        WRITERS[suffix](folder / f"s_{number}.{suffix}", plane)
    return f"{folder}/s_*.{suffix}"


def pixels(record):
    view = record.view()
    return view.read(Region.of(view.spatial_shape))


@pytest.mark.parametrize("suffix", WRITERS)
def test_slices_of_every_format_in_the_order_people_count(tmp_path, suffix):
    record = Record.stack(written(tmp_path, suffix), spacing=(3, 1, 1))
    view = record.view()
    assert (view.spatial_ndim, view.spacing, view.tile_shape) == (3, (3, 1, 1), (1, 8, 12))
    np.testing.assert_array_equal(pixels(record), VOLUME)


def test_along_another_axis_and_with_channels(tmp_path):
    pattern = written(tmp_path)
    for axis in (1, 2):
        np.testing.assert_array_equal(
            pixels(Record.stack(pattern, axis)), np.moveaxis(VOLUME, 0, axis)
        )
    (tmp_path / "c").mkdir()
    colour = np.stack([VOLUME, VOLUME // 2, VOLUME // 3], -1)
    record = Record.stack(written(tmp_path / "c", "png", colour))
    np.testing.assert_array_equal(pixels(record), colour)
    (tmp_path / "m").mkdir()
    # MedSegPy's masks are (y, x, 1, classes)
    for number, plane in enumerate(colour):
        hdf5(tmp_path / "m" / f"{number}.seg", plane[:, :, None] > 9)
    masks = Record.stack(f"{tmp_path}/m/*.seg")
    np.testing.assert_array_equal(pixels(masks), colour > 9)
    with pytest.raises(DatasetError, match="axis=3 is the axis along which"):
        Record.stack(pattern, 3)


def test_a_tenth_of_the_slices_opens_a_tenth_of_the_files(tmp_path, monkeypatch):
    opened, load = [], np.load

    def counted(path, **options):
        opened.append(os.path.basename(path))
        return load(path, **options)

    monkeypatch.setattr(np, "load", counted)
    record = Record.stack(written(tmp_path))
    assert opened == ["s_1.npy"]
    opened.clear()
    part = record.view().read(Region((4, 0, 0), (2, 8, 12)))
    np.testing.assert_array_equal(part, VOLUME[4:6])
    assert sorted(opened) == ["s_5.npy", "s_6.npy"]


def test_space_and_background_are_those_of_the_volume(tmp_path):
    space = Space([[0, 0, -1, 0], [0, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]], VOLUME.shape)
    record = Record.stack(written(tmp_path), space=space, background=7, facts={"site": "A"})
    view = record.view(orientation="RAS")
    np.testing.assert_array_equal(view.read(Region.of(view.shape)), VOLUME[..., ::-1])
    assert (view.background, record.facts["site"]) == (7, "A")
    with daskdmed.LightDL(
        record, smallchunk_size=(4, 8, 8), batch_size=2, resident="1 MiB", orientation="RAS"
    ) as loader:
        x, _, chunks = loader.get()
    z, y, x0 = chunks[0].origin
    np.testing.assert_array_equal(x[0, 0], VOLUME[..., ::-1][z : z + 4, y : y + 8, x0 : x0 + 8])


def test_the_name_is_of_files_and_content(tmp_path):
    pattern = written(tmp_path)
    first = Record.stack(pattern)
    assert Record.stack(pattern).key == first.key
    files = [tmp_path / f"s_{n}.npy" for n in range(1, 21)]
    assert Record.stack(files).key == first.key
    assert Record.stack(files[::-1]).key != first.key
    assert Record.stack(pattern, 1).key != first.key
    os.utime(files[3], ns=(1, 1))
    assert Record.stack(pattern).key != first.key
    with pytest.raises(ImageError, match=r"s_4\.npy: the file changed since the record was made"):
        pixels(first)


@pytest.mark.parametrize("plane", [VOLUME[0, :4], VOLUME[0].astype("i2")])
def test_a_slice_that_differs_is_named_when_it_is_read(tmp_path, plane):
    pattern = written(tmp_path)
    np.save(tmp_path / "s_7.npy", plane)
    record = Record.stack(pattern)
    record.view().read(Region((7, 0, 0), (13, 8, 12)))
    with pytest.raises(ImageError, match=r"s_7\.npy: the slice is .*, the first of its volume u"):
        pixels(record)
    with daskdmed.SlidingWindowDL(record, kernel_size=(20, 8, 12)) as loader:
        with pytest.raises(LoaderError, match=r"s_7\.npy"):
            loader.get()


def test_what_is_no_slice(tmp_path):
    (tmp_path / "text.png").write_text("no picture, whatever it is called")
    np.save(tmp_path / "a.npy", VOLUME[0])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    tifffile.imwrite(tmp_path / "a.tif", VOLUME[0])
    (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-9])
    np.save(tmp_path / "volume.npy", np.zeros((2, 3, 4, 5)))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    hdf5(tmp_path / "two.h5", VOLUME[0], "a")
    with h5py.File(tmp_path / "two.h5", "a") as file:
        file["g/b"] = VOLUME[1]
        file["who"] = "no picture, and not looked at as one"
    hdf5(tmp_path / "line.h5", VOLUME[0, 0])
    for name, kind, words in (
        ("text.png", UnsupportedImageError, "slices are HDF5, .npy, TIFF, PNG"),
        ("cut.npy", CorruptImageError, "ValueError|EOFError"),
        ("cut.tif", CorruptImageError, "Error"),
        ("volume.npy", UnsupportedImageError, r"a slice is numbers .* shape \(2, 3, 4, 5\)"),
        ("text.npy", UnsupportedImageError, "a slice is numbers"),
        ("gone.npy", ImageNotFoundError, "gone.npy"),
        ("two.h5", DatasetError, "holds 2 arrays: 'a', 'g/b'; say which with dataset="),
        ("line.h5", UnsupportedImageError, "no array of numbers"),
    ):
        with pytest.raises(kind, match=words) as caught:
            Record.stack([tmp_path / name])
        assert name in str(caught.value)
    assert Record.stack([tmp_path / "two.h5"], dataset="/g/b").array.shape == (1, 8, 12)
    with pytest.raises(DatasetError, match="has no array 'c'; it has 'a', 'g/b'"):
        Record.stack([tmp_path / "two.h5"], dataset="c")
    with pytest.raises(UnsupportedImageError, match="dataset='a' is for HDF5"):
        Record.stack([tmp_path / "a.npy"], dataset="a")


def test_a_heap_in_which_hdf5_would_not_end(tmp_path):
    path = tmp_path / "a.h5"
    layout = h5py.VirtualLayout(VOLUME.shape[1:], "u1")
    layout[...] = h5py.VirtualSource(".", "raw", VOLUME.shape[1:])
    with h5py.File(path, "w") as file:
        file["raw"] = VOLUME[0]
        file.create_virtual_dataset("same", layout)  # which is told in a heap
    np.testing.assert_array_equal(Record.stack([path], dataset="same").array[0], VOLUME[0])
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    data[heap + 16 : heap + 64] = bytes(48)
    path.write_bytes(data)
    with pytest.raises(CorruptImageError, match=rf"a\.h5.*heap at byte {heap} has an object of "):
        Record.stack([path], dataset="same")


def test_what_is_no_list_of_files(tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, VOLUME[0])
    for paths, words in (
        (f"{tmp_path}/*.png", "no file matches; check the folder"),
        (str(file), "as a pattern, such as"),
        ([], "got no files"),
        ([file, file], "a.npy' more than once"),
        ("s3://bucket/*.npy", "must be local"),
    ):
        with pytest.raises(DatasetError, match=words):
            Record.stack(paths)
    with pytest.raises(GeometryError, match="does not lie in"):
        Record.stack([file], space=Space(np.eye(4), (2, 8, 12))).view()
