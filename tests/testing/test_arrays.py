"""Arrays that encode coordinates, and the comparison that tests use."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskdmed.errors import GeometryError
from daskdmed.testing import assert_same_pixels, coordinate_image, coordinates_of


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sampled_from(["uint8", "int32", "uint16", "float32"]),
)
def test_every_pixel_tells_where_it_is(shape, dtype):
    image = coordinate_image(shape, dtype)
    assert image.dtype == dtype
    assert image.shape == (*shape, 3) if dtype == "uint8" else tuple(shape)
    expected = np.stack(np.indices(shape), axis=-1)
    assert np.array_equal(coordinates_of(image, shape), expected)


def test_types_too_small_are_refused():
    assert coordinate_image((256, 256), "uint16").max() == 65535
    with pytest.raises(GeometryError, match="65536"):
        coordinate_image((257, 256), "uint16")
    with pytest.raises(GeometryError):
        coordinate_image((4097, 4097), "uint8")


def test_the_comparison_says_what_differs():
    a = coordinate_image((5, 6), "int32")
    b = a.copy()
    assert_same_pixels(a, b)
    b[2, 3] += 4
    with pytest.raises(AssertionError, match=r"here: 1 of 30 .*by 4.0; first at \(2, 3\): 15,"):
        assert_same_pixels(a, b, what="here")
    assert_same_pixels(a, b, atol=4)
    with pytest.raises(AssertionError, match="shape"):
        assert_same_pixels(a, b[1:])
    with pytest.raises(AssertionError, match="dtype"):
        assert_same_pixels(a, b.astype("int64"))
    nan = np.array([1.0, np.nan])
    assert_same_pixels(nan, nan.copy(), atol=1)
    with pytest.raises(AssertionError):
        assert_same_pixels(nan, np.array([1.0, 2.0]), atol=1)


def test_arrays_need_no_pytest():
    code = (
        "import sys; from daskdmed.testing import coordinate_image; "
        "assert 'pytest' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
