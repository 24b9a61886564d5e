"""Arithmetic of regions against sets of pixels, in one to three dimensions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskdmed.core.region import Region
from daskdmed.errors import GeometryError


def pixels(region):
    """Every pixel of a region."""
    return set(itertools.product(*map(range, region.origin, region.stop)))


def vectors(low, high, ndim):
    return st.tuples(*(st.integers(low, high),) * ndim)


def regions(ndim):
    return st.builds(Region, vectors(-7, 9, ndim), vectors(0, 6, ndim))


def with_axes(*make):
    """Values of several strategies that depend on the same number of axes."""
    return st.integers(1, 3).flatmap(lambda n: st.tuples(*(m(n) for m in make)))


@given(with_axes(regions, lambda n: vectors(0, 8, n)))
def test_clip_keeps_what_lies_inside_the_image(values):
    region, shape = values
    image = pixels(Region.of(shape))
    part = region.clip(shape)
    assert pixels(part) == pixels(region) & image
    assert part.within(shape)
    assert region.within(shape) == (part == region)


@given(with_axes(regions, regions))
def test_intersections_are_those_of_the_pixels(values):
    one, two = values
    both = one.intersect(two)
    assert pixels(both) == pixels(one) & pixels(two)
    assert both.size == len(pixels(both))
    assert two.contains(both)
    if one.size:
        assert two.contains(one) == (pixels(one) <= pixels(two))


@given(with_axes(regions, regions, lambda n: vectors(-5, 5, n)))
def test_shifts_and_frames_are_inverse(values):
    region, frame, offset = values
    assert region.shift(offset).shift([-d for d in offset]) == region
    assert region.local_to(frame).shift(frame.origin) == region
    moved = {tuple(p + d for p, d in zip(at, offset, strict=True)) for at in pixels(region)}
    assert pixels(region.shift(offset)) == moved


@given(with_axes(regions, lambda n: vectors(0, 3, n), lambda n: vectors(0, 3, n)))
def test_padding_adds_on_both_sides(values):
    region, before, after = values
    wide = region.pad(before, after)
    assert wide.contains(region)
    assert wide.pad([-b for b in before], [-a for a in after]) == region
    assert wide.shape == tuple(
        b + s + a for b, s, a in zip(before, region.shape, after, strict=True)
    )


@given(with_axes(regions, lambda n: vectors(1, 4, n)))
def test_cells_are_those_that_hold_a_pixel(values):
    region, cell = values
    touched = {tuple(p // c for p, c in zip(at, cell, strict=True)) for at in pixels(region)}
    if region.size:
        assert pixels(region.cells(cell)) == touched
        assert region.cells(cell).times(cell).contains(region)
        assert region.times(cell).cells(cell) == region


@given(with_axes(regions, lambda n: vectors(1, 4, n)))
def test_tiles_cut_along_the_grid_and_give_every_pixel_once(values):
    region, tile = values
    pieces = list(region.tiles(tile))
    seen = [at for piece in pieces for at in pixels(piece)]
    assert len(seen) == len(set(seen))
    assert set(seen) == pixels(region)
    assert all(piece.cells(tile).size == 1 for piece in pieces)
    assert [p.origin for p in pieces] == sorted(p.origin for p in pieces)
    assert len(pieces) == (region.cells(tile).size if region.size else 0)


def test_a_region_needs_as_many_origins_as_extents():
    with pytest.raises(GeometryError, match="as many origins as extents"):
        Region((0, 0), (1, 2, 3))
    assert not Region((0, 0), (1, 1)).within((4, 4, 4))
    assert Region.between((3, 0), (1, 5)) == Region((3, 0), (0, 5))
