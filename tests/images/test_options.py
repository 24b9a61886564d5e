"""What a slide is opened with, and what reaches a backend of it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.errors import UnsupportedImageError
from daskdmed.images import registry
from daskdmed.images.filecache import FileKey, cache
from daskdmed.images.opening import open_slide
from daskdmed.images.protocols import ChannelInfo, SlideInfo, SlideOptions
from daskdmed.images.readers import level_infos

NAMES = st.text(max_size=8) | st.sampled_from(["{", '{"image": "a"}', "macro", "3", "z=1"])


@given(image=NAMES, plane=NAMES)
@settings(max_examples=60, deadline=None)
def test_options_come_back_from_their_text(image, plane):
    options = SlideOptions(image, plane)
    assert SlideOptions.parse(options.text) == options
    assert bool(options) == bool(options.text) == bool(image or plane)


def test_a_plain_name_of_an_image_is_its_own_text():
    # keys and tokens of slides that were opened by image= stay what they were
    assert SlideOptions("macro").text == "macro"
    assert SlideOptions("macro", "z=1").text == '{"image": "macro", "plane": "z=1"}'


def test_a_channel_is_its_name_and_keeps_what_is_known_of_it():
    channel = ChannelInfo("DAPI", "0000FF", 461.0, 359.0, (0.0, 9.0))
    for twin in (channel, pickle.loads(pickle.dumps(channel)), copy.deepcopy(channel)):
        assert twin == twin.name == "DAPI"
        assert type(twin.name) is str
        assert twin.facts == ("DAPI", "0000FF", 461.0, 359.0, (0.0, 9.0))


class Stack:
    """Three planes, of which each holds its number."""

    name, priority = "stack", 1

    class Reader:
        failed_tiles = ()

        def __init__(self, plane):
            levels = level_infos([(4, 6, 1)], [(4, 6)])
            names = ("z=0", "z=1", "z=2")
            self.number = int(plane.removeprefix("z=") or 1)
            self.info = SlideInfo(levels, "uint8", (0,), planes=names, plane=names[self.number])

        def read(self, level, region, out=None, *, tile_error="raise"):
            found = np.full((*region.shape, 1), self.number, np.uint8)
            if out is not None:
                out[...] = found
            return found

        def icc_profile(self):
            return b"profile"

        def close(self):
            pass

    def accepts(self, uri):
        return uri.endswith(".stack")

    def open(self, uri):
        return self.Reader("")

    def open_slide(self, uri, options):
        assert not options.image
        return self.Reader(options.plane)

    def fingerprint(self, uri):
        return "1"


@pytest.fixture
def stack(tmp_path, monkeypatch):
    path = tmp_path / "a.stack"
    path.write_bytes(b"x")
    monkeypatch.setattr(registry, "_load", lambda name, target: Stack())
    monkeypatch.setattr(registry, "_targets", lambda: {"stack": "a:b"})
    yield str(path)
    cache.clear()


def test_a_plane_reaches_the_backend_and_stays_with_the_key(stack):
    usual = open_slide(stack)
    assert (usual.planes, usual.plane, usual.key.image) == (("z=0", "z=1", "z=2"), "z=1", "")
    slides = [open_slide(stack, plane=said) for said in (2, "2", "z=2")]
    assert len({(s.token, s.key) for s in slides}) == 1  # one name for one plane
    assert slides[0].token != usual.token
    for slide in (slides[0], pickle.loads(pickle.dumps(slides[0]))):
        cache.clear()  # opened again, as a worker does
        assert slide.read_region((0, 0), 0, (2, 2)).max() == 2
    assert usual.read_region((0, 0), 0, (2, 2)).max() == 1
    assert usual.icc_profile == b"profile"


def test_backends_that_know_no_planes_say_so(make, tmp_path):
    class Plain(Stack):
        open_slide = None

    key = FileKey("a.stack", "plain", "1", SlideOptions(plane="z=2").text)
    with pytest.raises(UnsupportedImageError, match="one plane per file, plane='z=2'"):
        registry.open_image(Plain(), key.uri, SlideOptions.parse(key.image))
    with pytest.raises(UnsupportedImageError, match="one image per file, image='b'"):
        registry.open_image(Plain(), key.uri, SlideOptions("b"))
    assert registry.open_image(Plain(), key.uri, SlideOptions()).info.plane == "z=1"


def test_a_reader_without_profiles_has_none(make, tmp_path):
    make.write_pyramid(tmp_path / "a.tif", compression="deflate")
    slide = open_slide(tmp_path / "a.tif", backend="tiff")
    assert (slide.icc_profile, slide.planes, slide.plane) == (None, (), "")
    assert (slide.channels, slide.is_labels) == (None, False)
