"""The conformance kit accepts a correct backend and finds the faults of broken ones."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace

import numpy as np
import pytest

from daskdmed.core.region import Region
from daskdmed.errors import CorruptImageError, ImageNotFoundError, UsageError
from daskdmed.images.protocols import LevelInfo, SlideInfo
from daskdmed.images.readers import TileFailures, prepare_output
from daskdmed.testing import BackendConformance, coordinate_image

TILE = 64
BAD = Region((64, 128), (TILE, TILE))


class ArchiveReader:
    """Levels from an .npz archive; `fault` is what it does wrong."""

    def __init__(self, uri, fault):
        self.uri, self.fault = uri, fault
        with np.load(uri) as archive:
            self.levels = [archive[f"level{i}"] for i in range(2)]
            self.bad = "bad" in archive
        h, w, c = self.levels[0].shape
        levels = tuple(
            LevelInfo(a.shape, (TILE, TILE), (h / a.shape[0], w / a.shape[1])) for a in self.levels
        )
        if fault == "rounded downsample":
            levels = tuple(
                replace(x, downsample=tuple(float(round(d)) for d in x.downsample)) for x in levels
            )
        if fault == "levels in the wrong order":
            levels = levels[::-1]
        background = (255,) * (1 if fault == "one background" else c)
        self.info = SlideInfo(levels, "uint8", background)
        self.failures = TileFailures(uri)

    @property
    def failed_tiles(self):
        return self.failures.kept

    def read(self, level, region, out=None, *, tile_error="raise"):
        if self.fault == "reads outside":
            target = np.zeros((*region.shape, 3), np.uint8) if out is None else out
        else:
            target = prepare_output(self.uri, self.info, level, region, out)
        if self.fault == "ignores out":
            target = np.empty_like(target)
        y, x = region.origin
        shift = int(self.fault == "shifted" and x > 0)
        part = self.levels[level][y : region.stop[0], x - shift : region.stop[1] - shift]
        if self.fault == "assumes contiguous out":
            target.reshape(-1)[: part.size] = part.reshape(-1)
        elif self.fault != "reads outside" or part.shape == target.shape:
            target[...] = part
        if self.bad and level == 0:
            self._damage(region, target, tile_error)
        return target

    def _damage(self, region, target, tile_error):
        start = np.maximum(region.origin, BAD.origin)
        stop = np.minimum(region.stop, BAD.stop)
        if (start >= stop).any():
            return
        if self.fault == "zeros for a bad tile":
            target[...] = 0
            return
        if tile_error == "raise" or self.fault != "silent fill":
            self.failures(0, (1, 2), ValueError("bad"), tile_error)
        lost = tuple(
            slice(a - o, b - o) for a, b, o in zip(start, stop, region.origin, strict=True)
        )
        target[lost] = self.info.background_value

    def read_associated(self, name):
        raise UsageError(f"no {name}")

    def close(self):
        if self.fault == "closes once" and getattr(self, "closed", False):
            raise RuntimeError("closed twice")
        self.closed = True


class ArchiveBackend:
    name = "archive"
    priority = 90

    def __init__(self, fault=""):
        self.fault = fault

    def accepts(self, uri):
        if self.fault == "accepts everything":
            return True
        return uri.endswith(".npz") and os.path.isfile(uri)

    def open(self, uri):
        if not os.path.exists(uri):
            if self.fault == "untyped error":
                raise KeyError(uri)
            raise ImageNotFoundError(f"{uri} is missing", uri=uri)
        if not uri.endswith(".npz"):
            raise CorruptImageError(f"{uri} is no archive", uri=uri)
        return ArchiveReader(uri, self.fault)

    def fingerprint(self, uri):
        if not os.path.exists(uri):
            raise ImageNotFoundError(f"{uri} is missing", uri=uri)
        facts = os.stat(uri)
        return f"{facts.st_size}" + ("" if self.fault == "size only" else f"-{facts.st_mtime_ns}")


class ArchiveConformance(BackendConformance):
    backend = ArchiveBackend()
    through_slide = False

    def write(self, path, **extra):
        levels = [coordinate_image((211, 301), "uint8"), coordinate_image((53, 75), "uint8")]
        np.savez(path, **{f"level{i}": a for i, a in enumerate(levels)}, **extra)
        return str(path), levels

    def make(self, tmp_path):
        return self.write(tmp_path / "image.npz")

    def make_damaged(self, tmp_path):
        return *self.write(tmp_path / "bad.npz", bad=np.ones(1)), BAD


class TestCorrectBackend(ArchiveConformance):
    pass


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("rounded downsample", "test_info"),
        ("levels in the wrong order", "test_info"),
        ("one background", "test_info"),
        ("shifted", "test_random_regions"),
        ("shifted", "test_single_tiles"),
        ("shifted", "test_many_threads"),
        ("ignores out", "test_out_contiguous"),
        ("assumes contiguous out", "test_out_strided"),
        ("reads outside", "test_outside"),
        ("reads outside", "test_out_that_does_not_fit"),
        ("zeros for a bad tile", "test_damaged_tile_raises"),
        ("zeros for a bad tile", "test_damaged_tile_filled"),
        ("silent fill", "test_damaged_tile_filled"),
        ("closes once", "test_close"),
        ("accepts everything", "test_accepts_its_own"),
        ("untyped error", "test_missing"),
        ("size only", "test_fingerprint"),
    ],
)
def test_faults_are_found(tmp_path, caplog, fault, test):
    kit = ArchiveConformance()
    kit.backend = ArchiveBackend(fault)
    image = kit.make(tmp_path)
    given = {"image": image, "tmp_path": tmp_path, "caplog": caplog}
    given["reader"] = kit.backend.open(image[0])
    method = getattr(kit, test)
    arguments = {name: given[name] for name in inspect.signature(method).parameters}
    with pytest.raises((Exception, pytest.fail.Exception)):  # assertions and wrong errors alike
        method(**arguments)
    kit.backend = ArchiveBackend()
    if "reader" in arguments:
        arguments["reader"] = kit.backend.open(image[0])
    method(**arguments)
