"""A backend of volumes, (z, y, x, channels): nothing between files and views is of planes only."""

from __future__ import annotations

import os

import numpy as np
import pytest

from daskdmed.core.region import Region
from daskdmed.errors import CorruptImageError, ImageNotFoundError, UsageError
from daskdmed.images.filecache import FileKey, cache
from daskdmed.images.lazy import to_dask
from daskdmed.images.protocols import LevelInfo, SlideInfo
from daskdmed.images.readers import TileFailures, prepare_output
from daskdmed.images.view import SlideView
from daskdmed.testing import BackendConformance

TILE = (8, 16, 16)
BAD = Region((8, 16, 32), TILE)


class BoxReader:
    """Levels of a volume from an .npz archive, copied tile by tile."""

    def __init__(self, uri):
        with np.load(uri) as archive:
            self.levels = [archive["level0"], archive["level1"]]
            self.bad = "bad" in archive
        full = self.levels[0].shape[:-1]
        levels = tuple(
            LevelInfo(a.shape, TILE, tuple(n / m for n, m in zip(full, a.shape, strict=False)))
            for a in self.levels
        )
        self.uri, self.failures = uri, TileFailures(uri)
        self.info = SlideInfo(levels, "uint16", (9,))

    @property
    def failed_tiles(self):
        return self.failures.kept

    def read(self, level, region, out=None, *, tile_error="raise"):
        out = prepare_output(self.uri, self.info, level, region, out)
        for part in region.tiles(TILE):
            place = out[part.local_to(region).slices]
            if self.bad and level == 0 and BAD.contains(part):
                self.failures(0, part.cells(TILE).origin, ValueError("bad"), tile_error)
                place[...] = self.info.background_value
            else:
                place[...] = self.levels[level][part.slices]
        return out

    def read_associated(self, name):
        raise UsageError(f"no {name}")

    def close(self):
        pass


class BoxBackend:
    name = "box"
    priority = 90

    def accepts(self, uri):
        return uri.endswith(".npz") and os.path.isfile(uri)

    def open(self, uri):
        self.fingerprint(uri)
        if not uri.endswith(".npz"):
            raise CorruptImageError(f"{uri} is no archive", uri=uri)
        return BoxReader(uri)

    def fingerprint(self, uri):
        if not os.path.exists(uri):
            raise ImageNotFoundError(f"{uri} is missing", uri=uri)
        return f"{os.stat(uri).st_size}-{os.stat(uri).st_mtime_ns}"


class TestVolumes(BackendConformance):
    backend = BoxBackend()

    def write(self, path, **extra):
        rng = np.random.default_rng(0)
        levels = [
            rng.integers(0, 60000, (*shape, 1)).astype(np.uint16)
            for shape in ((21, 50, 70), (10, 25, 35))
        ]
        np.savez(path, level0=levels[0], level1=levels[1], **extra)
        return str(path), levels

    def make(self, tmp_path):
        return self.write(tmp_path / "volume.npz")

    def make_damaged(self, tmp_path):
        return *self.write(tmp_path / "bad.npz", bad=np.ones(1)), BAD


@pytest.fixture
def opened(tmp_path):
    """A view of level 0 of a volume, and its pixels."""
    uri, levels = TestVolumes().make(tmp_path)
    key = FileKey(uri, "box", BoxBackend().fingerprint(uri))
    reader = BoxReader(uri)
    cache.put(key, reader)
    level = reader.info.levels[0]
    view = SlideView(
        key=key,
        level=0,
        shape=level.shape,
        source_shape=level.shape,
        source_tile=level.tile_shape,
        scale=None,
        downsample=level.downsample,
        dtype_name="uint16",
        background_value=(9,),
        mpp=None,
    )
    yield view, levels[0]
    cache.discard(uri)


def test_views_of_volumes_are_read_padded_and_lazily(opened):
    view, pixels = opened
    assert (view.spatial_ndim, view.spatial_shape, view.channel_shape) == (3, (21, 50, 70), (1,))
    got = view.read_padded(Region((19, -1, 60), (3, 2, 12)))
    expected = np.full((3, 2, 12, 1), 9, np.uint16)
    expected[:2, 1:, :10] = pixels[19:, :1, 60:]
    np.testing.assert_array_equal(got, expected)
    lazy = to_dask(view, (8, 20, -1))
    assert lazy.chunks == ((8, 8, 5), (16, 16, 16, 2), (70,), (1,))
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), pixels)
    assert to_dask(view).chunks == ((21,), (50,), (70,), (1,))


def test_views_between_levels_of_volumes_are_means_over_boxes(opened):
    view, pixels = opened
    half = SlideView(
        **{
            **{f: getattr(view, f) for f in view.__dataclass_fields__},
            "shape": (7, 25, 35, 1),
            "scale": (3.0, 2.0, 2.0),
            "downsample": (3.0, 2.0, 2.0),
        }
    )
    means = pixels.reshape(7, 3, 25, 2, 35, 2).astype(float).mean(axis=(1, 3, 5))[..., None]
    np.testing.assert_array_equal(half.read(Region.of((7, 25, 35))), np.rint(means))
    assert half.tile_shape == (3, 8, 8)
    region = Region((2, 3, 4), (3, 9, 11))
    np.testing.assert_array_equal(half.read(region), np.rint(means)[region.slices])
    np.testing.assert_array_equal(to_dask(half, 8).compute(), np.rint(means))
