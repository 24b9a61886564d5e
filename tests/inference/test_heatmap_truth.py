"""`heatmap` of a model that reads coordinates out of the pixels, against the coordinates.

Each pixel of the slide says where it is, so that a window says where it was cut: a value in
the wrong place, a window read from the wrong pixels, or one too many or too few is seen.
"""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch

from daskdmed import heatmap, open_slide
from daskdmed.core.region import Region
from daskdmed.errors import GeometryError, SampleNotAvailableError, UsageError
from daskdmed.samples import make_slide
from daskdmed.tiling.grid import WindowGrid
from daskdmed.tiling.mask import coverage

SHAPE = (1030, 780)


def encoded(shape, step):
    """(y // step, x // step) in the first two channels; the last holds both low nibbles."""
    y, x = np.meshgrid(*(np.arange(n) // step for n in shape), indexing="ij")
    low = (y % 16) * 16 + x % 16
    return np.stack([y // 16, x // 16, low], -1).astype(np.uint8)


def decode(pixels):
    """The reverse of `encoded`: (..., 3) -> (..., 2) = (y // step, x // step)."""
    pixels = np.asarray(pixels).astype(int)
    y, x = pixels[..., 0] * 16 + pixels[..., 2] // 16, pixels[..., 1] * 16 + pixels[..., 2] % 16
    return np.stack([y, x], -1)


def first_and_last(windows):
    """Coordinates read from the first pixel and from the middle one: (n, 4)."""
    h, w = windows.shape[1:3]
    return np.concatenate([decode(windows[:, 0, 0]), decode(windows[:, h // 2, w // 2])], 1)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Two levels without loss; each pixel holds its place in units of its level's pixels."""
    path = tmp_path_factory.mktemp("encoded") / "slide.tif"
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
    half = tuple(n // 2 for n in SHAPE)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            encoded(SHAPE, 1),
            subifds=0,
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
            **options,
        )
        tiff.write(encoded(half, 1), subfiletype=1, **options)
    return open_slide(path).with_mpp(0.5)


def places(grid):
    """Where each window begins, and where its middle lies: (4, rows, columns)."""
    out = np.empty((4, *grid.counts))
    for index, origin in grid:
        out[(slice(None), *index)] = (
            *origin,
            *(o + k // 2 for o, k in zip(origin, grid.kernel_size)),
        )
    return out


def holes(shape):
    """A mask with a border, a hole, and an island in it."""
    mask = np.zeros(shape, bool)
    mask[2:-3, 1:-2] = True
    mask[6:14, 5:12] = False
    mask[9, 8] = True
    return mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("edge", ["pad", "shift", "drop"])
@pytest.mark.parametrize(("kernel", "stride"), [(64, 64), (64, 40), (48, 80), ((32, 96), (32, 50))])
@pytest.mark.parametrize("level", [0, 1])
def test_every_window_is_where_it_belongs(slide, level, kernel, stride, edge, masked):
    shape = slide.view(level=level).shape[:2]
    grid = WindowGrid.of(shape, kernel, stride=stride, edge=edge)
    mask = holes((24, 18)) if masked else None
    found = heatmap(
        slide, first_and_last, kernel_size=kernel, stride=stride, edge=edge, level=level, mask=mask,
        block_windows=5,
    ).compute()  # fmt: skip
    truth = places(grid)
    for channel in (2, 3):  # a middle outside the image reads white
        axis = channel - 2
        outside = (truth[2] >= shape[0]) | (truth[3] >= shape[1])
        truth[channel][outside] = decode(np.array([255, 255, 255]))[axis]
    if masked:
        truth[:, coverage(mask, grid) == 0] = np.nan
        assert not np.isnan(found).all()
    np.testing.assert_array_equal(found, truth)


def centre_of_mass(windows):
    """Mean of the first channel, a ramp down the image, and of the second, across it."""
    return np.asarray(windows, np.float64)[..., :2].mean(axis=(1, 2))


@pytest.mark.parametrize("mpp", [0.5, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("stride", [30, 50, 64])
def test_resolutions_between_levels(tmp_path_factory, mpp, stride):
    """A ramp averaged under a window says where the window is, at any resolution."""
    folder = tmp_path_factory.getbasetemp() / "ramp.tif"
    if not folder.exists():
        y, x = np.meshgrid(*(np.arange(1024) // 4 for _ in range(2)), indexing="ij")
        ramp = np.stack([y, x, y * 0], -1).astype(np.uint8)
        tifffile.imwrite(folder, ramp, tile=(128, 128), photometric="rgb", compression="zlib")
    slide = open_slide(folder).with_mpp(0.5)
    found = heatmap(
        slide, centre_of_mass, kernel_size=50, stride=stride, mpp=mpp, edge="drop", block_windows=4
    ).compute()
    view = slide.view(mpp=mpp)
    grid = WindowGrid.of(view.shape[:2], 50, stride=stride, edge="drop")
    assert found.shape == (2, *grid.counts)
    scale = mpp / 0.5
    rows = [(i * stride + 25) * scale / 4 - 0.5 for i in range(grid.counts[0])]
    np.testing.assert_allclose(
        found[0], np.array(rows)[:, None] * np.ones(found.shape[1:]), atol=0.6
    )
    np.testing.assert_allclose(found[1], found[0].T, atol=1e-3)


def weighted(windows):
    """Depends on every pixel and its place."""
    flat = np.asarray(windows, np.float64).reshape(len(windows), -1)
    return flat @ np.linspace(1, 2, flat.shape[1]) / flat.shape[1]


def by_hand(view, grid):
    """Each window cut by hand from the whole image, padded with white."""
    image = view.read(Region((0, 0), view.shape[:2]))
    padded = np.pad(image, [(0, k) for k in grid.kernel_size] + [(0, 0)], constant_values=255)
    values = np.empty(grid.counts, np.float32)
    for index, (y, x) in grid:
        window = padded[y : y + grid.kernel_size[0], x : x + grid.kernel_size[1]]
        values[index] = weighted(window[None])[0]
    return values


@pytest.mark.parametrize(
    ("resolution", "kernel", "stride"),
    [({}, 224, 224), ({}, 224, 150), ({}, 96, 130), ({"mpp": 1.1}, 112, 112)],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_real_slide(resolution, kernel, stride, masked):
    from daskdmed.samples import fetch

    try:
        slide = open_slide(fetch("CMU-1-Small-Region.svs"))
    except SampleNotAvailableError as error:
        pytest.skip(str(error))
    view = slide.view(**resolution)
    grid = WindowGrid.of(view.shape[:2], kernel, stride=stride)
    mask = holes((24, 18)) if masked else None
    found = heatmap(
        slide, weighted, kernel_size=kernel, stride=stride, mask=mask, **resolution
    ).compute()
    truth = by_hand(view, grid)
    if masked:
        truth[coverage(mask, grid) == 0] = np.nan
    np.testing.assert_allclose(found, truth, rtol=1e-6)


@pytest.mark.parametrize("channels", [0, 1, 3])
@pytest.mark.parametrize("edge", ["pad", "drop"])
@pytest.mark.parametrize("block_windows", [None, (2, 3)])
def test_maps_are_laid_side_by_side(slide, edge, block_windows, channels, tmp_path):
    def model(windows):
        thin = np.moveaxis(windows[:, ::4, ::2].astype(np.float32), -1, 1)
        return thin[:, 0] if channels == 0 else thin[:, :channels]

    mask = holes((24, 18))
    grid = WindowGrid.of(SHAPE, (64, 48), edge=edge)
    found = heatmap(
        slide, model, kernel_size=(64, 48), edge=edge, block_windows=block_windows, mask=mask,
        out=tmp_path / "a.zarr",
    )  # fmt: skip
    image = np.pad(encoded(SHAPE, 1), [(0, 64), (0, 48), (0, 0)], constant_values=255)
    rows, columns = (n * k for n, k in zip(grid.counts, grid.kernel_size))
    truth = np.moveaxis(image[:rows:4, :columns:2].astype(np.float32), -1, 0)[: max(channels, 1)]
    kept = np.kron(coverage(mask, grid) > 0, np.ones((16, 24), bool))
    truth = np.where(kept, truth, np.nan)
    np.testing.assert_array_equal(found, truth if channels > 1 else truth[0])


def test_the_cells_of_maps_lie_on_the_slide(slide, tmp_path):
    import zarr

    out = tmp_path / "a.zarr"
    heatmap(slide, lambda w: w[:, ::4, ::2, 0] * 1.0, kernel_size=(64, 48), out=out, level=1)
    entry = zarr.open_group(out).attrs["ome"]["multiscales"][0]["datasets"][0]
    scale, translation = (t[t["type"]] for t in entry["coordinateTransformations"])
    # a cell is 4 x 2 pixels of level 1, which are 1 um
    assert scale == pytest.approx([4, 2])
    assert translation == pytest.approx([1.5, 0.5])


@pytest.mark.parametrize("keywords", [{"stride": 32}, {"stride": 80}, {"edge": "shift"}])
def test_maps_of_windows_that_are_not_side_by_side(slide, keywords):
    with pytest.raises(UsageError, match=r"predict.* blends"):
        heatmap(slide, lambda w: w[..., 0], kernel_size=64, **keywords)


def test_maps_of_volumes():
    image = np.arange(20 * 30 * 40).reshape(20, 30, 40)
    found = heatmap(image, lambda w: w[:, ::2, ::5, ::4], kernel_size=(4, 10, 8), block_windows=2)
    np.testing.assert_array_equal(found, image[::2, ::5, ::4])


def test_maps_of_a_network():
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    net = torch.nn.Conv2d(3, 5, 8, stride=8)
    found = heatmap(image, net, kernel_size=32, block_windows=3)
    with torch.inference_mode():
        whole = net(torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_a_tissue_mask_knows_its_image(tmp_path):
    tissue = pytest.importorskip("daskdmed.cohort.tissue.mask")
    slide = open_slide(make_slide(tmp_path / "a.tif", (1100, 900), levels=2, tissue=0.4).path)
    mask = holes((18, 22))
    given = tissue.TissueMask(mask, shape0=(900, 1100), method="by hand")
    for level in (0, 1):
        found = heatmap(slide, weighted, kernel_size=50, mask=given, level=level)
        plain = heatmap(slide, weighted, kernel_size=50, mask=mask, level=level)
        np.testing.assert_array_equal(found, plain)
        assert 0 < np.isnan(found.compute()).sum() < found.size
    other = tissue.TissueMask(mask, shape0=(1900, 1100), method="by hand")
    with pytest.raises(GeometryError, match=r"of an image of \(1900, 1100\) pixels"):
        heatmap(slide, weighted, kernel_size=50, mask=other)
