"""The tests that every image backend must pass, of any number of axes.

A third party subclasses `BackendConformance` in its own test suite; the tests then run
against its backend. They cover the contract of `daskdmed.images.protocols`, not the
variety of files that a format allows: that is for tests of its own.
"""

from __future__ import annotations

import itertools
import math
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from daskdmed.core.errors import (
    GeometryError,
    ImageError,
    ImageNotFoundError,
    ResolutionError,
    TileError,
    UsageError,
)
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.opening import open_slide
from daskdmed.images.protocols import Backend, Reader, VolumeInfo
from daskdmed.images.registry import kind_of
from daskdmed.images.slide import Slide
from daskdmed.images.volumes.volume import Volume, open_volume
from daskdmed.testing.arrays import assert_same_pixels


class BackendConformance:
    """Base class of a backend's conformance tests.

    Subclasses are collected by pytest when their name starts with ``Test``. They must set
    `backend` and define `make`; the rest has defaults for a format of local files.

    Attributes
    ----------
    backend : Backend
        What is tested.
    atol : int
        Largest difference between a pixel read and its reference, for lossy formats.
    through_slide : bool
        Also test through `daskdmed.open_slide`, or `open_volume`, which needs the entry point
        to be installed. True by default.

    Examples
    --------
    >>> class TestMyBackend(BackendConformance):
    ...     backend = MyBackend()
    ...     def make(self, tmp_path):
    ...         levels = [np.zeros((300, 400, 3), np.uint8)]
    ...         path = tmp_path / "image.my"
    ...         write_my_format(path, levels)
    ...         return str(path), levels
    """

    backend: Backend
    atol: int = 0
    through_slide: bool = True

    # -- what a subclass provides ------------------------------------------------------

    def make(self, tmp_path: Path) -> tuple[str, list[Array]]:
        """Write an image: its uri, and the reference pixels of every level, largest first.

        ``(*space, channels)``: (height, width, channels) of slides, (z, y, x, channels) of
        volumes. At least two levels and several tiles make the tests worth it.
        """
        raise TypeError(f"{type(self).__name__} must define make(self, tmp_path)")

    def make_missing(self, tmp_path: Path) -> str:
        """The uri of an image of this format that does not exist."""
        uri, _ = self.make(tmp_path)
        return f"{uri}-missing{Path(uri).suffix}"

    def make_not_an_image(self, tmp_path: Path) -> str:
        """The uri of something that exists and is no image."""
        path = tmp_path / "notes.txt"
        path.write_text("this is no image\n" * 100)
        return str(path)

    def make_damaged(self, tmp_path: Path) -> tuple[str, list[Array], Region] | None:
        """As `make`, with one storage tile of level 0 that cannot be decoded, and its pixels.

        All that are lost and no others, not in the first tile along any axis. None skips the
        tests of damage.
        """
        return None

    def change(self, uri: str) -> None:
        """Change an image so that its fingerprint must change; by default, touch its files."""
        path = Path(uri)
        files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        for file in files:
            later = file.stat().st_mtime_ns + 2_000_000_000
            os.utime(file, ns=(later, later))

    # -- fixtures ----------------------------------------------------------------------

    @pytest.fixture
    def image(self, tmp_path: Path) -> tuple[str, list[Array]]:
        """The uri of an image and its reference pixels."""
        return self.make(tmp_path)

    @pytest.fixture
    def reader(self, image: tuple[str, list[Array]]) -> Iterator[Reader]:
        """The image, open."""
        reader = self.backend.open(image[0])
        yield reader
        reader.close()

    # -- the contract ------------------------------------------------------------------

    def test_protocols(self, reader: Reader) -> None:
        assert isinstance(self.backend, Backend)
        assert isinstance(reader, Reader)
        assert isinstance(self.backend.name, str)
        assert self.backend.name
        assert isinstance(self.backend.priority, int)

    def test_accepts_its_own(self, image: tuple[str, list[Array]], tmp_path: Path) -> None:
        assert self.backend.accepts(image[0]) is True
        assert self.backend.accepts(self.make_not_an_image(tmp_path)) is False

    def test_accepts_never_raises(self, tmp_path: Path) -> None:
        empty = tmp_path / "empty.tif"
        empty.touch()
        for uri in ("", str(tmp_path / "none"), str(tmp_path), str(empty), "nosuch://host/file.x"):
            assert self.backend.accepts(uri) in (True, False)

    def test_info(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        _, levels = image
        info = reader.info
        *full, channels = levels[0].shape
        assert [level.shape for level in info.levels] == [a.shape for a in levels]
        sizes = [math.prod(level.shape) for level in info.levels]
        assert sizes == sorted(sizes, reverse=True)
        for level in info.levels:
            spatial = level.shape[:-1]
            assert level.downsample == tuple(n / m for n, m in zip(full, spatial, strict=True))
            assert len(level.tile_shape) == len(full)
            assert min(level.tile_shape) > 0
        assert info.numpy_dtype == levels[0].dtype
        unknown = isinstance(info, VolumeInfo) and not info.background
        assert unknown or len(info.background) == channels
        if info.mpp is not None:
            assert len(info.mpp) == 2
            assert min(info.mpp) > 0
        assert all(isinstance(k, str) for k in info.properties)
        assert all(isinstance(v, str) for v in info.properties.values())

    def test_further_facts(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        """Channels, planes, labels and the colour profile, where a reader tells of them."""
        info = reader.info
        assert len(info.channels) in (0, image[1][0].shape[-1])
        assert len(set(info.planes)) == len(info.planes)
        assert info.plane in (info.planes or ("",))
        assert len(set(info.images)) == len(info.images)
        assert len(set(info.associated)) == len(info.associated)
        if info.is_labels:
            assert info.numpy_dtype.kind in "iu", "labels are whole numbers"
        profile = getattr(reader, "icc_profile", None)
        found = None if profile is None else profile()
        assert found is None or (isinstance(found, bytes) and found)

    def test_info_pickles(self, reader: Reader) -> None:
        assert pickle.loads(pickle.dumps(reader.info)) == reader.info

    def test_whole_levels(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        for level, expected in enumerate(image[1]):
            actual = reader.read(level, Region.of(expected.shape[:-1]))
            self._same(actual, expected, f"level {level}")

    def test_random_regions(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        rng = np.random.default_rng(7)
        for level, expected in enumerate(image[1]):
            for region in _regions(rng, expected.shape[:-1], 40):
                actual = reader.read(level, region)
                self._same(actual, expected[region.slices], f"level {level}, {region}")

    def test_single_tiles(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        for level, expected in enumerate(image[1]):
            whole = Region.of(expected.shape[:-1])
            for region in whole.tiles(reader.info.levels[level].tile_shape):
                actual = reader.read(level, region)
                self._same(actual, expected[region.slices], f"level {level}, {region}")

    def test_empty_region(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        *full, channels = image[1][0].shape
        region = Region((2,) * len(full), (0, *(5 for _ in full[1:])))
        assert reader.read(0, region).shape == (*region.shape, channels)

    def test_out_contiguous(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        expected = image[1][0]
        region = _middle(expected)
        out = np.full_like(expected[region.slices], 77)
        assert reader.read(0, region, out) is out
        self._same(out, expected[region.slices], "contiguous out")

    def test_out_strided(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        expected = image[1][0]
        region = _middle(expected)
        *extent, c = expected[region.slices].shape
        frame = np.full((*(n + 4 for n in extent), c), 77, expected.dtype)
        inner = frame[(slice(2, -2),) * len(extent)]
        reader.read(0, region, inner)
        self._same(inner, expected[region.slices], "a window of a larger array")
        inner[...] = 77
        assert (frame == 77).all(), "pixels around `out` were written"
        planar = np.moveaxis(np.full((c, *extent), 77, expected.dtype), 0, -1)
        reader.read(0, region, planar)
        self._same(planar, expected[region.slices], "channels first")

    def test_some_channels(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        """Of readers that can read some channels without the others."""
        read = getattr(reader, "read_channels", None)
        if read is None:
            pytest.skip("the reader has no read_channels")
        expected = image[1][0]
        region, count = _middle(expected), expected.shape[-1]
        for channels in {(count - 1,), tuple(range(count))[::-1], (0,)}:
            wanted = expected[region.slices][..., list(channels)]
            self._same(read(0, region, channels), wanted, f"channels {channels}")
            out = np.full((*wanted.shape[:-1], 2 * len(channels)), 77, wanted.dtype)[..., ::2]
            assert read(0, region, channels, out) is out
            self._same(out, wanted, f"channels {channels} into an array")

    def test_out_that_does_not_fit(self, reader: Reader) -> None:
        *full, channels = reader.info.levels[0].shape
        wrong = np.empty((*(5 for _ in full[1:]), 6, channels), reader.info.dtype)
        with pytest.raises(GeometryError):
            reader.read(0, Region.of((5,) * len(full)), wrong)

    def test_outside(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        full = image[1][0].shape[:-1]
        for axis, extent in enumerate(full):
            for start in (-1, extent - 4, extent + 9):
                origin = tuple(start if a == axis else 0 for a in range(len(full)))
                with pytest.raises(GeometryError):
                    reader.read(0, Region(origin, (5,) * len(full)))

    def test_no_such_level(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        for level in (-1, len(image[1])):
            with pytest.raises(ResolutionError):
                reader.read(level, Region.of((1,) * (image[1][0].ndim - 1)))

    def test_many_threads(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        rng = np.random.default_rng(8)
        jobs = [
            (level, region)
            for level, expected in enumerate(image[1])
            for region in _regions(rng, expected.shape[:-1], 30)
        ]
        with ThreadPoolExecutor(8) as pool:
            results = pool.map(lambda job: reader.read(*job), jobs)
            for (level, region), actual in zip(jobs, results, strict=True):
                self._same(actual, image[1][level][region.slices], f"level {level}, {region}")

    def test_associated(self, reader: Reader) -> None:
        for name in reader.info.associated:
            pixels = reader.read_associated(name)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
        with pytest.raises(UsageError):
            reader.read_associated("no such image")

    def test_close(self, image: tuple[str, list[Array]]) -> None:
        reader = self.backend.open(image[0])
        corner = Region.of((2,) * (image[1][0].ndim - 1))
        reader.read(0, corner)
        reader.close()
        reader.close()
        again = self.backend.open(image[0])
        self._same(again.read(0, corner), image[1][0][corner.slices], "open again")
        again.close()

    def test_missing(self, tmp_path: Path) -> None:
        uri = self.make_missing(tmp_path)
        with pytest.raises(ImageNotFoundError) as caught:
            self.backend.open(uri)
        assert uri in str(caught.value)
        with pytest.raises(ImageNotFoundError):
            self.backend.fingerprint(uri)

    def test_not_an_image(self, tmp_path: Path) -> None:
        uri = self.make_not_an_image(tmp_path)
        with pytest.raises(ImageError) as caught:
            self.backend.open(uri)
        assert uri in str(caught.value)

    def test_fingerprint(self, image: tuple[str, list[Array]]) -> None:
        before = self.backend.fingerprint(image[0])
        assert before
        assert self.backend.fingerprint(image[0]) == before
        self.change(image[0])
        assert self.backend.fingerprint(image[0]) != before

    def test_damaged_tile_raises(self, tmp_path: Path) -> None:
        uri, levels, damaged = self._damage(tmp_path)
        reader = self.backend.open(uri)
        with pytest.raises(TileError) as caught:
            reader.read(0, Region.of(levels[0].shape[:-1]))
        assert caught.value.level == 0
        assert caught.value.tile == damaged.cells(reader.info.levels[0].tile_shape).origin
        assert uri in str(caught.value)
        assert min(damaged.origin) > 0, "make_damaged must damage a tile further inside"
        before = Region.of(damaged.origin)
        self._same(reader.read(0, before), levels[0][before.slices], "after the error")
        reader.close()

    def test_damaged_tile_filled(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        uri, levels, damaged = self._damage(tmp_path)
        reader = self.backend.open(uri)
        with caplog.at_level("WARNING", logger="daskdmed.images"):
            actual = reader.read(0, Region.of(levels[0].shape[:-1]), tile_error="fill")
        expected = levels[0].copy()
        expected[damaged.slices] = reader.info.background_value
        self._same(actual, expected, "filled")
        assert any(uri in record.getMessage() for record in caplog.records)
        tile = damaged.cells(reader.info.levels[0].tile_shape).origin
        assert {(failed.level, failed.tile) for failed in reader.failed_tiles} == {(0, tile)}
        reader.close()

    def test_opened_survives_pickling(self, image: tuple[str, list[Array]]) -> None:
        opened = self._open(image)
        copy = pickle.loads(pickle.dumps(opened))
        assert copy == opened
        for one in (opened, copy):
            view = one.view(level=0)
            actual = view.read(Region.of(view.spatial_shape))
            self._same(self._seen(actual), image[1][0], "the whole of level 0")
        copy.close()
        opened.close()

    def test_read_region(self, image: tuple[str, list[Array]]) -> None:
        with self._open(image) as opened:
            if not isinstance(opened, Slide):
                pytest.skip("slides have read_region")
            height, width = image[1][0].shape[:2]
            actual = opened.read_region((0, 0), 0, (width, height))
            self._same(actual, image[1][0], "read_region of the whole of level 0")

    def test_to_dask(self, image: tuple[str, list[Array]]) -> None:
        with self._open(image) as opened:
            for level, expected in enumerate(image[1]):
                actual = opened.to_dask(level, chunks=256).compute(scheduler="threads")
                self._same(self._seen(actual), expected, f"to_dask of level {level}")

    # -- helpers -----------------------------------------------------------------------

    def _open(self, image: tuple[str, list[Array]]) -> Slide | Volume:
        volume = kind_of(self.backend) == "volume"
        if not self.through_slide or image[1][0].ndim != (4 if volume else 3):
            pytest.skip("through_slide is False, or the image is no plane")
        opener: Callable[..., Slide | Volume] = open_volume if volume else open_slide
        return opener(image[0], backend=self.backend.name)

    def _seen(self, actual: Array) -> Array:
        """With the channel axis that readers always give, and users do not always see."""
        return (
            actual[..., None] if kind_of(self.backend) == "volume" and actual.ndim == 3 else actual
        )

    def _same(self, actual: Array, expected: Array, what: str) -> None:
        assert_same_pixels(actual, expected, atol=self.atol, what=what)

    def _damage(self, tmp_path: Path) -> tuple[str, list[Array], Region]:
        made = self.make_damaged(tmp_path)
        if made is None:
            pytest.skip("make_damaged is not defined")
        return made


def _middle(image: Array) -> Region:
    full = image.shape[:-1]
    return Region(tuple(n // (5 + 2 * a) for a, n in enumerate(full)), tuple(n // 2 for n in full))


def _regions(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> Iterator[Region]:
    """Single pixels in the corners, one pixel thick faces, then random boxes."""
    axes = len(shape)
    for corner in itertools.product(*((0, n - 1) for n in shape)):
        yield Region(corner, (1,) * axes)
    for axis, extent in enumerate(shape):
        origin = tuple(extent - 1 if a == axis else 0 for a in range(axes))
        yield Region(origin, tuple(1 if a == axis else n for a, n in enumerate(shape)))
    for _ in range(count):
        start = [int(rng.integers(n)) for n in shape]
        extents = (int(rng.integers(1, n - o + 1)) for n, o in zip(shape, start, strict=True))
        yield Region(tuple(start), tuple(extents))
