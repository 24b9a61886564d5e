"""Tissue masks against the truth of made slides, on glass, ink, volumes and real slides."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import Record, Region, TissueMask, open_slide, tissue_mask
from daskdmed.cohort.tissue.source import Source, grid_shape
from daskdmed.errors import (
    CorruptImageError,
    GeometryError,
    ImageNotFoundError,
    MissingExtraError,
    ResolutionError,
    SampleNotAvailableError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.resample import area_means
from daskdmed.images.tiff import TiffBackend
from daskdmed.samples import MadeSlide, fetch, make_slide

METHODS = ["otsu", "entropy", "hed"]
GLASS = (244, 243, 245)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DASKDMED_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("slides")
    slides: dict[float, MadeSlide] = {}

    def make(tissue: float) -> MadeSlide:
        if tissue not in slides:
            path = folder / f"{tissue}.svs"
            slides[tissue] = make_slide(path, 4096, tile=128, tissue=tissue, seed=5)
        return slides[tissue]

    return make


def truth(slide: MadeSlide, mask: TissueMask) -> np.ndarray:
    return slide.mask(mask.scale[0]) > 0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


# -------------------------------------------------------------------- against the truth
@pytest.mark.parametrize("tissue", [0.05, 0.1, 0.3, 0.6, 0.8, 0.95])
def test_masks_agree_with_the_truth(made, tissue):
    slide = made(tissue)
    for method in METHODS:
        mask = tissue_mask(slide.path, method=method, cache=False)
        assert mask.shape0 == (4096, 4096)
        assert mask.scale == (16.0, 16.0)
        assert mask.mpp == (0.5, 0.5)
        assert mask.method == method
        least = 0.97 if method == "otsu" else 0.95
        assert dice(mask.data, truth(slide, mask)) >= least, method
        assert mask.fraction == pytest.approx(slide.tissue_fraction, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_all_tissue_and_none(made, method):
    assert tissue_mask(made(1.0).path, method=method, cache=False).fraction == 1
    nothing = tissue_mask(made(0.0).path, method=method, cache=False)
    assert nothing.empty
    assert nothing.fraction == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "colour", [GLASS, (255, 255, 255), (247, 240, 226), (225, 226, 224), (0, 0, 0)]
)
def test_glass_of_any_tint_with_camera_noise_is_no_tissue(method, colour):
    noise = np.random.default_rng(1).normal(colour, 3, (2000, 1600, 3))
    image = np.clip(noise, 0, 255).astype(np.uint8)
    assert tissue_mask(image, method=method).empty


def stroke(image: np.ndarray, colour: tuple[int, int, int], top: int) -> Region:
    region = Region((top, 100), (160, 1200))
    image[region.slices] = colour
    return region


@pytest.mark.parametrize(
    "ink", [(20, 20, 22), (60, 62, 58), (40, 150, 70), (20, 40, 200), (60, 190, 210)]
)
def test_ink_and_black_are_left_out(ink):
    rng = np.random.default_rng(2)
    image = np.clip(rng.normal(GLASS, 2, (2000, 1600, 3)), 0, 255).astype(np.uint8)
    tissue = Region((1200, 300), (500, 900))
    image[tissue.slices] = np.clip(rng.normal((214, 150, 190), 12, (500, 900, 3)), 0, 255)
    line = stroke(image, ink, 300)
    for method in ("otsu", "hed"):
        mask = tissue_mask(image, method=method)
        assert mask.fraction_of(line) < 0.02, method
        assert mask.fraction_of(tissue) > 0.95, method
    if max(ink) - min(ink) > 50:
        assert tissue_mask(image, marks=False).fraction_of(line) > 0.9


def test_grey_dust_is_not_saturated():
    image = np.full((1600, 1600, 3), GLASS, np.uint8)
    image[200:500, 200:500] = (150, 150, 152)
    image[900:1300, 900:1300] = (200, 140, 190)
    mask = tissue_mask(image)
    assert mask.fraction_of(Region((200, 200), (300, 300))) < 0.05
    assert mask.fraction_of(Region((900, 900), (400, 400))) > 0.95


# -------------------------------------------------------------------- real slides
def real(name: str) -> Path:
    try:
        return fetch(name)
    except SampleNotAvailableError:
        path = Path(os.environ.get("DASKDMED_DATA_DIR", ".")) / name
        if not path.exists():
            pytest.skip(f"{name} cannot be had")
        return path


@pytest.mark.parametrize("method", METHODS)
def test_the_real_slide(method):
    mask = tissue_mask(real("CMU-1-Small-Region.svs"), method=method)
    # looked at: a strip of skin in the lower middle, glass on both sides
    assert 0.33 < mask.fraction < 0.42
    assert mask.fraction_of(Region((1500, 1000), (1000, 200))) > 0.95
    for glass in (Region((1300, 0), (1500, 400)), Region((0, 0), (1000, 700))):
        assert mask.fraction_of(glass) < 0.05
    assert mask.fraction_of(Region((200, 1900), (600, 250))) < 0.02
    assert 0.5 < mask.area_um2 / 1e6 < 0.7


def test_a_fluorescence_slide_goes_by_intensity():
    path = real("small_vectra.qptiff")
    mask = tissue_mask(path)
    # a round core on black
    assert mask.fraction == pytest.approx(0.49, abs=0.05)
    assert mask.fraction_of(Region((600, 500), (300, 300))) > 0.95
    assert mask.fraction_of(Region((0, 1500), (1440, 400))) < 0.02
    with pytest.raises(UsageError, match="needs a stained slide"):
        tissue_mask(path, method="hed")


# -------------------------------------------------------------------- what is read
def test_level_0_of_a_pyramid_is_not_decoded(made, monkeypatch):
    read = []
    slide = open_slide(made(0.6).path)
    reader = type(TiffBackend().open(str(made(0.6).path)))
    plain = reader.read

    def spy(self, level, *args, **kwargs):
        read.append(level)
        return plain(self, level, *args, **kwargs)

    monkeypatch.setattr(reader, "read", spy)
    mask = tissue_mask(slide, cache=False)
    assert set(read) == {1}
    assert slide.level_count == 2
    assert mask.data.shape == (256, 256)
    read.clear()
    fine = tissue_mask(slide, resolution=1.5, cache=False)
    assert set(read) == {0}, "asked for more than the second level has"
    assert fine.scale == pytest.approx((3, 3), rel=1e-3)
    assert dice(fine.data, truth(made(0.6), fine)) > 0.95
    read.clear()
    assert tissue_mask(slide, downsample=4, cache=False).scale == (4.0, 4.0)
    assert set(read) == {1}


def test_a_coarse_second_level_sets_the_default(tmp_path):
    slide = make_slide(tmp_path / "s.tif", 1024, tile=64, levels=2, downsample=8)
    # 256 pixels on the mask would take all of level 0
    assert tissue_mask(slide.path).scale == (8.0, 8.0)
    assert tissue_mask(slide.path, downsample=2).scale == (2.0, 2.0)


def test_large_images_are_read_in_slabs():
    def block(block_info=None):
        shape = block_info[None]["chunk-shape"]
        y = block_info[None]["array-location"][0][0]
        return np.full(shape, (210, 150, 190) if y >= 4096 else GLASS, np.uint8)

    image = da.map_blocks(block, chunks=((512,) * 16, (8192,), (3,)), dtype=np.uint8)
    sizes = []

    class Watched(ArrayView):
        def read(self, region, out=None):
            sizes.append(region.size * 3)
            return super().read(region, out)

    mask = tissue_mask(Watched(image, 2, (0.5, 0.5)))
    assert mask.scale == (16.0, 16.0)
    assert mask.fraction == pytest.approx(0.5, abs=0.01)
    assert len(sizes) > 4
    assert max(sizes) <= 2**25, "200 MB are read in pieces, and nothing wider is made of them"


@given(st.data())
@settings(max_examples=60)
def test_means_over_areas_are_exact(data):
    axes = data.draw(st.integers(1, 3))
    extent = tuple(data.draw(st.integers(1, 9)) for _ in range(axes))
    shape = tuple(data.draw(st.integers(1, e)) for e in extent)
    channels = data.draw(st.sampled_from([(), (2,)]))
    values = np.random.default_rng(3).random((*extent, *channels)).astype(np.float32)
    view = ArrayView(da.from_array(values, chunks=4), axes)
    expected = values.astype(np.float64)
    for axis, (e, n) in enumerate(zip(extent, shape)):
        fine = expected.take(np.arange(e * n) // n, axis=axis)
        expected = np.stack([p.mean(axis=axis) for p in np.split(fine, n, axis=axis)], axis=axis)
    assert area_means(view, shape) == pytest.approx(expected, abs=1e-5)


def test_every_kind_of_image_gives_the_same_mask(made):
    path = made(0.3).path
    slide = open_slide(path)
    expected = tissue_mask(slide, cache=False)
    for image in (path, str(path), Record(path), slide.view(level=1), slide.view(mpp=1.3)):
        assert tissue_mask(image, cache=False) == expected
    other = tissue_mask(Record(path, mpp=0.25), cache=False)
    assert other.mpp == (0.25, 0.25)
    assert other != expected
    pixels = slide.to_dask(chunks=1024)
    array = tissue_mask(Record(array=pixels, mpp=0.5), cache=False)
    assert array.shape0 == expected.shape0
    # the second level is a JPEG of its own
    assert dice(array.data, expected.data) > 0.99


def test_small_and_odd_shapes():
    image = np.full((70, 900, 3), GLASS, np.uint8)
    image[20:50, 100:700] = (200, 140, 190)
    mask = tissue_mask(image)
    assert mask.shape[1] == 256
    assert mask.shape0 == (70, 900)
    assert mask.fraction == pytest.approx(30 * 600 / (70 * 900), rel=0.2)
    assert tissue_mask(np.full((1, 1, 3), 255, np.uint8)).empty


def test_the_resolution_that_is_asked_for(made):
    path = made(0.3).path
    assert tissue_mask(path, resolution=32, cache=False).scale == (64.0, 64.0)
    assert tissue_mask(path, downsample=10, cache=False).shape == (410, 410)
    unknown = np.full((500, 500, 3), 255, np.uint8)
    with pytest.raises(ResolutionError, match="no mpp"):
        tissue_mask(unknown, resolution=8)
    with pytest.raises(ResolutionError, match=r"mpp=0\.5"):
        tissue_mask(unknown, min_area=100)
    with pytest.raises(ResolutionError, match="positive"):
        tissue_mask(path, downsample=0)
    with pytest.raises(UsageError, match="give one"):
        tissue_mask(path, downsample=2, resolution=2)
    huge = ArrayView(da.zeros((10**6, 10**6, 3), chunks=10**4, dtype=np.uint8), 2)
    with pytest.raises(UsageError, match="larger than 33554432"):
        tissue_mask(huge, downsample=2)


# -------------------------------------------------------------------- islands and holes
def test_islands_and_holes_in_square_micrometers():
    picture = np.zeros((400, 400), bool)
    picture[10:20, 10:20] = True
    picture[100:300, 100:300] = True
    picture[150:160, 150:160] = False
    picture[200:240, 200:240] = False
    picture[0:12, 390:400] = True
    record = Record(array=np.zeros((4000, 4000, 3), np.uint8), mpp=0.5)

    def of(**areas):
        return tissue_mask(record, method=picture, **areas).data

    assert np.array_equal(of(), picture)
    # a mask pixel is 5 um x 5 um: small things are 2500 um2, the large hole is 40 000
    assert np.array_equal(of(min_area=2500), picture)
    dropped = of(min_area=2501)
    assert not dropped[10:20, 10:20].any()
    assert dropped[0:12, 390:400].all()
    filled = of(max_hole=2501)
    assert filled[150:160, 150:160].all()
    assert not filled[200:240, 200:240].any()
    assert of(max_hole=1e5)[200:240, 200:240].all()
    for areas in ({"min_area": -1}, {"max_hole": np.nan}):
        with pytest.raises(UsageError, match="must be a number from 0 on"):
            of(**areas)


def test_background_that_touches_the_border_is_no_hole():
    image = np.full((1000, 1000, 3), (200, 140, 190), np.uint8)
    image[:60, :60] = 255
    image[400:460, 400:460] = 255
    mask = tissue_mask(Record(array=image, mpp=0.5))
    assert mask.fraction_of(Region((0, 0), (50, 50))) < 0.1
    assert mask.fraction_of(Region((400, 400), (60, 60))) == 1


# -------------------------------------------------------------------- volumes
def ball(noise: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    z, y, x = np.ogrid[:48, :64, :80]
    inside = (z - 24) ** 2 + (y - 30) ** 2 + (x - 40) ** 2 < 15**2
    values = np.random.default_rng(4).normal(100, noise, inside.shape) + 500 * inside
    return values.astype(np.int16), inside


def test_a_volume_by_intensity():
    values, inside = ball()
    mask = tissue_mask(Record(array=values, spatial_ndim=3))
    assert mask.shape0 == values.shape == mask.shape
    assert mask.area_um2 is None
    assert dice(mask.data, inside) > 0.95
    assert tissue_mask(values, spatial_ndim=3) == mask
    coarse = tissue_mask(values, spatial_ndim=3, downsample=2)
    assert coarse.shape == (24, 32, 40)
    assert dice(coarse.data, inside[::2, ::2, ::2]) > 0.9
    few = tissue_mask(values, spatial_ndim=3, min_area=inside.sum() * 2)
    assert few.empty, "voxels"
    assert "png" in mask._repr_html_()


def test_noise_is_no_tissue_in_a_volume_either():
    noise, _ = ball()
    noise = np.random.default_rng(5).permutation(noise.ravel()).reshape(noise.shape)
    assert tissue_mask(noise, spatial_ndim=3).empty
    assert tissue_mask(np.zeros((8, 8, 8)), spatial_ndim=3).empty


def test_functions_and_arrays_of_any_number_of_axes():
    values, inside = ball()
    mask = tissue_mask(values, spatial_ndim=3, method=lambda v: v > 350)
    assert np.array_equal(mask.data, values > 350)
    assert tissue_mask(values, spatial_ndim=3, method=inside).data.sum() == inside.sum()
    assert tissue_mask(values, spatial_ndim=3, method=inside[::2, ::2, ::2]).scale == (2, 2, 2)
    with pytest.raises(GeometryError, match="3 axes"):
        tissue_mask(values, spatial_ndim=3, method=inside[0])
    with pytest.raises(UsageError, match="open a slide by open_slide"):
        tissue_mask(real("CMU-1-Small-Region.svs"), spatial_ndim=3)


# -------------------------------------------------------------------- functions
def green(rgb: np.ndarray) -> np.ndarray:
    assert rgb.dtype == np.uint8
    assert rgb.shape == (256, 256, 3)
    return rgb[..., 1] < 220


def test_a_function(made):
    slide = made(0.6)
    mask = tissue_mask(slide.path, method=green)
    assert mask.method == "green"
    assert dice(mask.data, truth(slide, mask)) > 0.95


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda rgb: rgb, r"shape \(256, 256, 3\); it must return bool"),
        (lambda rgb: rgb[:10, :10, 0] > 3, r"shape \(10, 10\)"),
        (lambda rgb: rgb[..., 0] / 255, "float64"),
        (lambda rgb: None, "object"),
        (lambda rgb: True, r"shape \(\)"),
    ],
)
def test_functions_with_wrong_results(made, function, words):
    with pytest.raises(UsageError, match=words):
        tissue_mask(made(0.3).path, method=function)


def test_an_error_in_a_function_says_where(made):
    def broken(rgb):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        tissue_mask(made(0.3).path, method=broken)
    assert "0.3.svs" in caught.value.__notes__[0]


def test_options_that_do_not_apply(made):
    path = made(0.3).path
    with pytest.raises(UsageError, match="marks="):
        tissue_mask(path, method=green, marks=True)
    with pytest.raises(UsageError, match="its own scale"):
        tissue_mask(path, method=np.ones((8, 8)), resolution=8)
    with pytest.raises(UsageError, match="method= is one of"):
        tissue_mask(path, method=3)
    with pytest.raises(UsageError, match="takes one image, got 2"):
        tissue_mask([path, np.ones((8, 8))])


# -------------------------------------------------------------------- masks that are given
@pytest.fixture
def given_mask() -> np.ndarray:
    mask = np.zeros((256, 256), np.uint8)
    mask[40:200, 30:90] = 3
    return mask


def save(mask: np.ndarray, kind: str, folder: Path) -> Path:
    import imagecodecs
    import tifffile
    import zarr

    path = folder / f"mask.{kind.replace('-', '.')}"
    if kind == "png":
        imagecodecs.imwrite(str(path), mask)
    elif kind == "rgba-png":
        rgba = np.full((*mask.shape, 4), 255, np.uint8)
        rgba[..., :3] = mask[..., None]
        imagecodecs.imwrite(str(path), rgba)
    elif kind == "tif":
        tifffile.imwrite(path, mask)
    elif kind == "tiled-tif":
        tifffile.imwrite(path, mask, tile=(64, 64), compression="deflate")
    elif kind == "npy":
        np.save(path, mask)
    elif kind == "bool-npy":
        np.save(path, mask > 0)
    elif kind == "npz":
        TissueMask(mask, shape0=(4096, 4096)).save(path)
    else:
        array = zarr.create_array(path, shape=mask.shape, dtype=mask.dtype, chunks=(64, 64))
        array[:] = mask
    return path


@pytest.mark.parametrize(
    "kind", ["png", "rgba-png", "tif", "tiled-tif", "npy", "bool-npy", "npz", "zarr"]
)
def test_mask_files(made, given_mask, tmp_path, kind):
    path = save(given_mask, kind, tmp_path)
    for method in (path, str(path)):
        mask = tissue_mask(made(0.3).path, method=method)
        assert np.array_equal(mask.data, given_mask > 0)
        assert mask.scale == (16, 16)
        assert mask.mpp == (0.5, 0.5)


def test_masks_at_any_scale_and_size(made, given_mask, tmp_path, monkeypatch):
    path = made(0.3).path
    assert tissue_mask(path, method=given_mask[:17, :17]).shape == (17, 17)
    assert tissue_mask(path, method=given_mask[:40, :41]).shape == (40, 41), "a pixel is rounding"
    fine = given_mask.repeat(4, 0).repeat(4, 1)
    monkeypatch.setattr("daskdmed.cohort.tissue.files.READ_PIXELS", 2**16)
    for method in (
        fine,
        da.from_array(fine, chunks=100),
        save(fine, "npy", tmp_path),
        save(fine, "tiled-tif", tmp_path),
        save(fine, "zarr", tmp_path),
    ):
        mask = tissue_mask(path, method=method)
        assert mask.shape == (256, 256), "averaged down"
        assert np.array_equal(mask.data, given_mask > 0)


def test_a_mask_is_returned_as_it_is(made, given_mask):
    path = made(0.3).path
    mask = TissueMask(given_mask, shape0=(4096, 4096), method="mine")
    assert tissue_mask(path, method=mask) is mask
    assert tissue_mask(path, method=mask, min_area=1e9).empty
    with pytest.raises(GeometryError, match="other|4096"):
        tissue_mask(path, method=TissueMask(given_mask, shape0=(4096, 4000)))


def test_bad_mask_files(made, given_mask, tmp_path):
    path = made(0.3).path
    with pytest.raises(ImageNotFoundError, match="named methods are 'otsu'"):
        tissue_mask(path, method="otsuu")
    with pytest.raises(ImageNotFoundError):
        tissue_mask(path, method=tmp_path / "none.png")
    for bad in (given_mask[:100], given_mask[:, :200]):
        for kind in ("png", "tif", "npy", "zarr"):
            folder = tmp_path / f"{kind}{bad.shape}"
            folder.mkdir()
            with pytest.raises(GeometryError, match="another aspect ratio"):
                tissue_mask(path, method=save(bad, kind, folder))
    text = tmp_path / "text.png"
    text.write_text("no image at all")
    with pytest.raises(UnsupportedImageError, match="PNG, TIFF"):
        tissue_mask(path, method=text)
    for kind in ("png", "tif", "npy", "npz"):
        whole = save(np.random.default_rng(0).integers(0, 2, (256, 256), np.uint8), kind, tmp_path)
        whole.write_bytes(whole.read_bytes()[:300])
        with pytest.raises((CorruptImageError, OSError), match="mask"):
            tissue_mask(path, method=whole)
    with pytest.raises(GeometryError, match="no pixels|does not lie"):
        tissue_mask(path, method=np.zeros((0, 5)))
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object))
    with pytest.raises(CorruptImageError, match="objects"):
        tissue_mask(path, method=tmp_path / "objects.npy")
    np.save(tmp_path / "text.npy", np.array([["a"] * 8] * 8))
    with pytest.raises(UnsupportedImageError, match="type"):
        tissue_mask(path, method=tmp_path / "text.npy")
    bomb = tmp_path / "bomb.png"
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (10**6).to_bytes(4) * 2 + b"\x01\0\0\0\0"
    bomb.write_bytes(head + bytes(100))
    with pytest.raises(UnsupportedImageError, match="1000000 x 1000000"):
        tissue_mask(path, method=bomb)
    TissueMask(given_mask, shape0=(100, 100)).save(tmp_path / "other.npz")
    with pytest.raises(GeometryError, match="4096"):
        tissue_mask(path, method=tmp_path / "other.npz")


def test_missing_images_and_missing_extra(made, tmp_path, monkeypatch):
    with pytest.raises(ImageNotFoundError):
        tissue_mask(tmp_path / "none.svs")
    for name in [n for n in sys.modules if n.split(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtraError, match=r"daskdmed\[tissue\]"):
        tissue_mask(made(0.3).path, cache=False)
    assert tissue_mask(made(0.3).path, method=np.ones((8, 8))).fraction == 1


@pytest.mark.parametrize(
    ("size", "levels", "expected"),
    [
        (51200, [4, 16, 64], 32),  # twice a level, to stay below 2048 pixels
        (40000, [4, 16], 16),
        (100000, [4, 16, 32], 64),
        (100000, [64], 64),
        (4096, [4], 16),
        (20000, [2, 4, 8], 16),
        (30000, [3.99, 15.96], 15.96),
        (50000, [], 24.4140625),
        (300, [], 300 / 256),
    ],
)
def test_the_default_grid_goes_by_the_levels(size, levels, expected):
    source = Source(
        name="made up",
        shape0=(size, size),
        mpp=(0.5, 0.5),
        background=np.full(3, 255, np.uint8),
        bright=True,
        token=None,
        levels=tuple((d, d) for d in levels),
        read=np.zeros,
    )
    (n, _) = grid_shape(source)
    assert n == -(-size // expected)
