"""Volumes read in any orientation and at any spacing, against NumPy on the whole array."""

from __future__ import annotations

import itertools
import pickle

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskdmed import Record, Space, Volume, open_slide, open_volume
from daskdmed.cohort.tissue.files import read_mask
from daskdmed.core.region import Region
from daskdmed.errors import (
    CorruptImageError,
    DatasetError,
    GeometryError,
    ImageNotFoundError,
    ResolutionError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.registry import get_backend
from daskdmed.testing import BackendConformance

SHAPE = (6, 10, 14)
ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)
]
VALUES = np.random.default_rng(0).integers(-900, 900, SHAPE).astype("i2")
SPACE = Space([[0, 0, -1, 9], [0, 2, 0, -5], [-4, 0, 0, 3], [0, 0, 0, 1]], SHAPE)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("volumes") / "scan.npy"
    np.save(path, VALUES)
    return path


def sources(path):
    """The same volume as a file and as a Dask array."""
    return (
        Record(path, space=SPACE, background=-1024),
        Record(array=da.from_array(VALUES, chunks=(4, 5, 6)), space=SPACE, background=-1024),
    )


def turned(array, orientation):
    order, flips = SPACE.permutation(orientation[::-1])
    return array.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]


@given(st.sampled_from(ORIENTATIONS), st.integers(0, 2**32 - 1))
def test_orientations(path, orientation, seed):
    rng = np.random.default_rng(seed)
    expected = turned(VALUES, orientation)
    for record in sources(path):
        view = record.view(orientation=orientation)
        assert view.shape == expected.shape
        assert view.space.orientation == orientation
        start = rng.integers(-3, expected.shape)
        region = Region(tuple(map(int, start)), tuple(map(int, rng.integers(1, 9, 3))))
        around = np.pad(expected, 20, constant_values=-1024)
        cut = region.shift((20, 20, 20)).slices
        np.testing.assert_array_equal(view.read_padded(region), around[cut])
        out = np.zeros((*region.shape, 2), "i2")[..., 0]  # any strides
        np.testing.assert_array_equal(view.read_padded(region, out=out), around[cut])


@given(st.sampled_from(["RAS", "PIR", "LSA"]), st.tuples(*[st.sampled_from([None, 1, 2.5, 6])] * 3))
def test_regions_of_resampled_volumes_are_parts_of_the_whole(path, orientation, spacing):
    found = []
    for record in sources(path):
        view = record.view(orientation=orientation, spacing=spacing)
        assert view.space.isclose(SPACE.reorient(orientation[::-1]).resample(spacing), 1e-6)
        whole = view.read(Region.of(view.shape))
        inner = Region(tuple(n // 3 for n in view.shape), tuple(max(1, n // 2) for n in view.shape))
        np.testing.assert_array_equal(view.read(inner), whole[inner.slices])
        again = pickle.loads(pickle.dumps(view.narrowed(inner)))
        np.testing.assert_array_equal(again.read(inner), whole[inner.slices])
        found.append(whole)
    np.testing.assert_array_equal(*found)


def test_coarser_voxels_are_means_and_finer_ones_lie_between(path):
    record = sources(path)[0]
    coarse = record.view(spacing=(8, 4, 2)).read(Region.of((3, 5, 7)))
    means = VALUES.reshape(3, 2, 5, 2, 7, 2).mean((1, 3, 5))
    np.testing.assert_array_equal(coarse, np.rint(means).astype("i2"))
    fine = record.view(spacing=(None, None, 0.5)).read(Region.of((6, 10, 28)))
    np.testing.assert_allclose(
        fine[..., 1:-1:2] * 4, 3 * VALUES[..., :-1] + VALUES[..., 1:], atol=3
    )


def labels_by_hand(labels, shape, scale):
    """Per voxel the area of every label, by brute force; the smaller one of equals."""
    best = np.zeros(shape, labels.dtype)
    for index in np.ndindex(*shape):
        areas = {}
        spans = [(i * s, (i + 1) * s) for i, s in zip(index, scale, strict=True)]
        ranges = [range(int(a), min(int(np.ceil(b)), n)) for (a, b), n in zip(spans, labels.shape)]
        for at in itertools.product(*ranges):
            part = [min(b, i + 1) - max(a, i) for i, (a, b) in zip(at, spans, strict=True)]
            areas[labels[at]] = areas.get(labels[at], 0) + np.prod(part)
        most = max(areas.values())
        best[index] = min(k for k, v in areas.items() if v > most - 1e-6)
    return best


@pytest.mark.parametrize("spacing", [(8, 4, 2), (4, 3, 2.5), (9, 2, 1)])
def test_labels_are_never_blended(spacing):
    labels = np.random.default_rng(1).choice(np.array([0, 3, 200], "u1"), SHAPE)
    view = Record(array=labels, space=SPACE).view(spacing=spacing).as_labels()
    found = view.read(Region.of(view.shape))
    scale = [w / s for w, s in zip(spacing, SPACE.spacing, strict=True)]
    np.testing.assert_array_equal(found, labels_by_hand(labels, view.shape, scale))


def test_open_volume(path):
    volume = open_volume(path)
    assert volume.shape == SHAPE
    assert volume.dtype == np.int16
    assert volume.space is None
    assert volume.channels is None
    assert volume.spacing is None
    assert volume.backend == "npy"
    np.testing.assert_array_equal(volume.read((1, 2, 3), (2, 3, 4)), VALUES[1:3, 2:5, 3:7])
    lazy = volume.to_dask(chunks=(4, 5, 6))
    np.testing.assert_array_equal(lazy.compute(), VALUES)
    assert lazy.name == open_volume(path).to_dask(chunks=(4, 5, 6)).name
    assert pickle.loads(pickle.dumps(volume)) == volume != volume.with_space(SPACE)
    assert isinstance(Record(path).open(), Volume)  # nobody has to say that it is one
    known = volume.with_space(SPACE)
    assert (
        known.to_dask(spacing=2, orientation="RAS").shape
        == known.space.reorient("SAR").resample(2).shape
    )
    assert "6 x 10 x 14 voxels" in repr(known)
    assert SPACE.axcodes in repr(known)


def test_how_a_volume_looks_in_a_notebook(path):
    shown = open_volume(path).with_space(SPACE)._repr_html_()
    assert "6 x 10 x 14" in shown
    assert "4 x 2 x 1" in shown
    assert f"axes to {SPACE.axcodes}" in shown
    assert "data:image/png;base64," in shown
    assert "nobody knows where" in open_volume(path)._repr_html_()


def test_time_points_and_channels(tmp_path):
    times = np.stack([VALUES, VALUES + 1, VALUES + 2, VALUES + 3, VALUES + 4])
    np.save(tmp_path / "times.npy", times)
    np.save(tmp_path / "channels.npy", np.moveaxis(times[:2], 0, -1))
    with pytest.raises(UsageError, match="5 time points"):
        open_volume(tmp_path / "times.npy")
    view = Record(tmp_path / "times.npy", time=3).view()
    np.testing.assert_array_equal(view.read(Region.of(SHAPE)), times[3])
    every = open_volume(tmp_path / "times.npy", time="channels")
    assert every.channels == 5
    np.testing.assert_array_equal(every.to_dask().compute(), np.moveaxis(times, 0, -1))
    assert open_volume(tmp_path / "channels.npy").channels == 2
    with pytest.raises(UsageError, match="no time point 5"):
        open_volume(tmp_path / "times.npy", time=5)
    with pytest.raises(UsageError, match="time is"):
        open_volume(tmp_path / "times.npy", time=-1)


def test_what_nobody_said_is_asked_for(path):
    volume = open_volume(path)
    with pytest.raises(ResolutionError, match=r"Record\(\.\.\., space="):
        volume.view(orientation="RAS")
    with pytest.raises(ResolutionError, match=r"Record\(\.\.\., spacing="):
        volume.view(spacing=2)
    with pytest.raises(UsageError, match="signed integers"):
        volume.view().read_padded(Region((-1, 0, 0), (2, 2, 2)))
    with pytest.raises(ResolutionError, match="level 3|level=3"):
        volume.view(level=3)
    with pytest.raises(GeometryError, match="voxels, the space is"):
        volume.with_space(Space(np.eye(4), (1, 2, 3)))
    with pytest.raises(GeometryError, match="outside"):
        volume.read((0, 0, 0), (9, 9, 99))
    spaced = Record(path, spacing=(4, 2, 1))
    assert spaced.view(spacing=4).shape == (6, 5, 4)
    assert spaced.view().spacing == (4, 2, 1)


def test_slides_and_volumes_are_told_apart(path):
    with pytest.raises(ResolutionError, match="is a volume"):
        Record(path).view(mpp=0.5)
    with pytest.raises(DatasetError, match="a volume has 3 spatial axes, asked for 2"):
        Record(path).view(spatial_ndim=2)
    with pytest.raises(UnsupportedImageError, match="open_volume"):
        open_slide(path, backend="npy")
    with pytest.raises(UnsupportedImageError):
        open_slide(path)
    with pytest.raises(UsageError, match="series"):
        open_volume(path, series="1")
    with pytest.raises(TypeError, match="unexpected keyword argument 'seris'"):
        Record(path, seris="1")
    with pytest.raises(UsageError, match="on_gap"):
        open_volume(path, on_gap="guess")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{'descr'"])
def test_damaged_arrays(tmp_path, content):
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises(CorruptImageError, match="bad.npy"):
        open_volume(path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3, 4",
        "{'descr': '<i2', 'fortran_order': False, 'shape': ([1], 3, 4)}",
        "{'descr': '<i2', 'fortran_order': False, 5: (2, 3, 4)}",
        "{'descr': '<i2', 'fortran_order': False, [1]: (2, 3, 4)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (99999999999999999999, 3, 4)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (-2, 3, 4)}",
        "(" * 500,
    ],
)
def test_headers_of_arrays_that_make_no_sense(tmp_path, header):
    """NumPy evaluates the header, and lets through whatever that raises."""
    path = tmp_path / "bad.npy"
    text = header.encode().ljust(600) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(48))
    with pytest.raises(CorruptImageError, match="bad.npy"):
        open_volume(path)
    with pytest.raises(CorruptImageError, match="bad.npy"):
        read_mask(path, "slide", (10, 10))


def test_arrays_that_are_no_volumes(tmp_path):
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "line.npy", np.arange(3))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name in ("text", "line", "objects"):
        with pytest.raises((UnsupportedImageError, CorruptImageError), match=name):
            open_volume(tmp_path / f"{name}.npy")
    with pytest.raises(ImageNotFoundError):
        open_volume(tmp_path / "none.npy")
    with pytest.raises(UsageError, match="empty list"):
        open_volume([])


class TestNpy(BackendConformance):
    backend = get_backend("npy")

    def make(self, tmp_path):
        path = tmp_path / "scan.npy"
        np.save(path, VALUES)
        return str(path), [VALUES[..., None]]
