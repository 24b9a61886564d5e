"""The OpenSlide backend, beyond what the conformance kit covers."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

from daskdmed.core.region import Region
from daskdmed.errors import (
    ImageError,
    MissingExtraError,
    TileError,
    UnsupportedImageError,
)
from daskdmed.images import openslide as module
from daskdmed.images.openslide import OpenSlideBackend

openslide = pytest.importorskip("openslide")

TILE = 128


def write(path, shapes, seed=0, tile=TILE, **options):
    rng = np.random.default_rng(seed)
    levels = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    options = {"photometric": "rgb", "compression": "deflate", "metadata": None} | options
    with tifffile.TiffWriter(path) as tif:
        for i, level in enumerate(levels):
            tif.write(level, tile=(tile, tile), subfiletype=1 if i else 0, **options)
    return str(path), levels


def damage(uri, index):
    """Overwrite one tile of level 0."""
    with tifffile.TiffFile(uri) as tif:
        page = tif.pages[0]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with open(uri, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)


@pytest.fixture
def real_slide():
    path = Path(os.environ.get("DASKDMED_DATA_DIR", "")) / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip("CMU-1-Small-Region.svs is not in DASKDMED_DATA_DIR")
    return str(path)


def test_real_slide_has_the_pixels_and_facts_of_openslide(real_slide):
    reader = OpenSlideBackend().open(real_slide)
    with openslide.OpenSlide(real_slide) as slide:
        info = reader.info
        assert [(w, h) for h, w, _ in (level.shape for level in info.levels)] == list(
            slide.level_dimensions
        )
        assert info.mpp == (0.499, 0.499)
        assert info.power == 20
        assert info.vendor == "aperio"
        assert info.properties == dict(slide.properties)
        assert set(info.associated) == set(slide.associated_images)
        assert info.levels[0].tile_shape == (240, 240)
        width, height = slide.dimensions
        rng = np.random.default_rng(0)
        for _ in range(20):
            y, x = int(rng.integers(height - 10)), int(rng.integers(width - 10))
            h, w = min(300, height - y), min(400, width - x)
            expected = np.asarray(slide.read_region((x, y), 0, (w, h)))[..., :3]
            assert np.array_equal(reader.read(0, Region((y, x), (h, w))), expected)
        for name in info.associated:
            expected = np.asarray(slide.associated_images[name].convert("RGB"))
            assert np.array_equal(reader.read_associated(name), expected)
    reader.close()


@pytest.mark.parametrize(
    "shapes",
    [
        [(1501, 2003), (397, 501), (101, 125)],
        [(1333, 1777), (333, 444), (83, 111)],
        [(1024, 1536), (512, 768), (128, 192)],
    ],
)
def test_every_tile_of_uneven_pyramids_is_bit_identical(tmp_path, shapes):
    uri, levels = write(tmp_path / "uneven.tif", shapes)
    reader = OpenSlideBackend().open(uri)
    for number, level in enumerate(levels):
        height, width = level.shape[:2]
        assert reader.info.levels[number].downsample == (
            shapes[0][0] / height,
            shapes[0][1] / width,
        )
        for y in range(0, height, TILE):
            for x in range(0, width, TILE):
                region = Region((y, x), (min(TILE, height - y), min(TILE, width - x)))
                assert np.array_equal(reader.read(number, region), level[region.slices]), (
                    number,
                    region,
                )


@pytest.mark.parametrize("downsample", [1.0, 2.0, 4.0, 3.889430207594886, 15.9674387556])
def test_locations_fall_on_the_pixel_grid(downsample):
    for start in [0, 1, 2, 255, 256, 1000, 4097, 99_999]:
        location, skip = module._anchor(start, downsample)
        assert 0 <= skip <= min(start, module._MAX_SKIP)
        assert abs(location / downsample - (start - skip)) < 1 / 512


def test_a_downsample_without_exact_locations_takes_the_nearest():
    location, skip = module._anchor(3000, 2.000166666666667)
    assert skip == 0
    assert location == round(3000 * 2.000166666666667)


def test_large_regions_are_read_in_pieces(tmp_path, monkeypatch):
    uri, levels = write(tmp_path / "a.tif", [(700, 900)])
    sizes = []
    original = openslide.OpenSlide.read_region

    def spy(self, location, level, size):
        sizes.append(size)
        return original(self, location, level, size)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", spy)
    monkeypatch.setattr(module, "_PIECE", 300)  # two tiles of 128 fit
    reader = OpenSlideBackend().open(uri)
    region = Region((11, 13), (650, 800))
    assert np.array_equal(reader.read(0, region), levels[0][region.slices])
    assert max(max(size) for size in sizes) == 256
    assert len(sizes) == 3 * 4


def test_transparency_is_blended_over_the_background():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)
    rgba[:8, :, 3] = 255
    rgba[8:16, :, 3] = 0
    background = (250, 128, 7)
    out = np.empty((64, 64, 3), np.uint8)
    module._blend(rgba, background, out)
    alpha = rgba[..., 3:] / 255
    expected = np.floor(rgba[..., :3] * alpha + np.array(background) * (1 - alpha) + 0.5)
    assert np.abs(out - expected).max() <= 1
    assert np.array_equal(out[:8], rgba[:8, :, :3])
    assert (out[8:16] == background).all()


def test_missing_tiles_are_background(tmp_path):
    uri, (level,) = write(tmp_path / "sparse.tif", [(256, 256)])
    with tifffile.TiffFile(uri, mode="r+b") as tif:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tif.pages[0].tags[name]
            tag.overwrite((*tag.value[:3], 0))
    reader = OpenSlideBackend().open(uri)
    level[128:, 128:] = 255
    assert np.array_equal(reader.read(0, Region((0, 0), (256, 256))), level)


def test_background_colour():
    assert module._colour(None) == (255, 255, 255)
    assert module._colour("FFEE10") == (255, 238, 16)
    assert module._colour("no colour") == (255, 255, 255)


def test_an_error_in_one_thread_does_not_spoil_the_others(tmp_path):
    uri, levels = write(tmp_path / "a.tif", [(512, 640)])
    damage(uri, 6)  # row 1, column 1
    reader = OpenSlideBackend().open(uri)
    columns = 640 // TILE

    def job(i):
        row, column = divmod(i % 20, columns)
        region = Region((row * TILE, column * TILE), (TILE, TILE))
        try:
            return (row, column), np.array_equal(reader.read(0, region), levels[0][region.slices])
        except TileError as error:
            return (row, column), error.tile

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(job, range(100)))
    for tile, value in results:
        assert value == (1, 1) if tile == (1, 1) else value is True, tile


def test_without_openslide_the_error_names_the_extra(tmp_path, monkeypatch):
    uri, _ = write(tmp_path / "a.svs", [(128, 128)])
    backend = OpenSlideBackend()
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(MissingExtraError, match=r'pip install "daskdmed\[openslide\]"'):
        backend.open(uri)
    assert backend.accepts(uri)
    (tmp_path / "a.mrxs").write_bytes(b"index")
    (tmp_path / "notes.tif").write_bytes(b"no slide")
    (tmp_path / "notes.txt").write_bytes(b"no slide")
    assert backend.accepts(str(tmp_path / "a.mrxs"))
    assert not backend.accepts(str(tmp_path / "notes.tif"))
    assert not backend.accepts(str(tmp_path / "notes.txt"))
    assert not backend.accepts(str(tmp_path / "missing.mrxs"))


def test_remote_files_and_directories_are_refused(tmp_path):
    backend = OpenSlideBackend()
    assert not backend.accepts("s3://bucket/slide.svs")
    with pytest.raises(UnsupportedImageError, match="local files only"):
        backend.open("s3://bucket/slide.svs")
    with pytest.raises(UnsupportedImageError, match="directory"):
        backend.open(str(tmp_path))


def test_file_urls(tmp_path):
    uri, levels = write(tmp_path / "with space.tif", [(200, 300)])
    url = Path(uri).as_uri()
    assert "%20" in url
    assert OpenSlideBackend().accepts(url)
    reader = OpenSlideBackend().open(url)
    assert np.array_equal(reader.read(0, Region((0, 0), (200, 300))), levels[0])


def test_truncated_files_end_in_typed_errors(tmp_path):
    uri, _ = write(tmp_path / "a.tif", [(512, 512), (128, 128)])
    data = Path(uri).read_bytes()
    messages = []
    for cut in np.linspace(0, len(data) - 1, 25).astype(int):
        short = tmp_path / f"cut{cut}.tif"
        short.write_bytes(data[:cut])
        try:
            reader = OpenSlideBackend().open(str(short))
            reader.read(0, Region((0, 0), (512, 512)))
        except ImageError as error:
            messages.append((str(short), str(error)))
    assert messages
    for name, message in messages:
        assert name in message


def test_reading_after_close(tmp_path):
    uri, _ = write(tmp_path / "a.tif", [(128, 128)])
    reader = OpenSlideBackend().open(uri)
    reader.close()
    with pytest.raises(ImageError, match="closed"):
        reader.read(0, Region((0, 0), (1, 1)))


def test_all_handles_share_one_cache():
    assert module._shared_cache() is not None
    assert module._shared_cache() is module._shared_cache()


@pytest.mark.parametrize("suffix", ["mrxs", "vms", "dcm"])
def test_fingerprint_covers_the_files_beside_the_index(tmp_path, suffix):
    index = tmp_path / f"slide.{suffix}"
    (tmp_path / "slide").mkdir()
    if suffix == "mrxs":
        index.write_bytes(b"preview")
        data = tmp_path / "slide" / "Data0000.dat"
    elif suffix == "vms":
        index.write_text("[Virtual Microscope Specimen]\nImageFile=part.jpg\nOther=nothing.jpg\n")
        data = tmp_path / "part.jpg"
    else:
        index.write_bytes(b"level 0")
        data = tmp_path / "level1.dcm"
    data.write_bytes(b"pixels")
    backend = OpenSlideBackend()
    before = backend.fingerprint(str(index))
    assert backend.fingerprint(str(index)) == before
    data.write_bytes(b"other pixels")
    assert backend.fingerprint(str(index)) != before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_no_permission(tmp_path):
    uri, _ = write(tmp_path / "a.tif", [(128, 128)])
    os.chmod(uri, 0)
    with pytest.raises(PermissionError):
        OpenSlideBackend().open(uri)


def test_the_module_does_not_import_openslide():
    code = "import sys, daskdmed.images.openslide; assert 'openslide' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
