"""`heatmap` on slides: every level, mpp, storage tile reads, and what a torn tile does."""

from __future__ import annotations

import numpy as np
import pytest

from daskdmed import heatmap, open_slide
from daskdmed.cohort.record import Record
from daskdmed.core.region import Region
from daskdmed.errors import TileError
from daskdmed.images.tiff.decode import count_tiles
from daskdmed.samples import make_slide
from daskdmed.tiling.blocks import choose_block, tile_reads
from daskdmed.tiling.grid import WindowGrid


def weighted(windows):
    """Depends on every pixel and its place."""
    flat = np.asarray(windows, np.float64).reshape(len(windows), -1)
    return flat @ np.linspace(1, 2, flat.shape[1]) / flat.shape[1]


def probe_free(windows):
    """The cheapest model: a mean of 4 x 4 points of each window."""
    return windows[:, 28::56, 28::56].mean(axis=(1, 2, 3))


def truth(view, grid):
    """Each window cut by hand from the whole image, padded with white."""
    image = view.read(Region((0, 0), view.shape[:2]))
    pad = [(0, k) for k in grid.kernel_size] + [(0, 0)]
    padded = np.pad(image, pad, constant_values=255)
    values = np.empty(grid.counts)
    for index, (y, x) in grid:
        window = padded[y : y + grid.kernel_size[0], x : x + grid.kernel_size[1]]
        values[index] = weighted(window[None])[0]
    return values


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "made.tif"
    return open_slide(make_slide(path, (1900, 1500), levels=2, tissue=0.6, mpp=0.5, seed=3).path)


@pytest.mark.parametrize(
    "resolution", [{}, {"level": 1}, {"mpp": 0.7}, {"mpp": 2.3}], ids=lambda r: str(r) or "level 0"
)
@pytest.mark.parametrize(("kernel", "stride"), [(112, None), (100, 60), (64, 150)])
def test_every_window_of_a_slide(slide, resolution, kernel, stride):
    view = slide.view(**resolution)
    grid = WindowGrid.of(view.shape[:2], kernel, stride=stride)
    found = heatmap(
        slide, weighted, kernel_size=kernel, stride=stride, block_windows=4, **resolution
    ).compute()
    np.testing.assert_allclose(found, truth(view, grid), rtol=1e-6)


@pytest.mark.parametrize("scribbles", [False, True], ids=["looks", "scribbles"])
def test_windows_that_share_pixels_are_each_models_own(slide, scribbles):
    batches = []

    def model(windows):
        values = weighted(windows)
        batches.append((len(windows), windows.flags.writeable, windows.flags.c_contiguous))
        if scribbles:
            windows[...] = 0
        return values

    options = {"kernel_size": 96, "stride": 40, "level": 1, "batch_size": 6}
    found = heatmap(slide, model, **options).compute()
    view = slide.view(level=1)
    grid = WindowGrid.of(view.shape[:2], 96, stride=40)
    np.testing.assert_allclose(found, truth(view, grid), rtol=1e-6)
    assert all(1 <= n <= 6 and writeable for n, writeable, _ in batches[1:])
    assert sum(n for n, _, _ in batches[1:]) == len(grid)
    assert not any(whole for n, _, whole in batches[1:] if n > 1)  # cut out of larger pixels


def test_paths_records_and_views_are_the_same_image(slide):
    expected = heatmap(slide, weighted, kernel_size=200).compute()
    for image in (slide.uri, Record(slide.uri), slide.view()):
        np.testing.assert_array_equal(heatmap(image, weighted, kernel_size=200), expected)


def test_aligned_blocks_decode_each_tile_once(slide):
    tiles = [
        -(-h // th) * -(-w // tw)
        for (w, h), (th, tw) in zip(slide.level_dimensions, slide.level_tile_shapes, strict=True)
    ]
    for blocks in (None, 8):
        with count_tiles() as count:
            heatmap(slide, probe_free, kernel_size=224, block_windows=blocks)
        assert count.tiles == tiles[0]


def test_blocks_that_cannot_be_aligned_decode_little_twice(tmp_path):
    slide = open_slide(make_slide(tmp_path / "a.tif", (9000, 700), levels=1, tissue=0.1).path)
    grid = WindowGrid.of((700, 9000), 300)
    expected = tile_reads(grid, (256, 256), choose_block(grid, (256, 256), in_strips=True))
    with count_tiles() as count:
        heatmap(slide, probe_free, kernel_size=300)
    assert count.tiles == round(expected * 36 * 3)
    assert 1 < expected <= 1.15


def test_blocks_outside_the_mask_are_not_read(slide):
    mask = np.zeros((15, 19), bool)
    mask[2, 3] = True  # 100 x 100 pixels of level 0
    with count_tiles() as count:
        found = heatmap(slide, weighted, kernel_size=50, mask=mask).compute()
    assert np.isfinite(found).sum() == 4
    assert count.tiles <= 4


@pytest.mark.parametrize("stride", [224, 112])
def test_tiles_without_tissue_are_not_decoded(tmp_path, stride):
    """Inside a block either, and nothing else changes: written, lazy, and resumed."""
    slide = open_slide(make_slide(tmp_path / "a.tif", (2600, 1700), levels=1, tissue=1.0).path)
    grid = WindowGrid.of((1700, 2600), 224, stride=stride)
    keep = np.zeros((17, 26), bool)  # 100 pixels a side
    keep[2:4, 3:5] = keep[3, 20] = keep[12:15, 10:11] = True
    options = {"kernel_size": 224, "stride": stride, "block_windows": 8}
    everything = heatmap(slide, weighted, **options).compute()
    with count_tiles() as count:
        found = heatmap(slide, weighted, mask=keep, out=tmp_path / "h.zarr", **options).compute()
    kept = np.isfinite(found)
    np.testing.assert_array_equal(found[kept], everything[kept])
    blocks: dict[tuple[int, ...], set[tuple[int, int]]] = {}
    for index in map(tuple, np.argwhere(kept).tolist()):
        y, x = grid.origin(index)
        rows = range(y // 256, min(y + 223, 1699) // 256 + 1)
        columns = range(x // 256, min(x + 223, 2599) // 256 + 1)
        own = blocks.setdefault(tuple(i // 8 for i in index), set())
        own |= {(r, c) for r in rows for c in columns}
    assert count.tiles == sum(map(len, blocks.values())) < 40
    lazily = heatmap(slide, weighted, mask=keep, compute=False, **options).compute()
    np.testing.assert_array_equal(lazily, found)
    again = heatmap(slide, weighted, mask=keep, out=tmp_path / "h.zarr", resume=True, **options)
    np.testing.assert_array_equal(again.compute(), found)


def torn(path, tmp_path):
    """A copy of a slide in which one tile of level 0 is not a JPEG any more."""
    import tifffile

    copy = tmp_path / "torn.tif"
    copy.write_bytes(path.read_bytes())
    with tifffile.TiffFile(copy) as tiff:
        page = tiff.pages[0]
        offset, size = page.dataoffsets[9], page.databytecounts[9]
    with copy.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    return copy


def test_a_torn_tile_names_itself_and_the_rest_is_kept(slide, tmp_path):
    from pathlib import Path

    path = torn(Path(slide.uri), tmp_path)
    out = tmp_path / "a.zarr"
    with pytest.raises(TileError) as caught:
        heatmap(path, weighted, kernel_size=128, block_windows=2, out=out)
    assert "torn.tif" in str(caught.value)
    notes = " ".join(caught.value.__notes__)
    assert "pixels [" in notes
    assert "resume=True" in notes
    filled = heatmap(path, weighted, kernel_size=128, block_windows=2, tile_error="fill").compute()
    whole = heatmap(slide, weighted, kernel_size=128).compute()
    assert 1 <= (filled != whole).sum() <= 4


@pytest.mark.parametrize(("kernel", "stride"), [(224, 224), (200, 131)])
def test_every_window_of_a_real_slide(kernel, stride):
    from daskdmed.errors import SampleNotAvailableError
    from daskdmed.samples import fetch

    try:
        slide = open_slide(fetch("CMU-1-Small-Region.svs"))
    except SampleNotAvailableError as error:
        pytest.skip(str(error))
    view = slide.view()
    grid = WindowGrid.of(view.shape[:2], kernel, stride=stride)
    found = heatmap(slide, weighted, kernel_size=kernel, stride=stride).compute()
    np.testing.assert_allclose(found, truth(view, grid), rtol=1e-6)
