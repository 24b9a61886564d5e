"""Strips give the windows of a block, each once, and read each storage tile once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core import lending
from daskdmed.core.region import Region
from daskdmed.core.view import ImageView
from daskdmed.tiling import extract
from daskdmed.tiling.extract import Windows, read_block
from daskdmed.tiling.grid import WindowGrid
from daskdmed.tiling.strips import copies, manner_of, phases, read_strips, views


class TiledView(ImageView):
    """An image that is read by tiles and counts them."""

    spatial_ndim, cheap_to_cut, dtype = 2, True, np.dtype(np.uint16)
    background = np.uint16(9)

    def __init__(self, shape, tile):
        self.shape, self.tile_shape = shape, tile
        self.pixels = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape)
        self.tiles = np.zeros(Region.of(shape).cells(tile).shape, int)

    def _read(self, region: Region, out=None):
        self.tiles[region.cells(self.tile_shape).slices] += 1
        out[...] = self.pixels[region.slices]
        return out


def every_window(windows):
    """All kept windows of one piece, one by one: {flat position: pixels}."""
    return {i: w.copy() for at, batch in windows.views(10**6) for i, w in zip(numbers(at), batch)}


def numbers(where):
    """Flat positions, one by one."""
    return range(where.start, where.stop, where.step)


@settings(max_examples=150)
@given(data=st.data())
def test_strips_are_the_block(data):
    shape = tuple(data.draw(st.integers(1, 60)) for _ in range(2))
    kernel = tuple(data.draw(st.integers(1, 20)) for _ in range(2))
    stride = tuple(data.draw(st.integers(1, 25)) for _ in range(2))
    tile = tuple(data.draw(st.integers(1, 30)) for _ in range(2))
    edge = data.draw(st.sampled_from(["pad", "shift"]))
    grid = WindowGrid.of(shape, kernel, stride=stride, edge=edge)
    size = tuple(data.draw(st.integers(1, n)) for n in grid.counts)
    view = TiledView(shape, tile)
    strip_bytes = data.draw(st.integers(1, 4000))
    for _, block in grid.blocks(size):
        keep = None
        if data.draw(st.booleans()):
            bits = data.draw(st.lists(st.booleans(), min_size=block.count, max_size=block.count))
            keep = np.array(bits).reshape(block.shape)
        whole = every_window(Windows(read_block(view, block, grid), block, grid, keep))
        view.tiles[...] = 0
        found = {}
        for strip in read_strips(view, block, grid, keep, strip_bytes=strip_bytes):
            part = every_window(strip.windows)
            assert not found.keys() & {i + strip.first for i in part}
            assert strip.count == len(part)
            found.update({i + strip.first: w for i, w in part.items()})
        assert found.keys() == whole.keys()
        for i, window in whole.items():
            np.testing.assert_array_equal(found[i], window)
        # a tile that lies in two columns of tiles is still one tile of this block
        assert view.tiles.max(initial=0) <= 1
        if keep is not None and not keep.all():
            assert not (view.tiles > touched(view, block, grid, keep)).any()
            view.tiles[...] = 0
            pixels = read_block(view, block, grid, keep)
            assert not (view.tiles > touched(view, block, grid, keep)).any()
            again = every_window(Windows(pixels, block, grid, keep))
            assert again.keys() == whole.keys()
            for i, window in whole.items():
                np.testing.assert_array_equal(again[i], window)


def touched(view, block, grid, keep):
    """1 for the tiles that lie under a kept window."""
    found = np.zeros(view.tiles.shape, int)
    for index in np.argwhere(keep):
        origin = [
            o[i] + a for o, i, a in zip(block.origins, index, block.region.origin, strict=True)
        ]
        window = Region(tuple(origin), grid.kernel_size).clip(view.shape)
        found[window.cells(view.tile_shape).slices] = 1
    return found


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_batches_go_on_over_strips(batch_size):
    view = TiledView((90, 70), (16, 16))
    grid = WindowGrid.of(view.shape, 12, stride=8)
    block = grid.box((0, 0), grid.counts)
    keep = np.random.default_rng(0).random(block.shape) < 0.7
    total = int(keep.sum())
    strips = read_strips(view, block, grid, keep, strip_bytes=3000)

    def allocate(n):
        return np.empty((n, 12, 12), np.uint16)

    sizes, where, pixels = [], [], []
    for at, batch in copies(strips, total, lambda: batch_size, allocate, np.copyto):
        sizes.append(len(batch))
        where.append(at)
        pixels.append(batch)
    assert sizes == [batch_size] * (total // batch_size) + [total % batch_size] * bool(
        total % batch_size
    )
    np.testing.assert_array_equal(np.concatenate(where), np.flatnonzero(keep))
    first = np.concatenate(pixels)[:, 0, 0]
    places = np.argwhere(keep) * 8
    np.testing.assert_array_equal(first, view.pixels[tuple(places.T)])


def test_views_of_strips_stay_what_they_are_when_kept():
    view = TiledView((400, 4000), (64, 64))
    grid = WindowGrid.of(view.shape, 40)
    block = grid.box((0, 0), grid.counts)
    kept = list(views(read_strips(view, block, grid, strip_bytes=2 << 20), lambda: 64))
    for where, batch in kept:
        at = np.array(np.unravel_index(numbers(where), block.shape)).T * 40
        np.testing.assert_array_equal(batch[:, 0, 0], view.pixels[tuple(at.T)])


# ------------------------------------------------------------- windows that share pixels
def scribble(batch):
    batch[...] = 0


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_by_phases_each_window_comes_once_as_it_is_whatever_is_written(data):
    shape = tuple(data.draw(st.integers(5, 24)) for _ in range(2))
    kernel = tuple(data.draw(st.integers(2, 8)) for _ in range(2))
    stride = tuple(data.draw(st.integers(2, k + 1)) for k in kernel)
    grid = WindowGrid.of(shape, kernel, stride=stride)
    view = TiledView(shape, tuple(data.draw(st.integers(1, 9)) for _ in range(2)))
    block = grid.box((0, 0), grid.counts)
    strip_bytes, batch_size = data.draw(st.integers(1, 900)), data.draw(st.integers(1, 4))
    strips = read_strips(view, block, grid, lend=data.draw(st.booleans()), strip_bytes=strip_bytes)
    scribbles = data.draw(st.booleans())
    found = np.zeros((block.count, *kernel), int)
    for where, batch in phases(strips, lambda: batch_size):
        assert len(batch) == len(numbers(where)) <= batch_size
        assert not found[where].any()
        found[where] = batch + 1
        if scribbles:
            batch += 1  # a pixel that is in two windows would be raised twice
            np.testing.assert_array_equal(batch, found[where])
    whole = Windows(read_block(view, block, grid), block, grid)
    for where, batch in whole.views(10**6):
        np.testing.assert_array_equal(found[where], batch + 1)


def overlapping():
    view = TiledView((600, 700), (64, 64))
    grid = WindowGrid.of(view.shape, 40, stride=20)
    block = grid.box((0, 0), grid.counts)
    return block, read_strips(view, block, grid, lend=True, strip_bytes=1 << 17), view


@pytest.mark.skipif(not lending.available(), reason="this system cannot lend memory")
def test_pixels_are_copied_for_models_that_write_and_for_no_others(monkeypatch):
    copied = []

    def noted(target, source):
        copied.append(source.shape)
        target[...] = source

    monkeypatch.setattr(extract.np, "copyto", noted)
    for model, expected in ((np.sum, 0), (scribble, 1)):
        copied.clear()
        _, strips, _ = overlapping()
        for _, batch in phases(strips, lambda: 64):
            model(batch)
            del batch
        assert bool(copied) == expected


def test_what_a_model_keeps_stays_what_it_was_and_may_be_written_into_late():
    block, strips, view = overlapping()
    kept, whole = [], []
    for where, batch in phases(strips, lambda: 64):
        kept.append((where, batch))
        whole.append(batch.copy())
        kept[len(kept) // 2][1][...] = 7  # long after
    assert sum(len(batch) for _, batch in kept) == block.count
    firsts = np.concatenate([batch[:, 0, 0] for batch in whole])
    at = np.concatenate([np.arange(block.count)[where] for where, _ in kept])
    rows, columns = np.unravel_index(at, block.shape)
    np.testing.assert_array_equal(firsts, view.pixels[rows * 20, columns * 20])
    np.testing.assert_array_equal(kept[-1][1], whole[-1])


def test_by_phases_where_batches_are_large_enough():
    grid = WindowGrid.of((3584, 3584), 224, stride=112)
    block = grid.box((0, 0), grid.counts)
    total = block.count

    def manner(total=total, batch_size=64, *, in_place=True):
        return manner_of(block, grid, total, batch_size, in_place=in_place)

    assert manner() == "phases"
    assert manner(batch_size=65) == "copies"  # of 31 windows 16 share no pixel
    assert manner(total - 1) == "copies"
    assert manner(in_place=False) == "copies"
