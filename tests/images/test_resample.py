"""Area-correct resampling, against brute force; independence of blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core.region import Region
from daskdmed.images.resample import resample_labels, resample_region


def weights(length, scale, count):
    """(count, length) matrix: part of each source pixel under each output pixel."""
    matrix = np.zeros((count, length))
    for j in range(count):
        low, high = j * scale, min((j + 1) * scale, length)
        low = min(low, max(high - 1e-9, 0))
        for k in range(int(low), min(math.ceil(high), length)):
            matrix[j, k] = max(0.0, min(k + 1, high) - max(k, low))
        matrix[j] /= matrix[j].sum()
    return matrix


def brute_force(image, scale, shape):
    result = image.astype(float)
    for axis, (n, s, m) in enumerate(zip(image.shape, scale, shape, strict=False)):
        result = np.moveaxis(np.tensordot(weights(n, s, m), result, (1, axis)), 0, axis)
    return result


def whole(image, scale, tile=16, shape=None):
    shape = shape or tuple(
        max(1, round(n / s)) for n, s in zip(image.shape[:-1], scale, strict=True)
    )
    out = np.empty((*shape, image.shape[-1]), image.dtype)
    return resample_region(
        Region.of(shape), scale, image.shape[:-1], tile, lambda r: image[r.slices], out
    )


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (211, 173, 3)).astype(np.uint8)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "scale", [(2, 2), (3, 3), (4, 4), (2.5, 2.5), (1.0001, 1.3), (7.77, 2), (1.5, 17.3), (30, 30)]
)
def test_against_brute_force(image, scale, dtype):
    source = image.astype(dtype) * (1 if dtype == "uint8" else 200)
    got = whole(source, scale)
    expected = brute_force(source, scale, got.shape[:2])
    if dtype == "float32":
        assert np.allclose(got, expected, rtol=1e-5)
    else:
        # half a step of rounding, and float32 within one of 65 535
        assert np.abs(got - expected).max() <= 0.5 + 1e-9 + 65535 * 2e-6 * (dtype == "uint16")


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_whole_factors_are_block_means(image, factor):
    height, width = (n // factor for n in image.shape[:2])
    inner = image[: height * factor, : width * factor].astype(float)
    mean = inner.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    got = whole(image, (factor, factor))[:height, :width]
    assert np.array_equal(got, np.rint(mean))


def test_constant_stays_constant():
    for value in (0, 1, 127, 254, 255):
        source = np.full((97, 83, 3), value, np.uint8)
        for scale in ((1.37, 2.91), (2, 2), (0.4, 0.7), (13, 5.5)):
            assert (whole(source, scale) == value).all()


def test_scale_that_misses_a_whole_number_by_rounding(image):
    exact = whole(image, (2, 2))
    for scale in (2 + 1e-13, 2 - 1e-13):
        assert np.array_equal(whole(image, (scale, scale), shape=exact.shape[:2]), exact)


FACTORS = st.one_of(st.floats(0.3, 9), st.integers(1, 6).map(float))


@st.composite
def sources(draw, kinds=("u1",)):
    """An image of one to three spatial axes, and a scale."""
    extents = {1: 300, 2: 120, 3: 24}
    ndim = draw(st.integers(1, 3))
    shape = draw(st.tuples(*(st.integers(1, extents[ndim]),) * ndim))
    scale = draw(st.tuples(*(FACTORS,) * ndim))
    values = np.random.default_rng(draw(st.integers(0, 5))).integers(0, 256, (*shape, 2))
    return values.astype(draw(st.sampled_from(kinds))), scale


@settings(max_examples=60)
@given(image=sources(kinds=("u1", "u2", "i2", "f4")))
def test_any_number_of_axes_against_brute_force(image):
    source, scale = image
    scale = tuple(max(s, 1.0) for s in scale)
    got = whole(source, scale)
    expected = brute_force(source, scale, got.shape[:-1])
    slack = 1e-3 if source.dtype.kind == "f" else 0.5 + 1e-3
    assert np.abs(got - expected).max() <= slack


@settings(max_examples=100)
@given(data=st.data(), image=sources())
def test_any_region_is_the_same_part_of_the_whole(data, image):
    source, scale = image
    full = whole(source, scale, tile=data.draw(st.integers(1, 40)))
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in full.shape[:-1]]
    region = Region.between(*zip(*ends, strict=True))
    out = np.empty((*region.shape, 2), np.uint8)
    tile = data.draw(st.integers(1, 40))
    resample_region(region, scale, source.shape[:-1], tile, lambda r: source[r.slices], out)
    assert np.array_equal(out, full[region.slices])


@pytest.mark.parametrize("scale", [(2, 2), (1.7, 1.7)])
def test_source_rows_are_read_once(image, scale, monkeypatch):
    monkeypatch.setattr("daskdmed.images.resample._BAND_BYTES", 20_000)
    seen = np.zeros(image.shape[:2], int)

    def read(region):
        seen[region.slices] += 1
        assert region.shape[0] * region.shape[1] * 3 <= 60_000
        return image[region.slices]

    shape = tuple(round(n / s) for n, s in zip(image.shape[:2], scale, strict=True))
    out = np.empty((*shape, 3), np.uint8)
    resample_region(Region((0, 0), shape), scale, image.shape[:-1], 16, read, out)
    assert seen.max() == 1
    assert seen[:-2, :-2].min() == 1


@pytest.mark.parametrize("scale", [(1.7, 2, 1.3), (0.6, 1, 2)])
@pytest.mark.parametrize("offset", [None, (0.4, 0, 0)])
def test_labels_are_read_in_bands_each_row_once(scale, offset, monkeypatch):
    labels = np.random.default_rng(0).integers(0, 5, (60, 11, 9)).astype(np.uint8)
    rows, *across = (round(n / s) for n, s in zip(labels.shape, scale))
    region = Region((2, 0, 0), (rows - 3, *across))
    reads = []

    def read(part):
        reads.append(part)
        return labels[part.slices]

    def found():
        reads.clear()
        out = np.empty(region.shape, np.uint8)
        return resample_labels(region, scale, labels.shape, 4, read, out, offset)

    at_once = found()
    assert len(reads) == 1
    monkeypatch.setattr("daskdmed.images.resample._BAND_BYTES", 4 * 11 * 9 * 8)
    assert np.array_equal(found(), at_once)
    assert max(part.shape[0] for part in reads) <= 8 + 4
    rows = [row for part in reads for row in range(part.origin[0], part.stop[0])]
    assert len(reads) > 4
    assert len(rows) == len(set(rows))


def test_enlarging_is_linear_between_centres():
    ramp = np.tile(np.arange(0, 200, 20, dtype=np.uint8)[None, :, None], (10, 1, 1))
    big = whole(ramp, (0.5, 0.5))
    assert big.shape == (20, 20, 1)
    expected = np.interp((np.arange(20) + 0.5) * 0.5 - 0.5, np.arange(10), ramp[0, :, 0])
    assert np.array_equal(big[0, :, 0], np.rint(expected))
    assert np.array_equal(whole(ramp, (1.0, 1.0)), ramp)


def test_infinite_values_warn_of_nothing():
    image = np.ones((9, 10, 1), np.float32)
    image[4, 5], image[0, 0] = np.inf, np.nan
    with np.errstate(all="raise"):
        small = whole(image, (1.5, 2.0))
    assert small.shape == (6, 5, 1)
    assert np.isnan(small[0, 0, 0])
    assert (small[4:] == 1).all()


def test_pixels_that_are_larger_than_the_image():
    """A header may say that voxels are a million times smaller than they are."""
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    out = np.empty((1, 1, 1), np.float32)
    read = lambda region: image[region.slices]  # noqa: E731
    resample_region(Region((0, 0), (1, 1)), (1e30, 1e12), (3, 4), 2, read, out)
    assert out == image.mean()
