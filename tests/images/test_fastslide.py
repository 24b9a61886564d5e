"""FastSlide on what others read too, as its own formats have no writer."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tifffile

from daskdmed.errors import MissingExtraError, UnsupportedImageError
from daskdmed.images.fastslide import FastSlideBackend
from daskdmed.images.opening import open_slide
from daskdmed.testing import BackendConformance, coordinate_image

pytest.importorskip("fastslide")


class TestFastSlide(BackendConformance):
    """A pyramid without loss, as Aperio writes one."""

    backend = FastSlideBackend()

    def make(self, tmp_path):
        levels = [coordinate_image((300, 420), "uint8"), coordinate_image((75, 105), "uint8")]
        about = "Aperio Image Library v10\r\n420x300 (64x64) |AppMag = 20|MPP = 0.5"
        with tifffile.TiffWriter(tmp_path / "a.svs") as file:
            for level in levels:
                file.write(
                    level, tile=(64, 64), photometric="rgb", compression="lzw",
                    description=about, metadata=None, subfiletype=0,
                )  # fmt: skip
        return str(tmp_path / "a.svs"), levels

    def test_accepts_its_own(self, image, tmp_path):
        """Only what nothing else opens: it takes any file named .svs for a slide."""
        assert self.backend.accepts(image[0]) is False
        for suffix in ("isyntax", "vsi"):
            (tmp_path / f"a.{suffix}").touch()
            assert self.backend.accepts(str(tmp_path / f"a.{suffix}")) is True


def test_how_far_it_is_from_openslide(cmu):
    """The figures in docs/formats.md."""
    region = (0, 0), 0, (2220, 2967)
    with open_slide(cmu, backend="fastslide") as one, open_slide(cmu) as other:
        assert one.mpp == other.mpp
        assert one.power == other.power
        assert one.level_dimensions == other.level_dimensions
        assert set(one.associated_images) == set(other.associated_images)
        label = other.associated_images["label"]
        assert one.associated_images["label"].shape == label.shape
        difference = np.abs(one.read_region(*region).astype(np.int16) - other.read_region(*region))
    assert difference.max() == 2
    assert 0.55 < (difference > 0).mean() < 0.65


def test_channels(qptiff):
    with open_slide(qptiff, backend="fastslide") as one, open_slide(qptiff) as other:
        assert one.dimensions == other.dimensions
        assert one.channels == other.channels
        size = (100, 80)
        assert np.array_equal(
            one.read_region((40, 30), 0, size), other.read_region((40, 30), 0, size)
        )


def test_what_it_does_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.isyntax"
    path.write_bytes(b"no slide" * 100)
    with pytest.raises(UnsupportedImageError, match="FastSlide cannot open it"):
        open_slide(path)
    other = tmp_path / "a.svs"
    other.write_bytes(b"no slide" * 100)
    with pytest.raises(UnsupportedImageError, match="FastSlide cannot open it"):
        open_slide(other, backend="fastslide")
    monkeypatch.setitem(sys.modules, "fastslide", None)
    for suffix in ("isyntax", "vsi"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(b"no slide" * 100)
        with pytest.raises(UnsupportedImageError, match=r"daskdmed\[fastslide\]"):
            open_slide(path)
        with pytest.raises(MissingExtraError, match=r"daskdmed\[fastslide\]"):
            open_slide(path, backend="fastslide")
