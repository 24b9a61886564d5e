"""How channels, labels and colours are shown."""

from __future__ import annotations

import base64
import re
import warnings

import imagecodecs
import numpy as np
import pytest
import tifffile

from daskdmed.images.composite import composite, display
from daskdmed.images.opening import open_slide
from daskdmed.images.protocols import ChannelInfo, SlideInfo
from daskdmed.images.readers import level_infos


def info(channels=(), count=3, dtype="uint8", **more):
    background = more.pop("background", (0,) * count)
    levels = level_infos([(8, 8, count)], [(8, 8)])
    return SlideInfo(levels, dtype, background, channels=tuple(channels), **more)


def noise(*shape, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def test_colours_add_up():
    ramp = np.linspace(0, 100, 101)
    picture = np.stack([ramp, ramp[::-1]], -1)[None].astype(np.uint16)
    window = (20.0, 80.0)
    red, cyan = (ChannelInfo("", c, window=window) for c in ("FF0000", "008080"))
    got = composite(picture, [red, cyan])
    one = np.clip((picture.astype(float) - 20) / 60, 0, 1)[0]
    want = np.stack([255 * one[:, 0], 128 * one[:, 1], 128 * one[:, 1]], -1)
    assert np.abs(got[0] - want).max() <= 1
    both = composite(picture, [red, red])[0, :, 0]
    assert np.abs(both - np.minimum(255, 255 * one.sum(axis=1))).max() <= 1  # no overflow


@pytest.mark.parametrize("value", [0, 7])
def test_flat_channels_and_what_is_no_number(value):
    flat = np.full((4, 5, 2), value, np.float32)
    flat[0, 0] = np.nan
    assert not composite(flat, []).any()
    flat[0, 0] = np.inf
    assert composite(flat, []).shape == (4, 5, 3)
    flat[0, 0] = np.array([0x7FA00000], np.uint32).view(np.float32)  # one that signals
    with warnings.catch_warnings(action="error"):
        assert not composite(flat, []).any()


def test_what_is_what():
    rgb = noise(8, 8, 3)
    assert display(rgb) is rgb
    assert display(rgb, info()) is rgb
    primaries = [ChannelInfo(n, c) for n, c in zip("rgb", ("FF0000", "00FF00", "0000FF"))]
    assert display(rgb, info(primaries)) is rgb
    stains = [ChannelInfo(n, c) for n, c in zip("abc", ("0000FF", "00FF00", "FF0000"))]
    assert np.array_equal(display(rgb, info(stains)), composite(rgb, stains))
    deep = noise(8, 8, 3, dtype="uint16") * 257
    white = info(dtype="uint16", background=(65535,) * 3)
    assert np.array_equal(display(deep, white), deep >> 8)
    assert np.array_equal(display(deep, info(dtype="uint16")), composite(deep, []))
    grey = display(noise(8, 8, 1))
    assert (grey == grey[..., :1]).all()
    assert (grey.min(), grey.max()) == (0, 255)
    tinted = display(noise(8, 8, 1), info([ChannelInfo("DAPI", "0000FF")], 1))
    assert not tinted[..., :2].any()
    assert display(noise(8, 8, 5)).shape == (8, 8, 3)


def test_labels_have_colours_of_their_own():
    labels = np.array([[0, 1, 2, 9, 10]], np.uint8)[..., None]
    shown = display(labels, info(count=1, is_labels=True))[0].tolist()
    assert shown[0] == [0, 0, 0]
    assert shown[1] != shown[2]
    assert shown[1] == shown[3]  # a palette of eight
    assert shown[2] == shown[4]


def test_pictures_of_slides(tmp_path):
    data = noise(3, 64, 96, dtype="uint16")
    said = {"Name": ["DAPI", "A", "B"], "Color": [65535, 16711935, -16776961]}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, data, tile=(16, 16), photometric="minisblack",
        metadata={"axes": "CYX", "Channel": said},
    )  # fmt: skip
    slide = open_slide(path)
    assert [c.color for c in slide.channels] == ["0000FF", "00FF00", "FF0000"]
    thumbnail = slide.get_thumbnail((48, 48))
    picture = slide.get_picture((48, 48))
    assert np.array_equal(picture, composite(thumbnail, slide.channels))
    page = slide._repr_html_()
    assert "DAPI" in page
    code = re.search(r"base64,([^\"]+)", page).group(1)
    drawn = imagecodecs.png_decode(base64.b64decode(code))
    assert np.array_equal(drawn, slide.get_picture((192, 192)))
    only = slide.with_channels("DAPI").get_picture((48, 48))
    assert only[..., 2].any()
    assert not only[..., :2].any()


def test_figures_show_the_composite(tmp_path):
    pytest.importorskip("matplotlib")
    from daskdmed.plot import overlay

    said = {"Name": ["DAPI", "A"], "Color": [65535, 16711935]}
    path, data = tmp_path / "a.ome.tif", noise(2, 64, 96, dtype="uint16")
    tifffile.imwrite(
        path, data, tile=(16, 16), photometric="minisblack",
        metadata={"axes": "CYX", "Channel": said},
    )  # fmt: skip
    slide = open_slide(path)
    figure = overlay(slide, np.zeros((4, 6), np.float32), max_size=96)
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    assert np.array_equal(drawn, composite(np.moveaxis(data, 0, -1), slide.channels))
