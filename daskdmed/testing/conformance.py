"""The tests that every image backend must pass.

A third party subclasses `BackendConformance` in its own test suite; the tests then run
against its backend. They cover the contract of `daskdmed.images.protocols`, not the
variety of files that a format allows: that is for tests of its own.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskdmed.core.errors import (
    GeometryError,
    ImageError,
    ImageNotFoundError,
    TileError,
    UsageError,
)
from daskdmed.core.types import Array, Region
from daskdmed.images.protocols import Backend, Reader
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
        Also test through `daskdmed.open_slide`, which needs the entry point to be
        installed. True by default.

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
        """Write an image. At least two levels and several tiles make the tests worth it.

        Returns
        -------
        uri : str
            What to open.
        levels : list of ndarray
            Reference pixels of every level, (height, width, channels), largest first.
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
        """Write an image with one storage tile of level 0 that cannot be decoded.

        Returns
        -------
        uri, levels
            As `make`.
        damaged : Region
            The pixels of level 0 that are lost: all of them and no others. Not in the first
            row or column of tiles.

        None skips the tests of damage.
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
        height, width, channels = levels[0].shape
        assert [level.shape for level in info.levels] == [a.shape for a in levels]
        sizes = [level.shape[0] * level.shape[1] for level in info.levels]
        assert sizes == sorted(sizes, reverse=True)
        for level in info.levels:
            h, w, _ = level.shape
            assert level.downsample == (height / h, width / w)
            assert len(level.tile_shape) == 2
            assert min(level.tile_shape) > 0
        assert info.numpy_dtype == levels[0].dtype
        assert len(info.background) == channels
        if info.mpp is not None:
            assert len(info.mpp) == 2
            assert min(info.mpp) > 0
        assert all(isinstance(k, str) for k in info.properties)
        assert all(isinstance(v, str) for v in info.properties.values())

    def test_info_pickles(self, reader: Reader) -> None:
        assert pickle.loads(pickle.dumps(reader.info)) == reader.info

    def test_whole_levels(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        for level, expected in enumerate(image[1]):
            actual = reader.read(level, Region((0, 0), expected.shape[:2]))
            self._same(actual, expected, f"level {level}")

    def test_random_regions(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        rng = np.random.default_rng(7)
        for level, expected in enumerate(image[1]):
            for region in _regions(rng, expected.shape[:2], 40):
                actual = reader.read(level, region)
                self._same(actual, expected[region.slices], f"level {level}, {region}")

    def test_single_tiles(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        for level, expected in enumerate(image[1]):
            height, width = expected.shape[:2]
            rows, columns = reader.info.levels[level].tile_shape
            for y in range(0, height, rows):
                for x in range(0, width, columns):
                    region = Region((y, x), (min(rows, height - y), min(columns, width - x)))
                    actual = reader.read(level, region)
                    self._same(actual, expected[region.slices], f"level {level}, {region}")

    def test_empty_region(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        channels = image[1][0].shape[2]
        assert reader.read(0, Region((3, 2), (0, 5))).shape == (0, 5, channels)

    def test_out_contiguous(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        expected = image[1][0]
        region = _middle(expected)
        out = np.full_like(expected[region.slices], 77)
        assert reader.read(0, region, out) is out
        self._same(out, expected[region.slices], "contiguous out")

    def test_out_strided(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        expected = image[1][0]
        region = _middle(expected)
        h, w, c = expected[region.slices].shape
        frame = np.full((h + 4, w + 6, c), 77, expected.dtype)
        inner = frame[2:-2, 3:-3]
        reader.read(0, region, inner)
        self._same(inner, expected[region.slices], "a window of a larger array")
        inner[...] = 77
        assert (frame == 77).all(), "pixels around `out` were written"
        planar = np.full((c, h, w), 77, expected.dtype)
        reader.read(0, region, planar.transpose(1, 2, 0))
        self._same(planar.transpose(1, 2, 0), expected[region.slices], "channels first")

    def test_out_that_does_not_fit(self, reader: Reader) -> None:
        channels = reader.info.levels[0].shape[2]
        wrong = np.empty((5, 6, channels), reader.info.dtype)
        with pytest.raises(GeometryError):
            reader.read(0, Region((0, 0), (5, 5)), wrong)

    def test_outside(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        height, width = image[1][0].shape[:2]
        for origin in ((-1, 0), (0, -1), (height - 4, 0), (0, width - 4), (height + 9, 0)):
            with pytest.raises(GeometryError):
                reader.read(0, Region(origin, (5, 5)))

    def test_no_such_level(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        for level in (-1, len(image[1])):
            with pytest.raises(UsageError):
                reader.read(level, Region((0, 0), (1, 1)))

    def test_many_threads(self, image: tuple[str, list[Array]], reader: Reader) -> None:
        rng = np.random.default_rng(8)
        jobs = [
            (level, region)
            for level, expected in enumerate(image[1])
            for region in _regions(rng, expected.shape[:2], 30)
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
        reader.read(0, Region((0, 0), (2, 2)))
        reader.close()
        reader.close()
        again = self.backend.open(image[0])
        self._same(again.read(0, Region((0, 0), (2, 2))), image[1][0][:2, :2], "open again")
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
            reader.read(0, Region((0, 0), levels[0].shape[:2]))
        rows, columns = reader.info.levels[0].tile_shape
        assert caught.value.level == 0
        assert caught.value.tile == (damaged.origin[0] // rows, damaged.origin[1] // columns)
        assert uri in str(caught.value)
        assert min(damaged.origin) > 0, "make_damaged must damage a tile further inside"
        again = reader.read(0, Region((0, 0), damaged.origin))
        self._same(again, levels[0][: damaged.origin[0], : damaged.origin[1]], "after the error")
        reader.close()

    def test_damaged_tile_filled(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        uri, levels, damaged = self._damage(tmp_path)
        reader = self.backend.open(uri)
        with caplog.at_level("WARNING", logger="daskdmed.images"):
            actual = reader.read(0, Region((0, 0), levels[0].shape[:2]), tile_error="fill")
        expected = levels[0].copy()
        expected[damaged.slices] = np.asarray(reader.info.background, expected.dtype)
        self._same(actual, expected, "filled")
        assert any(uri in record.getMessage() for record in caplog.records)
        reader.close()

    def test_slide_survives_pickling(self, image: tuple[str, list[Array]]) -> None:
        if not self.through_slide:
            pytest.skip("through_slide is False")
        from daskdmed.images.slide import open_slide

        uri, levels = image
        slide = open_slide(uri, backend=self.backend.name)
        copy = pickle.loads(pickle.dumps(slide))
        assert copy == slide
        height, width = levels[0].shape[:2]
        for one in (slide, copy):
            actual = one.read_region((0, 0), 0, (width, height))
            self._same(actual, levels[0], "read_region of the whole of level 0")
        copy.close()
        slide.close()

    def test_slide_to_dask(self, image: tuple[str, list[Array]]) -> None:
        if not self.through_slide:
            pytest.skip("through_slide is False")
        from daskdmed.images.slide import open_slide

        uri, levels = image
        with open_slide(uri, backend=self.backend.name) as slide:
            for level, expected in enumerate(levels):
                lazy = slide.to_dask(level, chunks=256)
                actual = lazy.compute(scheduler="threads")
                self._same(actual, expected, f"to_dask of level {level}")

    # -- helpers -----------------------------------------------------------------------

    def _same(self, actual: Array, expected: Array, what: str) -> None:
        assert_same_pixels(actual, expected, atol=self.atol, what=what)

    def _damage(self, tmp_path: Path) -> tuple[str, list[Array], Region]:
        made = self.make_damaged(tmp_path)
        if made is None:
            pytest.skip("make_damaged is not defined")
        return made


def _middle(image: Array) -> Region:
    height, width = image.shape[:2]
    return Region((height // 5, width // 7), (height // 2, width // 2))


def _regions(rng: np.random.Generator, shape: tuple[Any, ...], count: int) -> Iterator[Region]:
    """Single pixels in the corners, strips along the edges, then random boxes."""
    height, width = shape
    for y in (0, height - 1):
        for x in (0, width - 1):
            yield Region((y, x), (1, 1))
    yield Region((height - 1, 0), (1, width))
    yield Region((0, width - 1), (height, 1))
    for _ in range(count):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        box = int(rng.integers(1, height - y + 1)), int(rng.integers(1, width - x + 1))
        yield Region((y, x), box)
