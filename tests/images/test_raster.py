"""Plain pictures as slides of one level, against Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import dask
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from daskdmed.core.region import Region
from daskdmed.errors import CorruptImageError, TileError, UnsupportedImageError
from daskdmed.images.filecache import cache
from daskdmed.images.opening import open_slide
from daskdmed.images.raster import RasterBackend
from daskdmed.images.tiff.decode import count_tiles
from daskdmed.testing import BackendConformance, coordinate_image

HEIGHT, WIDTH = 61, 83


@pytest.fixture(scope="module")
def colours():
    """A smooth picture, so that lossy formats show little noise, with all of RGBA."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = x * 3, y * 4, (x + y) % 64 * 4, 255 - x * 2
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8), "RGBA")


def read(path):
    with open_slide(path) as slide:
        assert slide.backend == "raster"
        return slide.read_region((0, 0), 0, slide.dimensions)


def on_white(image):
    values = np.asarray(image).astype(float)
    alpha = values[..., -1:] / 255
    return np.rint(values[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)


class TestPng(BackendConformance):
    backend = RasterBackend()

    def make(self, tmp_path):
        image = coordinate_image((HEIGHT, WIDTH), "uint8")
        Image.fromarray(image).save(tmp_path / "a.png")
        return str(tmp_path / "a.png"), [image]


class TestTiledJpeg2000(BackendConformance):
    """Tile by tile."""

    backend = RasterBackend()

    def make(self, tmp_path):
        image = coordinate_image((HEIGHT, WIDTH), "uint8")
        path = tmp_path / "a.jp2"
        Image.fromarray(image).save(path, tile_size=(32, 16), irreversible=False)
        return str(path), [image]

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        reader = self.backend.open(uri)
        at, count = (numbers[3 + 1] for numbers in reader._plan.tiles.plane(0, None))
        reader.close()
        with open(uri, "r+b") as file:
            file.seek(at + 12)
            file.write(b"\xff" * (count - 12))
        return uri, levels, Region((16, 32), (16, 32))


@pytest.mark.parametrize(
    ("mode", "name", "options"),
    [
        ("RGB", "a.png", {}),
        ("L", "a.png", {}),
        ("RGB", "a.bmp", {}),
        ("RGB", "a.jpg", {"quality": 80}),
        ("RGB", "a.jpg", {"progressive": True, "subsampling": 1}),
        ("L", "a.jpg", {}),
        ("CMYK", "a.jpg", {}),
        ("RGB", "a.webp", {"quality": 60}),
        ("RGB", "a.jp2", {}),
        ("L", "a.jp2", {}),
        ("RGB", "a.j2k", {"no_jp2": True}),
        ("RGB", "a.jp2", {"irreversible": True, "quality_layers": [20]}),
    ],
)
def test_pixels_are_those_of_pillow(colours, tmp_path, mode, name, options):
    path = tmp_path / name
    colours.convert("RGB").convert(mode).save(path, **options)
    image = Image.open(path)
    expected = np.asarray(image.convert("RGB") if mode == "CMYK" else image)
    got = read(path)
    assert np.array_equal(got, expected.reshape(*expected.shape[:2], -1))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jp2"])
def test_transparency_lies_on_white(colours, tmp_path, name):
    colours.save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    difference = read(tmp_path / name).astype(int) - on_white(Image.open(tmp_path / name))
    assert np.abs(difference).max() <= (1 if name == "a.webp" else 0)


def test_grey_with_alpha_and_a_transparent_colour(colours, tmp_path):
    colours.convert("LA").save(tmp_path / "a.png")
    expected = on_white(colours.convert("LA"))
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.background == (255,)
        assert np.array_equal(slide.read_region((0, 0), 0, slide.dimensions), expected)
    grey = colours.convert("L")
    grey.save(tmp_path / "b.png", transparency=12)
    expected = np.asarray(grey).copy()
    assert (expected == 12).any()
    expected[expected == 12] = 255
    assert np.array_equal(read(tmp_path / "b.png")[..., 0], expected)


def test_sixteen_bits(tmp_path):
    image = np.random.default_rng(0).integers(0, 65535, (HEIGHT, WIDTH)).astype(np.uint16)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image).save(tmp_path / "a.jp2")
    for name in ("a.png", "a.jp2"):
        got = read(tmp_path / name)
        assert got.dtype == np.uint16
        assert np.array_equal(got[..., 0], image)


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_palettes_are_labels(tmp_path, name, bits, caplog):
    labels = np.random.default_rng(bits).integers(0, 2**bits, (HEIGHT, WIDTH)).astype(np.uint8)
    image = Image.fromarray(labels, "P")
    image.putpalette(np.random.default_rng(1).integers(0, 255, 3 * 2**bits).astype(np.uint8))
    if name == "a.png":
        image.save(tmp_path / name, bits=bits)
    elif bits == 1:
        Image.fromarray(labels.astype(bool)).save(tmp_path / name)
    else:
        image.save(tmp_path / name)
    with caplog.at_level("INFO", "daskdmed.images"), open_slide(tmp_path / name) as slide:
        assert slide.is_labels
        assert slide.background == (0,)
        assert np.array_equal(slide.read_region((0, 0), 0, slide.dimensions)[..., 0], labels)
    assert "not its colours" in caplog.text


def test_one_bit_is_a_mask(tmp_path):
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5
    Image.fromarray(mask).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png")[..., 0], np.asarray(mask, np.uint8))


def test_a_grey_bitmap_is_no_label_map(colours, tmp_path):
    colours.convert("L").save(tmp_path / "a.bmp")
    with open_slide(tmp_path / "a.bmp") as slide:
        assert not slide.is_labels
    assert np.array_equal(read(tmp_path / "a.bmp")[..., 0], np.asarray(colours.convert("L")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_as_viewers_show_it(colours, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    exif[0x128], exif[0x11A], exif[0x11B] = 3, 20000.0, 10000.0
    colours.convert("RGB").save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.mpp == ((0.5, 1.0) if orientation < 5 else (1.0, 0.5))
        assert slide.dimensions == expected.shape[1::-1]
        got = slide.read_region((5, 3), 0, (40, 50))
    assert np.array_equal(got, expected[3:53, 5:45])


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_orientation_of_others(colours, tmp_path, name):
    exif = Image.Exif()
    exif[0x112] = 6
    colours.convert("RGB").save(tmp_path / name, exif=exif)
    assert np.array_equal(
        read(tmp_path / name), np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)))
    )


@pytest.mark.parametrize(
    ("name", "options", "mpp"),
    [
        ("a.jpg", {"dpi": (300, 300)}, None),  # a printer's
        ("a.jpg", {"dpi": (50800, 25400)}, (0.5, 1.0)),
        ("a.png", {"dpi": (72, 72)}, None),
        ("a.png", {"dpi": (101600, 101600)}, (0.25, 0.25)),
        ("a.bmp", {"dpi": (96, 96)}, None),
        ("a.bmp", {"dpi": (101600, 101600)}, (0.25, 0.25)),
    ],
)
def test_mpp_only_of_a_microscope(colours, tmp_path, name, options, mpp):
    colours.convert("RGB").save(tmp_path / name, **options)
    with open_slide(tmp_path / name) as slide:
        assert slide.mpp == (mpp and pytest.approx(mpp, rel=1e-4))


def _box(name, body):
    return struct.pack(">I4s", 8 + len(body), name) + body


def test_capture_resolution_of_jpeg_2000(colours, tmp_path):
    memory = io.BytesIO()
    colours.convert("RGB").save(memory, "JPEG2000")
    data = memory.getvalue()
    at = data.index(b"jp2h") - 4
    length = int.from_bytes(data[at : at + 4])
    # 4 000 000 and 2 000 000 pixels per meter (y, x)
    resolution = _box(b"res ", _box(b"resc", struct.pack(">HHHHbb", 4, 1, 2, 1, 6, 6)))
    whole = data[:at] + _box(b"jp2h", data[at + 8 : at + length] + resolution) + data[at + length :]
    (tmp_path / "a.jp2").write_bytes(whole)
    with open_slide(tmp_path / "a.jp2") as slide:
        assert slide.mpp == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_colour_profiles(colours, tmp_path, name):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    colours.convert("RGB").save(tmp_path / name, icc_profile=profile)
    with open_slide(tmp_path / name) as slide:
        assert slide.icc_profile == profile
    colours.convert("RGB").save(tmp_path / f"without-{name}")
    with open_slide(tmp_path / f"without-{name}") as slide:
        assert slide.icc_profile is None


def test_jpeg_2000_decodes_only_the_tiles_it_needs(tmp_path):
    image = coordinate_image((128, 128), "uint8")
    Image.fromarray(image).save(tmp_path / "a.jp2", tile_size=(32, 32))
    with open_slide(tmp_path / "a.jp2") as slide, count_tiles() as count:
        assert slide.level_tile_shapes == ((32, 32),)
        assert np.array_equal(slide.read_region((40, 40), 0, (20, 30)), image[40:70, 40:60])
    assert count.tiles == 2


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_tiles_of_jpeg_2000_of_all_samples(colours, tmp_path, mode):
    image = colours.convert(mode)
    image.save(tmp_path / "a.jp2", tile_size=(32, 32), num_resolutions=3)
    expected = on_white(image) if "A" in mode else np.asarray(image)[..., None]
    assert np.array_equal(read(tmp_path / "a.jp2"), expected)


def test_decoded_once(tmp_path, monkeypatch):
    image = coordinate_image((64, 64), "uint8")
    Image.fromarray(image).save(tmp_path / "a.png")
    from daskdmed.images.raster import backend

    times, real = [], backend.decode
    monkeypatch.setattr(backend, "decode", lambda *a: times.append(1) or real(*a))
    array = open_slide(tmp_path / "a.png").to_dask(chunks=16)
    assert np.array_equal(array.compute(scheduler="threads"), image)
    assert len(times) == 1
    cache.clear()  # nobody uses it any more
    array.blocks[0, 0, 0].compute()
    assert len(times) == 2


def test_large_ones_are_decoded_into_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DASKDMED_CACHE_DIR", str(tmp_path / "cache"))
    image = coordinate_image((300, 64), "uint8")
    Image.fromarray(image).save(tmp_path / "a.png")
    with dask.config.set({"daskdmed.images.decoded-limit": "1 kiB"}):
        array = open_slide(tmp_path / "a.png").to_dask(chunks=64)
        assert np.array_equal(array.compute(scheduler="threads"), image)
    (file,) = (tmp_path / "cache").rglob("*.raw")
    assert file.stat().st_size == image.nbytes


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    Image.new("RGB", (4000, 4000)).save(tmp_path / "a.png")
    with (
        dask.config.set({"daskdmed.images.picture-limit": "40 MB"}),
        pytest.raises(UnsupportedImageError, match=r"4000 x 4000.*48000000 bytes.*40000000"),
    ):
        open_slide(tmp_path / "a.png")


def test_sizes_that_a_file_cannot_hold(tmp_path):
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 30000, 30000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(CorruptImageError, match="30000 x 30000"):
        open_slide(tmp_path / "a.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "a.jpg")
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 20000, 20000)
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(CorruptImageError, match="20000 x 20000"):
        open_slide(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jp2", "a.webp", "a.bmp"])
def test_cut_files_are_an_error(colours, tmp_path, name):
    path = tmp_path / name
    colours.convert("RGB").save(path)
    whole = path.read_bytes()
    for count in (17, 60, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:count])
        with pytest.raises((CorruptImageError, TileError, UnsupportedImageError)) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_a_broken_picture_is_filled_when_asked(colours, tmp_path):
    path = tmp_path / "a.png"
    colours.convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-60])
    with open_slide(path) as slide:
        got = slide.read_region((0, 0), 0, slide.dimensions, tile_error="fill")
        assert (got == 255).all()
        assert [failed.tile for failed in slide.failed_tiles] == [(0, 0)]


def test_others_are_refused(colours, tmp_path):
    colours.save(tmp_path / "a.webp", save_all=True, append_images=[colours.rotate(9)])
    with pytest.raises(UnsupportedImageError, match="animated"):
        open_slide(tmp_path / "a.webp")
    colours.convert("P").save(tmp_path / "a.gif")
    with pytest.raises(UnsupportedImageError, match="no PNG"):
        open_slide(tmp_path / "a.gif", backend="raster")


def test_remote(tmp_path):
    import fsspec

    image = coordinate_image((40, 30), "uint8")
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "PNG")
    fsspec.filesystem("memory").pipe("/pictures/a.png", memory.getvalue())
    assert np.array_equal(read("memory://pictures/a.png"), image)


def test_tiles_of_jpeg2000_that_are_not_there(colours, tmp_path):
    """A stream that is cut off between two tiles; one whose first tile claims all that comes."""
    path = tmp_path / "a.jp2"
    colours.convert("RGB").save(path, tile_size=(32, 32), irreversible=False)
    whole, expected = path.read_bytes(), read(path)
    starts = [i for i in range(len(whole)) if whole[i : i + 4] == b"\xff\x90\x00\x0a"]
    assert len(starts) == 6
    first = whole[: starts[0] + 6] + bytes(4) + whole[starts[0] + 10 :]
    for name, content in {"cut": whole[: starts[4]], "greedy": first}.items():
        path = tmp_path / f"{name}.jp2"
        path.write_bytes(content)
        slide = open_slide(path)
        assert np.array_equal(slide.read_region((0, 0), 0, (32, 32)), expected[:32, :32])
        with pytest.raises(TileError, match=rf"{name}.jp2: tile \(1, 2\)"):
            slide.read_region((70, 40), 0, (4, 4))
        filled = slide.read_region((70, 40), 0, (4, 4), tile_error="fill")
        assert (filled == 255).all()
