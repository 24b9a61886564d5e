"""CZI through pylibCZIrw, against what was written, and OpenSlide."""

from __future__ import annotations

import struct
import sys

import imagecodecs
import numpy as np
import pytest

from daskdmed.core.region import Region
from daskdmed.errors import (
    CorruptImageError,
    MissingExtraError,
    TileError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.czi import CziBackend
from daskdmed.images.opening import open_slide
from daskdmed.images.registry import choose_backend
from daskdmed.testing import BackendConformance

pytest.importorskip("pylibCZIrw")


def noise(height, width, channels=3, seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def whole(slide, level=0):
    view = slide.view(level=level)
    return view.read(Region.of(view.spatial_shape))


class TestCzi(BackendConformance):
    """RGB in a pyramid that begins somewhere."""

    backend = CziBackend()

    @pytest.fixture(autouse=True)
    def _writer(self, czi):
        self.writer = czi

    def make(self, tmp_path):
        levels = [noise(203 // f, 310 // f, seed=f) for f in (1, 2, 4)]
        tiles = []
        for factor, level in zip((1, 2, 4), levels):
            tiles += self.writer.mosaic(level, 64, x=100, y=-40, factor=factor)
        self.writer.write(tmp_path / "a.czi", tiles)
        return str(tmp_path / "a.czi"), levels

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        with open(uri, "r+b") as file:
            data = file.read()
            at = -1
            for _ in range(5 + 3):  # the third tile of the second row
                at = data.index(b"ZISRAWSUBBLOCK", at + 1)
            file.seek(at)
            file.write(b"X" * 16)
        return uri, levels, Region((64, 128), (64, 64))


@pytest.mark.parametrize(
    ("compression", "dtype"), [("zstd1:", np.uint16), ("zstd0:ExplicitLevel=3", np.uint8)]
)
def test_channels(tmp_path, compression, dtype):
    """Written by pylibCZIrw."""
    from pylibCZIrw import czi as pylib

    images = [noise(100, 130, 1, seed, dtype) for seed in range(3)]
    names = {0: "DAPI", 1: "FITC", 2: "Cy5"}
    with pylib.create_czi(str(tmp_path / "a.czi"), compression_options=compression) as file:
        for number, image in enumerate(images):
            file.write(image[..., None], plane={"C": number})
        file.write_metadata("a", channel_names=names, scale_x=2.5e-7, scale_y=5e-7)
    with open_slide(tmp_path / "a.czi") as slide:
        assert slide.backend == "czi"
        assert slide.channels == ("DAPI", "FITC", "Cy5")
        assert slide.mpp == pytest.approx((0.25, 0.5))
        assert slide.background == (0, 0, 0)
        assert np.array_equal(whole(slide), np.stack(images, -1))


def test_what_is_said_of_channels(czi, tmp_path):
    xml = (
        "<ImageDocument><Metadata><Information><Image><Dimensions><Channels>"
        '<Channel Id="C:0" Name="nuclei"><EmissionWavelength>461</EmissionWavelength>'
        "<ExcitationWavelength>353.5</ExcitationWavelength><Color>#FF0000FF</Color></Channel>"
        '<Channel Id="C:1"><Fluor>AF568</Fluor></Channel>'
        "</Channels></Dimensions></Image></Information><DisplaySetting><Channels>"
        '<Channel Id="C:1"><Color>#FFFF8000</Color></Channel>'
        "</Channels></DisplaySetting></Metadata></ImageDocument>"
    )
    tiles = [(noise(40, 50, 1, c), 0, 0, 1, 0, 0, {"C": c}) for c in range(2)]
    czi.write(tmp_path / "a.czi", tiles, xml=xml)
    with open_slide(tmp_path / "a.czi") as slide:
        assert [c.facts[:4] for c in slide.channels] == [
            ("nuclei", "0000FF", 461.0, 353.5),
            ("AF568", "FF8000", None, None),
        ]
        assert slide.mpp is None


def test_planes(czi, tmp_path, caplog):
    tiles, images = [], {}
    for z in range(3):
        for t in range(2):
            images[z, t] = noise(40, 50, 1, 10 * z + t)
            # counting begins anywhere
            tiles.append((images[z, t], 0, 0, 1, 0, 0, {"C": 0, "Z": z + 5, "T": t}))
    czi.write(tmp_path / "a.czi", tiles)
    for (z, t), image in images.items():
        with open_slide(tmp_path / "a.czi", plane=f"z={z},t={t}") as slide:
            assert len(slide.planes) == 6
            assert np.array_equal(whole(slide)[..., 0], image)
    assert not caplog.text
    with open_slide(tmp_path / "a.czi") as slide:
        assert slide.plane == "z=0,t=0"
    assert "plane= chooses" in caplog.text


def _two_scenes(czi, path):
    left, right = noise(70, 90, seed=1), noise(50, 60, seed=2)
    tiles = czi.mosaic(left, 64, x=10, y=20) + czi.mosaic(right, 64, x=130, y=60, scene=1)
    scenes = (
        '<S><Scenes><Scene Index="0" Name="ScanRegion0"/><Scene Index="1" Name="ScanRegion1"/>'
        "</Scenes></S>"
    )
    czi.write(path, tiles, extra=scenes)
    both = np.full((90, 180, 3), 255, np.uint8)
    both[:70, :90], both[40:90, 120:180] = left, right
    return both, left, right


def test_scenes(czi, tmp_path):
    both, left, right = _two_scenes(czi, tmp_path / "a.czi")
    with open_slide(tmp_path / "a.czi") as slide:
        assert slide.images == ("ScanRegion0", "ScanRegion1")
        assert np.array_equal(whole(slide), both)
    for name, expected in (("ScanRegion0", left), ("ScanRegion1", right), (1, right)):
        with open_slide(tmp_path / "a.czi", image=name) as slide:
            assert np.array_equal(whole(slide), expected)
    with pytest.raises(UsageError, match="ScanRegion1"):
        open_slide(tmp_path / "a.czi", image="ScanRegion7")


def test_as_openslide(czi, tmp_path):
    openslide = pytest.importorskip("openslide")
    levels = [noise(208 // f, 312 // f, seed=f) for f in (1, 2, 4)]
    tiles = []
    for factor, level in zip((1, 2, 4), levels):
        tiles += czi.mosaic(level, 64, x=100, y=40, factor=factor)
    czi.write(tmp_path / "a.czi", tiles)
    other = openslide.OpenSlide(tmp_path / "a.czi")
    with open_slide(tmp_path / "a.czi") as slide:
        assert slide.level_dimensions == other.level_dimensions
        assert slide.level_downsamples == other.level_downsamples
        for level, size in enumerate(other.level_dimensions):
            seen = np.asarray(other.read_region((0, 0), level, size))[..., :3]
            assert np.array_equal(slide.read_region((0, 0), level, size), seen)
        names = [n for n in other.properties if n.startswith(("zeiss.", "openslide.mpp"))]
        assert len(names) > 10
        for name in names:
            assert slide.properties[name] == other.properties[name]
        assert slide.power == 20


def test_attachments(czi, tmp_path):
    _two_scenes(czi, tmp_path / "a.czi")
    label, thumbnail = noise(30, 40, seed=5), np.full((20, 30, 3), 90, np.uint8)
    czi.write(tmp_path / "label.czi", czi.mosaic(label, 64))
    czi.attach(
        tmp_path / "a.czi",
        {
            "Label": ("CZI", (tmp_path / "label.czi").read_bytes()),
            "Thumbnail": ("JPG", imagecodecs.jpeg8_encode(thumbnail, level=95)),
            "EventList": ("CZEVL", b"none of ours"),
        },
    )
    with open_slide(tmp_path / "a.czi") as slide:
        assert tuple(slide.associated_images) == ("label", "thumbnail")
        assert np.array_equal(slide.associated_images["label"], label)
        assert np.abs(slide.associated_images["thumbnail"].astype(int) - 90).max() <= 2


def test_channels_of_two_types_are_refused(czi, tmp_path):
    tiles = [
        (noise(40, 50, 1), 0, 0, 1, 0, 0, {"C": 0}),
        (noise(40, 50, 1, 0, np.uint16), 0, 0, 1, 0, 0, {"C": 1}),
    ]
    czi.write(tmp_path / "a.czi", tiles)
    with pytest.raises(UnsupportedImageError, match="Gray16, Gray8"):
        open_slide(tmp_path / "a.czi", backend="czi")


def test_cut_files(czi, tmp_path):
    path = tmp_path / "a.czi"
    _two_scenes(czi, path)
    data = path.read_bytes()
    for count in (12, 100, 600, len(data) // 2):
        path.write_bytes(data[:count])
        with pytest.raises((CorruptImageError, UnsupportedImageError, TileError)) as caught:
            with open_slide(path, backend="czi") as slide:
                whole(slide)
        assert str(path) in str(caught.value)


def test_absurd_extents_are_refused_or_read_in_part(czi, tmp_path):
    tiles = [(noise(40, 50), x, 0, 1, 0, 0, {"C": 0}) for x in (0, 2**30)]
    czi.write(tmp_path / "a.czi", tiles)
    with open_slide(tmp_path / "a.czi", backend="czi") as slide:
        assert slide.dimensions == (2**30 + 50, 40)
        assert np.array_equal(slide.read_region((2**30, 0), 0, (50, 40)), tiles[1][0])


def test_without_the_library(czi, tmp_path, monkeypatch):
    tiles = [(noise(40, 50), 0, 0, 1, 0, 0, {"C": 0, "Z": 0})]  # which OpenSlide does not read
    czi.write(tmp_path / "a.czi", tiles)
    monkeypatch.setitem(sys.modules, "pylibCZIrw.czi", None)
    with pytest.raises(MissingExtraError, match=r"daskdmed\[czi\]"):
        open_slide(tmp_path / "a.czi", backend="czi")
    with pytest.raises((UnsupportedImageError, CorruptImageError), match=r"daskdmed\[czi\]"):
        choose_backend(str(tmp_path / "a.czi"))


def test_attachments_that_lie_nowhere(czi, tmp_path):
    path = tmp_path / "a.czi"
    _two_scenes(czi, path)
    czi.attach(path, {"Thumbnail": ("JPG", b"no picture")})
    data = path.read_bytes()
    with open_slide(path) as slide, pytest.raises(CorruptImageError, match="thumbnail"):
        slide.associated_images["thumbnail"]
    at = data.rindex(b"A1") + 12
    path.write_bytes(data[:at] + struct.pack("<q", 2**40) + data[at + 8 :])
    with open_slide(path) as slide:
        assert not slide.associated_images


def test_xml_that_is_broken(czi, tmp_path):
    path = tmp_path / "a.czi"
    tiles = [(noise(40, 50), 0, 0, 1, 0, 0, {"C": 0})]
    czi.write(path, tiles, xml='<?xml version="1.0"?><ImageDocument><Metadata></ImageDocument>')
    with pytest.raises(CorruptImageError, match=r"a\.czi.*damaged"):
        open_slide(path, backend="czi")


@pytest.mark.parametrize(("letter", "words"), [("C", "channels"), ("Z", "planes")])
def test_more_channels_and_planes_than_there_can_be(czi, tmp_path, letter, words):
    path = tmp_path / "a.czi"
    places = ({"C": 0, letter: 0}, {"C": 0, letter: 2**30})
    czi.write(path, [(noise(40, 50, 1), 0, 0, 1, 0, n, place) for n, place in enumerate(places)])
    with pytest.raises(CorruptImageError, match=rf"a\.czi.*claims.*{words}"):
        open_slide(path, backend="czi")


def test_a_block_whose_size_no_memory_holds(czi, tmp_path):
    """What libCZI raises then must not look as if the machine had no memory left."""
    path = tmp_path / "a.czi"
    czi.write(path, [(noise(40, 50), 0, 0, 1, 0, 0, {"C": 0})])
    data = bytearray(path.read_bytes())
    at = data.index(b"ZISRAWSUBBLOCK") + 32 + 8
    data[at : at + 8] = struct.pack("<q", 2**62)
    path.write_bytes(data)
    with pytest.raises((TileError, CorruptImageError), match=r"a\.czi"):
        whole(open_slide(path, backend="czi"))


def test_there_is_no_colour_profile_and_the_cameras_is_named(czi, tmp_path):
    told = "<Camera Id='AxioCam'><CameraProfile Status='Valid'>*srgb</CameraProfile></Camera>"
    whole = f"<Metadata><HardwareSetting>{told}</HardwareSetting></Metadata>"
    xml = f"<ImageDocument>{whole}</ImageDocument>"
    czi.write(tmp_path / "a.czi", czi.mosaic(noise(64, 64), 32), xml=xml)
    # no attachment that might be one is taken for one
    czi.attach(tmp_path / "a.czi", {"Profile": ("Zip-Comp", b"settings of a scan")})
    with open_slide(tmp_path / "a.czi") as slide:
        assert slide.icc_profile is None
        assert slide.properties["zeiss.HardwareSetting.AxioCam.CameraProfile"] == "*srgb"
        with pytest.raises(UnsupportedImageError, match=r"a\.czi.*holds no colour profile"):
            slide.to_srgb()
