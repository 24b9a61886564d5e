"""The conformance kit over every backend of the package."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
import zarr

from daskdmed.core.region import Region
from daskdmed.images.ngff import ZarrBackend
from daskdmed.testing import BackendConformance, coordinate_image

SHAPES = [(613, 787), (153, 197), (38, 49)]  # nothing divides anything
TILE = 128


def pyramid(dtype="uint8", channels=3):
    levels = []
    for i, shape in enumerate(SHAPES):
        rng = np.random.default_rng(i)
        if dtype == "uint8" and channels == 3:
            image = coordinate_image(shape, "uint8")
            image[..., 0] = rng.integers(0, 255, shape)  # no two levels look alike
        else:
            image = rng.integers(0, 60000, (*shape, channels)).astype(dtype)
        levels.append(image)
    return levels


def write_tiff(path, levels):
    with tifffile.TiffWriter(path) as tif:
        for i, level in enumerate(levels):
            tif.write(
                level,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="deflate",
                subfiletype=1 if i else 0,
                metadata=None,
            )


class TiffFiles(BackendConformance):
    def make(self, tmp_path):
        levels = pyramid()
        write_tiff(tmp_path / "pyramid.tif", levels)
        return str(tmp_path / "pyramid.tif"), levels

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        with tifffile.TiffFile(uri) as tif:
            page = tif.pages[0]
            columns = -(-page.imagewidth // TILE)
            index = 2 * columns + 3
            offset, count = page.dataoffsets[index], page.databytecounts[index]
        with open(uri, "r+b") as file:
            file.seek(offset)
            file.write(b"\xff" * count)
        return uri, levels, Region((2 * TILE, 3 * TILE), (TILE, TILE))


class TestTiff(TiffFiles):
    @property
    def backend(self):
        from daskdmed.images.tiff import TiffBackend

        return TiffBackend()


class TestOpenSlide(TiffFiles):
    @property
    def backend(self):
        pytest.importorskip("openslide")
        from daskdmed.images.openslide import OpenSlideBackend

        return OpenSlideBackend()


def write_zarr(group, levels, axes="cyx", sharded=False, ome=None):
    """Arrays s0, s1... of a group, axes in the given order, OME metadata when `ome` is set."""
    for i, level in enumerate(levels):
        order = ["yxc".index(a) for a in axes if a in "yxc"]
        stored = level.transpose(order) if len(order) == 3 else level[..., 0]
        stored = stored.reshape([1 if a in "tz" else stored.shape[k] for a, k in _places(axes)])
        chunks = tuple(TILE if a in "yx" else n for a, n in zip(axes, stored.shape, strict=True))
        extra = {}
        if group.metadata.zarr_format == 3:
            extra["dimension_names"] = tuple(axes)
            if sharded:
                extra["shards"] = tuple(2 * c if c == TILE else c for c in chunks)
        array = group.create_array(
            f"s{i}", shape=stored.shape, chunks=chunks, dtype=stored.dtype, **extra
        )
        array[...] = stored
    if ome is not None:
        group.attrs.update(ome)


def _places(axes):
    """Each axis with its position among those that are not t or z."""
    kept = [a for a in axes if a not in "tz"]
    return [(a, kept.index(a) if a in kept else -1) for a in axes]


def multiscales(axes, levels, mpp=0.25, version="0.4"):
    kinds = {"t": "time", "c": "channel"}
    entries = []
    for a in axes:
        entry = {"name": a, "type": kinds.get(a, "space")}
        if a in "zyx":
            entry["unit"] = "micrometer"
        entries.append(entry)
    height, width = levels[0].shape[:2]
    datasets = []
    for i, level in enumerate(levels):
        factor = {"y": mpp * height / level.shape[0], "x": mpp * width / level.shape[1]}
        scale = [factor.get(a, 1.0) for a in axes]
        steps = [{"type": "scale", "scale": scale}]
        datasets.append({"path": f"s{i}", "coordinateTransformations": steps})
    found = {"axes": entries, "datasets": datasets, "name": "made"}
    return found | ({"version": version} if version < "0.5" else {})


class ZarrFiles(BackendConformance):
    backend = ZarrBackend()
    zarr_format = 3
    axes = "cyx"
    sharded = False
    chunk = "s0/c/0/2/3"

    def levels(self):
        return pyramid()

    def attributes(self, levels):
        return None

    def make(self, tmp_path):
        levels = self.levels()
        path = tmp_path / "image.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=self.zarr_format)
        write_zarr(group, levels, self.axes, self.sharded, self.attributes(levels))
        return str(path), levels

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        file = Path(uri) / self.chunk
        assert file.is_file()
        file.write_bytes(b"\xff" * 100)
        return uri, levels, Region((2 * TILE, 3 * TILE), (TILE, TILE))


class TestOmeZarr04(ZarrFiles):
    zarr_format = 2
    axes = "tczyx"
    chunk = "s0/0.0.0.2.3"

    def attributes(self, levels):
        return {"multiscales": [multiscales(self.axes, levels)]}


class TestOmeZarr05(ZarrFiles):
    def attributes(self, levels):
        ome = {"version": "0.5", "multiscales": [multiscales(self.axes, levels, version="0.5")]}
        return {"ome": ome}


class TestOmeZarr05Sharded(TestOmeZarr05):
    sharded = True

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        file = Path(uri) / "s0/c/0/1/1"  # the shard of chunks (2..3, 2..3)
        data = bytearray(file.read_bytes())
        index = np.frombuffer(bytes(data[-68:-4]), "<u8").reshape(4, 2)
        start, length = (int(n) for n in index[1])  # inner chunk (0, 1): row 2, column 3
        data[start : start + length] = b"\xff" * length
        file.write_bytes(data)
        return uri, levels, Region((2 * TILE, 3 * TILE), (TILE, TILE))


class TestPlainZarr2(ZarrFiles):
    zarr_format = 2
    axes = "yxc"
    chunk = "s0/2.3.0"


class TestPlainZarr3(ZarrFiles):
    axes = "yxc"
    chunk = "s0/c/2/3/0"


class TestFluorescence(TestOmeZarr05):
    """uint16, five channels."""

    def levels(self):
        return pyramid("uint16", 5)


class TestFloatPlane(TestOmeZarr05):
    """float32 without a channel axis, as heatmaps are."""

    axes = "yx"
    chunk = "s0/c/2/3"

    def levels(self):
        return pyramid("float32", 1)


class TestSingleArray(ZarrFiles):
    """One array at the root is an image of one level."""

    axes = "yxc"
    chunk = "c/2/3/0"

    def levels(self):
        return pyramid()[:1]

    def make(self, tmp_path):
        (level,) = self.levels()
        path = tmp_path / "array.zarr"
        array = zarr.create_array(
            path, shape=level.shape, chunks=(TILE, TILE, 3), dtype=level.dtype
        )
        array[...] = level
        return str(path), [level]


class TestZippedZarr(TestOmeZarr05):
    def make(self, tmp_path):
        levels = self.levels()
        path = tmp_path / "image.zarr.zip"
        with zarr.storage.ZipStore(path, mode="w") as store:
            # with the attributes at once: a zip file keeps every version of a document
            group = zarr.create_group(store, attributes=self.attributes(levels))
            write_zarr(group, levels, self.axes)
        return str(path), levels

    def make_damaged(self, tmp_path):
        return None


class TestRemoteZarr(TestOmeZarr05):
    """Any file system of fsspec; the one in memory stands for the others."""

    @pytest.fixture(autouse=True)
    def _empty_memory(self):
        yield
        memory = fsspec.filesystem("memory")
        if memory.exists("/daskdmed"):
            memory.rm("/daskdmed", recursive=True)

    def make(self, tmp_path):
        uri, levels = super().make(tmp_path)
        memory = fsspec.filesystem("memory")
        memory.put(uri, f"/daskdmed/{tmp_path.name}/image.zarr", recursive=True)
        return f"memory://daskdmed/{tmp_path.name}/image.zarr", levels

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        memory = fsspec.filesystem("memory")
        name = f"/daskdmed/{tmp_path.name}/image.zarr/{self.chunk}"
        assert memory.exists(name)
        memory.pipe(name, b"\xff" * 100)
        return uri, levels, Region((2 * TILE, 3 * TILE), (TILE, TILE))

    def change(self, uri):
        memory = fsspec.filesystem("memory")
        name = uri.removeprefix("memory:/") + "/zarr.json"
        document = json.loads(memory.cat_file(name))
        document["attributes"]["more"] = "facts"
        memory.pipe(name, json.dumps(document).encode())
