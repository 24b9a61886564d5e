"""Choosing a backend."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import tifffile

from daskdmed.errors import (
    CorruptImageError,
    MissingExtraError,
    TileError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images import registry
from daskdmed.images.opening import open_slide
from daskdmed.images.protocols import Backend
from daskdmed.images.tiff import TiffBackend


@pytest.fixture
def extra(monkeypatch):
    """Register backends for one test: name -> class."""

    def register(**classes):
        module = types.ModuleType("daskdmed_test_backends")
        for name, cls in classes.items():
            setattr(module, name, cls)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        points = [EntryPoint(n, f"{module.__name__}:{n}", registry.GROUP) for n in classes]
        points.append(EntryPoint("broken", "daskdmed_no_such_module:Backend", registry.GROUP))
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        registry.refresh()

    yield register
    monkeypatch.undo()
    registry.refresh()


class First(TiffBackend):
    name = "first"
    priority = 1


class Refuses(First):
    def open(self, uri):
        raise UnsupportedImageError(f"{uri}: not today", uri=uri)


def test_built_in_backends():
    assert {"tiff", "zarr", "openslide"} <= set(registry.backend_names())
    assert isinstance(registry.get_backend("tiff"), Backend)
    assert registry.get_backend("tiff") is registry.get_backend("tiff")


def test_built_in_backends_need_no_metadata(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    registry.refresh()
    assert registry.get_backend("tiff").name == "tiff"
    monkeypatch.undo()
    registry.refresh()


def test_a_third_party_backend_comes_first_by_priority(make, tmp_path, extra):
    make.write_format(tmp_path / "a.tif", "lzw")
    extra(first=First)
    slide = open_slide(tmp_path / "a.tif")
    assert slide.backend == "first"
    assert slide.read_region((0, 0), 0, (5, 5)).shape == (5, 5, 3)
    assert open_slide(tmp_path / "a.tif", backend="tiff").backend == "tiff"


def test_the_next_one_is_tried(make, tmp_path, extra):
    make.write_format(tmp_path / "a.tif", "lzw")
    extra(refuses=Refuses)
    assert open_slide(tmp_path / "a.tif").backend == "tiff"
    with pytest.raises(UnsupportedImageError, match="not today"):
        open_slide(tmp_path / "a.tif", backend="refuses")


def test_openslide_reads_what_tiff_does_not(make, tmp_path):
    pytest.importorskip("openslide")
    path = tmp_path / "cmyk.tif"
    image = make.picture(300, 300, 4)
    tifffile.imwrite(path, image, photometric="separated", tile=(128, 128), metadata=None)
    slide = open_slide(path)
    assert slide.backend == "openslide"
    assert slide.read_region((0, 0), 0, (10, 10)).shape == (10, 10, 3)


@pytest.mark.parametrize("error", [TileError, CorruptImageError])
def test_what_opens_and_cannot_be_read_is_closed(make, tmp_path, extra, error):
    class Opens(First):
        priority = 2

        def open(self, uri):
            reader = super().open(uri)
            readers.append(reader)

            def read(*args):
                raise error(f"{uri}: of no kind", uri=uri)

            reader.read = read
            return reader

    readers = []
    extra(refuses=Refuses, opens=Opens)
    make.write_format(tmp_path / "a.tif", "lzw")
    slide = open_slide(tmp_path / "a.tif")  # by those that come after
    assert slide.backend == "tiff"
    assert [reader._closed for reader in readers] == [True]


def test_every_reason_is_told(make, tmp_path, extra):
    extra(refuses=Refuses)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((300, 300), np.uint8), metadata=None)
    make.overwrite_tag(tmp_path / "a.tif", 259, 34661)
    with pytest.raises(UnsupportedImageError) as caught:
        open_slide(tmp_path / "a.tif")
    text = str(caught.value)
    assert "refuses: " in text
    assert "not today" in text
    assert "tiff: " in text
    assert "compression 34661" in text
    assert "broken" in text
    assert "pip install" in text


def test_wrong_names(extra):
    extra()
    with pytest.raises(UsageError, match=r"no backend 'x'; there are .*tiff"):
        registry.get_backend("x")
    with pytest.raises(MissingExtraError, match=r"broken.*cannot be imported"):
        registry.get_backend("broken")
