"""Space against nibabel, and against its own definition voxel by voxel."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from dask.base import tokenize
from hypothesis import given
from hypothesis import strategies as st

from daskdmed import Space
from daskdmed.errors import GeometryError, ResolutionError

SHAPE = (5, 7, 9)
AXCODES = [
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)
]


@st.composite
def spaces(draw):
    """Any oblique, anisotropic, slightly sheared affine."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(rng.uniform(0.3, 5, 3))
    affine[:3, 2] += affine[:3, 1] * rng.uniform(-0.3, 0.3)
    affine[:3, 3] = rng.normal(size=3) * 50
    return Space(affine, rng.integers(1, 9, 3))


@given(spaces())
def test_axes_are_named_as_by_nibabel(space):
    # before, the axis that came first chose first, and not the one that is clearest
    nibabel = pytest.importorskip("nibabel", minversion="5.4")
    assert space.axcodes == "".join(nibabel.aff2axcodes(space.affine))
    swapped = space.affine[:, [2, 1, 0, 3]]  # NIfTI's (x, y, z) of the same array
    assert space.orientation == "".join(nibabel.aff2axcodes(swapped))
    np.testing.assert_allclose(space.spacing, nibabel.affines.voxel_sizes(space.affine))


@given(spaces(), st.sampled_from(AXCODES))
def test_reorienting_moves_no_voxel(space, axcodes):
    turned = space.reorient(axcodes)
    assert turned.axcodes == axcodes
    order, flips = space.permutation(axcodes)
    places = space.to_world(np.moveaxis(np.indices(space.shape), 0, -1))
    places = places.transpose(*order, 3)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    found = turned.to_world(np.moveaxis(np.indices(turned.shape), 0, -1))
    np.testing.assert_allclose(found, places, atol=1e-9)
    assert turned.reorient(space.axcodes).isclose(space, 1e-9)


@given(spaces(), st.tuples(*[st.none() | st.floats(0.3, 9)] * 3))
def test_resampled_voxels_begin_where_the_old_ones_do(space, spacing):
    new = space.resample(spacing)
    wanted = [w or s for w, s in zip(spacing, space.spacing, strict=True)]
    np.testing.assert_allclose(new.spacing, wanted)
    edge = np.full(3, -0.5)
    np.testing.assert_allclose(new.to_world(edge), space.to_world(edge), atol=1e-9)
    ends = np.array(new.shape) * wanted - np.array(space.shape) * space.spacing
    assert np.all((np.abs(ends) <= np.array(wanted) / 2 + 1e-9) | (np.array(new.shape) == 1))


@given(spaces(), st.tuples(*[st.integers(-9, 9)] * 3))
def test_a_crop_lies_where_it_was_cut(space, origin):
    part = space.crop(origin, (2, 3, 4))
    np.testing.assert_allclose(part.to_world((1, 2, 3)), space.to_world(np.add(origin, (1, 2, 3))))
    np.testing.assert_allclose(space.to_index(space.to_world(origin)), origin, atol=1e-9)


def test_spaces_are_compared_in_voxels():
    space = Space(np.diag([3.0, 1, 1, 1]), SHAPE)
    moved = np.array(space.affine)
    moved[0, 3] += 0.02  # millimeters along an axis of 3 mm
    assert space.isclose(Space(moved, SHAPE))
    assert not space.isclose(Space(moved, SHAPE), 0.005)
    moved[1, 3] += 0.02  # the same along an axis of 1 mm
    assert not space.isclose(Space(moved, SHAPE))
    turned = np.array(space.affine)
    turned[1, 2] = 0.003  # far from the origin a small angle counts
    assert not space.isclose(Space(turned, SHAPE))
    assert not space.isclose(Space(space.affine, (5, 7, 8)))


def test_a_value():
    space = Space(np.diag([-3.0, 1, 2, 1]), [5, 7, 9])
    again = pickle.loads(pickle.dumps(space))
    assert space == again
    assert hash(space) == hash(again)
    assert space != Space(np.eye(4), SHAPE)
    assert tokenize(space) == tokenize(again) != tokenize(Space(np.eye(4), SHAPE))
    for one in (space, again):
        with pytest.raises(ValueError, match="read-only"):
            one.affine[0, 0] = 1
    assert "5 x 7 x 9 voxels (z, y, x) of 3 x 1 x 2 mm, axes to LAS" in repr(space)


@pytest.mark.parametrize(
    "affine",
    [np.eye(3), np.full((4, 4), np.nan), np.zeros((4, 4)), np.ones((4, 4)), np.diag([1, 1, 1, 2])],
)
def test_what_is_no_affine_is_refused(affine):
    with pytest.raises(GeometryError):
        Space(affine, SHAPE)


@pytest.mark.parametrize("letters", ["RA", "RRS", "XYZ", "ras", None, 3])
def test_what_is_no_orientation_is_refused(letters):
    with pytest.raises(ResolutionError, match="three letters"):
        Space(np.eye(4), SHAPE).reorient(letters)


@pytest.mark.parametrize("spacing", [0, -1, (1, 2), (1, 2, np.nan), "fine"])
def test_what_is_no_spacing_is_refused(spacing):
    with pytest.raises((ResolutionError, ValueError)):
        Space(np.eye(4), SHAPE).resample(spacing)
