"""The covered share of boxes, against counting on a grid that is fine enough to be exact."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core.coverage import SummedArea, covered


@st.composite
def masks(draw):
    """A mask, and how many pixels each of its cells has along each axis."""
    shape = tuple(draw(st.integers(1, 5)) for _ in range(draw(st.integers(1, 3))))
    bits = draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    scale = tuple(draw(st.integers(1, 4)) for _ in shape)
    return np.array(bits).reshape(shape), scale


def pixels(mask, scale):
    for axis, factor in enumerate(scale):
        mask = mask.repeat(factor, axis=axis)
    return mask


@settings(max_examples=60)
@given(masks(), st.data())
def test_shares_of_boxes_are_those_of_their_pixels(given_mask, data):
    mask, scale = given_mask
    fine = pixels(mask, scale)
    # boxes may reach beyond the mask, where nothing is covered
    around = np.pad(fine, [(0, 6)] * fine.ndim)
    size = tuple(data.draw(st.integers(1, 6)) for _ in scale)
    begins = [
        data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3)) for n in fine.shape
    ]
    expected = np.zeros([len(b) for b in begins])
    for place in np.ndindex(expected.shape):
        first = [b[i] for b, i in zip(begins, place)]
        expected[place] = around[tuple(slice(f, f + s) for f, s in zip(first, size))].mean()
    boxes = [[(b, b + s) for b in axis] for axis, s in zip(begins, size)]
    np.testing.assert_allclose(covered(mask, boxes, fine.shape), expected, atol=1e-14)
    summed = SummedArea(mask)
    ends = [
        (np.array(axis) / f, (np.array(axis) + s) / f) for axis, s, f in zip(begins, size, scale)
    ]
    found = summed.means(ends, [s / f for s, f in zip(size, scale)])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    low = np.array([[axis[0] for axis in begins]]) / np.array(scale)
    high = np.minimum(low + np.array(size) / np.array(scale), mask.shape)
    area = np.prod(np.array(size) / np.array(scale))
    inside = summed.sums(low, high) / area
    np.testing.assert_allclose(inside, expected[(0,) * expected.ndim], atol=1e-12)


@given(masks(), st.data())
def test_cells_in_boxes_are_counted(given_mask, data):
    mask, _ = given_mask
    pairs = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in mask.shape]
    ends = [(np.array([a]), np.array([b])) for a, b in pairs]
    expected = mask[tuple(slice(a, b) for a, b in pairs)].sum()
    assert SummedArea(mask).counts(ends).item() == expected
