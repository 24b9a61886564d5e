"""HDF5 against h5py: which array is meant, its axes and types, damage, forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from daskdmed import Record, open_volume
from daskdmed.core.region import Region
from daskdmed.errors import (
    CorruptImageError,
    DaskdmedError,
    TileError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.registry import get_backend
from daskdmed.images.volumes.heaps import WatchedFile, watched
from daskdmed.testing import BackendConformance

SHAPE = (12, 20, 24)
VALUES = np.random.default_rng(0).integers(0, 900, SHAPE).astype("u2")


def save(path, **arrays):
    """Write arrays, each given as values or as (values, options of create_dataset)."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            values, options = array if isinstance(array, tuple) else (array, {})
            file.create_dataset(name.replace("__", "/"), data=values, **options)
    return path


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".hdf", ".im", ".dat"])
def test_the_only_array(tmp_path, suffix):
    path = save(
        tmp_path / f"scan{suffix}", g__data=VALUES, words=np.array([b"a", b"b"]), line=np.arange(9)
    )
    volume = open_volume(path)
    assert volume.backend == "hdf5"
    assert volume.properties["hdf5.dataset"] == "/g/data"
    np.testing.assert_array_equal(volume.to_dask().compute(), VALUES)
    np.testing.assert_array_equal(Record(path).view().read(Region.of(SHAPE)), VALUES)


def test_which_array_is_meant(tmp_path):
    path = save(tmp_path / "scan.h5", raw=VALUES, deep__label=(VALUES > 5, {"chunks": (4, 5, 6)}))
    with pytest.raises(UsageError, match=r"2 arrays.*/deep/label \(12, 20, 24\) bool.*/raw"):
        open_volume(path)
    with pytest.raises(UsageError, match=r"'no' is not there.*/raw"):
        open_volume(path, dataset="no")
    with pytest.raises(UsageError, match=r"'deep' is a group.*/deep/label"):
        open_volume(path, dataset="deep")
    label = open_volume(path, dataset="deep/label")
    assert (label.dtype, label.levels[0].tile_shape) == (np.bool_, (4, 5, 6))
    np.testing.assert_array_equal(label.to_dask(chunks=9).compute(), VALUES > 5)
    np.testing.assert_array_equal(Record(path, dataset="raw").view().read(Region.of(SHAPE)), VALUES)
    with pytest.raises(UnsupportedImageError, match="no array of numbers"):
        open_volume(save(tmp_path / "none.h5", words=np.array([b"a", b"b"])))
    with pytest.raises(UnsupportedImageError, match="voxels are numbers"):
        open_volume(
            save(tmp_path / "pairs.h5", p=np.zeros((3, 3, 3), "i4, f4"), raw=VALUES), dataset="p"
        )


@pytest.mark.parametrize("dtype", [">i2", "<u4", ">f8", "i1", "?", "f2"])
def test_types(tmp_path, dtype):
    values = VALUES.astype(dtype)
    volume = open_volume(save(tmp_path / "scan.h5", data=values))
    found = volume.to_dask().compute()
    assert found.dtype == volume.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, values)


def test_axes(tmp_path):
    times = np.stack([VALUES + i for i in range(5)])
    assert open_volume(save(tmp_path / "t.h5", d=times), time=3).read((1, 2, 3), (1, 1, 1)) == (
        VALUES[1, 2, 3] + 3
    )
    with pytest.raises(UsageError, match="5 time points"):
        open_volume(tmp_path / "t.h5")
    channels = np.moveaxis(times, 0, -1)
    # as MedSegPy writes scans and masks
    for name, values in {"a.im": VALUES[..., :1], "b.im": VALUES, "c.seg": channels}.items():
        volume = open_volume(save(tmp_path / name, data=values))
        np.testing.assert_array_equal(volume.to_dask().compute(), values)
        assert volume.channels == (5 if name == "c.seg" else None)
    path = save(tmp_path / "whole.h5", volume=VALUES, seg=channels)
    assert open_volume(path, dataset="seg").channels == 5
    np.testing.assert_array_equal(open_volume(path, dataset="volume").to_dask().compute(), VALUES)
    path = save(tmp_path / "labels.h5", d=channels, e=channels)
    with h5py.File(path, "a") as file:
        for dim, label in zip(file["d"].dims, "yxzc"):
            dim.label = label
        tags = {"axes": [{"key": key} for key in "zyxc"]}
        file["e"].attrs["axistags"] = json.dumps(tags)
        file["e"].attrs["element_size_um"] = (3000, 200, 100)
    turned = open_volume(path, dataset="d")
    assert turned.shape == (24, 12, 20)
    np.testing.assert_array_equal(turned.to_dask().compute(), channels.transpose(2, 0, 1, 3))
    tagged = open_volume(path, dataset="e")
    assert (tagged.channels, tagged.space) == (5, None)
    assert tagged.spacing == pytest.approx((3, 0.2, 0.1))


def test_damaged_files(tmp_path):
    path = save(tmp_path / "scan.h5", data=(VALUES, {"chunks": (4, 5, 6), "compression": "gzip"}))
    whole = path.read_bytes()
    for name, content in {
        "cut.h5": whole[:-500],
        "head.h5": whole[:60],
        "text.h5": b"no hdf5" * 99,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((CorruptImageError, UnsupportedImageError), match=name):
            open_volume(tmp_path / name)


@pytest.mark.parametrize("value", [b"\0", b"\xff"])
def test_a_heap_in_which_hdf5_would_not_end(tmp_path, value):
    path = save(tmp_path / "a.h5", scan=VALUES)
    with h5py.File(path, "a") as file:
        for axis, name in zip(file["scan"].dims, "zyx", strict=True):
            axis.label = name
    assert open_volume(path).shape == SHAPE
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    data[heap + 16 : heap + 64] = 48 * value
    path.write_bytes(data)
    with pytest.raises(CorruptImageError, match=rf"a\.h5.*heap at byte {heap} has an object of "):
        open_volume(path)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_heaps_that_are_sound(tmp_path, libver):
    texts = {f"{n:03d}": "x" * (37 * n % 500) for n in range(60)}
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as file:
        file.create_dataset("scan", data=VALUES).attrs.update(texts)
        file.attrs.update({name: [text, name] for name, text in texts.items()})
    with watched(tmp_path / "a.h5") as file:
        assert dict(file["scan"].attrs) == texts
        assert {name: list(value) for name, value in file.attrs.items()} == {
            name: [text, name] for name, text in texts.items()
        }


def test_a_place_that_no_file_reaches(tmp_path):
    path = save(tmp_path / "a.h5", scan=VALUES)
    with WatchedFile(path) as file, pytest.raises(OSError, match=f"{2**63} lies behind the end"):
        file.seek(2**63)  # as HDF5 wants it where an address is damaged


def test_damaged_labels_of_axes(tmp_path):
    """HDF5's own function that reads them ends the process."""
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        array = file.create_dataset("scan", data=VALUES, track_times=False)
        for dim, label in zip(array.dims, "zyx"):
            dim.label = label
    data = path.read_bytes()
    assert open_volume(path).shape == SHAPE
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(data.replace(b"GCOL", b"GC\0L"))
    with pytest.raises(CorruptImageError, match=r"damaged\.h5.*is damaged"):
        open_volume(damaged)


def test_files_that_are_open_elsewhere(tmp_path):
    path = save(tmp_path / "scan.h5", data=VALUES)
    script = (
        "import h5py, sys\nfile = h5py.File(sys.argv[1], 'a', locking=True)\n"
        "print('open', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with open_volume(path) as volume:
            np.testing.assert_array_equal(volume.to_dask().compute(), VALUES)
            # one process cannot have it open in two ways
            np.testing.assert_array_equal(Record(path).view().read(Region.of(SHAPE)), VALUES)
        other.communicate("")
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(open_volume(path).to_dask().compute(), VALUES)
        lazy = Record(array=file["data"], spatial_ndim=3).view()
        np.testing.assert_array_equal(lazy.read(Region.of(SHAPE)), VALUES)
    with open_volume(path) as volume:
        volume.read((0, 0, 0), (1, 1, 1))
        np.testing.assert_array_equal(lazy.read(Region.of(SHAPE)), VALUES)


def test_without_h5py(tmp_path, monkeypatch):
    path = save(tmp_path / "scan.h5", data=VALUES)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DaskdmedError, match=r"pip install 'daskdmed\[volumes\]'"):
        open_volume(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_while_others_read(tmp_path):
    volume = open_volume(save(tmp_path / "scan.h5", data=(VALUES, {"chunks": (1, 20, 24)})))
    going, stop = [], []

    def read():
        while not stop:
            volume.read((0, 0, 0), SHAPE)
            going.append(1)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(read)
        while not going and not job.done():
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:  # pragma: no cover
            fine = (volume.read((0, 0, 0), SHAPE) == VALUES).all()
            os._exit(0 if fine else 1)
        stop.append(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        job.result()


class TestHdf5(BackendConformance):
    backend = get_backend("hdf5")

    def make(self, tmp_path):
        options = {"chunks": (4, 5, 6), "compression": "gzip"}
        return str(save(tmp_path / "scan.h5", data=(VALUES, options))), [VALUES[..., None]]

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        with h5py.File(uri, "r") as file:
            chunk = file["data"].id.get_chunk_info_by_coord((4, 10, 12))
        with open(uri, "r+b") as file:
            file.seek(chunk.byte_offset)
            file.write(b"\xff" * chunk.size)
        return uri, levels, Region((4, 10, 12), (4, 5, 6))


def test_which_chunk_is_damaged(tmp_path):
    uri, _, box = TestHdf5().make_damaged(tmp_path)
    with pytest.raises(TileError, match=r"\(1, 2, 2\)"):
        open_volume(uri).read(box.origin, box.shape)
