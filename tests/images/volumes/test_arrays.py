"""Parts that all backends of volumes share, against NumPy: axes, boxes of files, slopes."""

from __future__ import annotations

import warnings

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import open_volume
from daskdmed.core.region import Region
from daskdmed.errors import CorruptImageError
from daskdmed.images.source import open_source
from daskdmed.images.volumes import rawfile
from daskdmed.images.volumes.arrays import layout_by_names
from daskdmed.images.volumes.values import Rescale


@st.composite
def boxes(draw):
    """A shape, and for each axis a part or an index of it."""
    shape = draw(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    chosen = []
    for extent in shape:
        start = draw(st.integers(0, extent - 1))
        stop = draw(st.integers(start + 1, extent))
        whole = draw(st.booleans())
        chosen.append(
            start
            if draw(st.booleans()) and draw(st.booleans())
            else slice(0, extent)
            if whole
            else slice(start, stop)
        )
    return tuple(shape), tuple(chosen)


@settings(max_examples=60)
@given(
    boxes(), st.sampled_from(["<u2", ">f4"]), st.integers(0, 7), st.sampled_from([1, 40, 1 << 20])
)
def test_boxes_of_files(tmp_path_factory, box, dtype, offset, piece):
    shape, selection = box
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = tmp_path_factory.getbasetemp() / "box.raw"
    path.write_bytes(bytes(offset) + values.tobytes())
    source = open_source(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rawfile, "_PIECE", piece)
        expected = values[selection]
        out = np.full((*expected.shape, 2), 77.0)[..., 0]
        rawfile.RawArray(source, offset, shape, dtype).read(selection, out)
        np.testing.assert_array_equal(out, expected)
    with pytest.raises(CorruptImageError, match="incomplete"):
        rawfile.RawArray(source, offset + 1, shape, dtype)
    source.close()


@given(st.permutations("tczyx"), st.integers(0, 2))
def test_axes_in_any_order(names, time):
    extents = {"t": 3, "c": 2, "z": 4, "y": 5, "x": 6}
    shape = tuple(extents[n] for n in names)
    values = np.arange(np.prod(shape)).reshape(shape)
    layout = layout_by_names("file", names, shape, time)
    assert layout.shape == (4, 5, 6, 2)
    region = Region((1, 2, 0), (3, 2, 5))
    out = np.zeros((*region.shape, 2), int)
    layout.seen(out)[...] = values[layout.selection(region)]
    expected = values.transpose([names.index(n) for n in "tzyxc"])[time]
    np.testing.assert_array_equal(out, expected[region.slices])
    assert layout.tile(shape) == (4, 5, 6)


@given(
    st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]),
    st.integers(-(2**33), 2**33),
    st.integers(-(2**40), 2**40),
)
def test_whole_slopes_are_exact_in_the_smallest_type(stored, slope, intercept):
    limits = np.iinfo(stored)
    values = np.array([limits.min, limits.max, 0, 1, limits.max // 3], stored)
    exact = [int(v) * slope + intercept for v in values]
    rescale = Rescale.of(stored, slope, intercept)
    out = np.empty(len(values), rescale.dtype)
    rescale.into(values, out)
    if (slope, intercept) == (1, 0):
        assert rescale.dtype == np.dtype(stored)
    elif slope and rescale.dtype.kind == "i":
        smaller = (
            np.dtype(f"i{rescale.dtype.itemsize // 2}") if rescale.dtype.itemsize > 1 else None
        )
        ends = exact[:2]
        assert (
            smaller is None
            or min(ends) < np.iinfo(smaller).min
            or max(ends) > np.iinfo(smaller).max
        )
    if rescale.dtype.kind == "f":
        assert max(map(abs, exact[:2])) > np.iinfo("i8").max - 1
        np.testing.assert_allclose(out, np.array(exact, "f8"), rtol=1e-6)
    else:
        assert out.tolist() == exact


def test_values_that_are_no_number_or_too_large_give_no_warning():
    signals = np.array([0x7FA00000, 0x3F800000, 0x7F700000], np.uint32).view(np.float32)
    rescale = Rescale.of("f4", 2.5, 1.0)
    out = np.empty(3, rescale.dtype)
    with warnings.catch_warnings(action="error"):
        rescale.into(signals, out)
    assert np.isnan(out[0])
    assert out[1:].tolist() == [3.5, np.inf]


def test_remote_files(tmp_path):
    nib = pytest.importorskip("nibabel")
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 99, (6, 20, 30)).astype("i2")
    image = nib.Nifti1Image(values.T, np.diag([1, 2, 3, 1]))
    for name in ("scan.nii", "scan.nii.gz"):
        image.to_filename(tmp_path / name)
    tifffile.imwrite(tmp_path / "scan.tif", values, metadata={"axes": "ZYX"}, ome=True)
    memory = fsspec.filesystem("memory")
    for file in tmp_path.iterdir():
        memory.pipe_file(f"/volumes/{file.name}", file.read_bytes())
        volume = open_volume(f"memory://volumes/{file.name}")
        assert volume.shape == values.shape
        np.testing.assert_array_equal(volume.read((1, 2, 3), (4, 9, 21)), values[1:5, 2:11, 3:24])
    memory.rm("/volumes", recursive=True)
