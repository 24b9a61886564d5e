"""NIfTI against nibabel: values, types, spaces, time points; and headers that cannot be true."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
from pathlib import Path

import dask
import nibabel as nib
import numpy as np
import pytest
from nibabel.testing import data_path

from daskdmed import Record, Space, open_volume
from daskdmed.cohort.sources import images_of
from daskdmed.core.region import Region
from daskdmed.errors import (
    CorruptImageError,
    DaskdmedError,
    GeometryError,
    ImageError,
    ImageNotFoundError,
    SpaceError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.registry import get_backend
from daskdmed.testing import BackendConformance

SHAPE = (14, 10, 6)  # x, y, z
VALUES = np.random.default_rng(0).integers(-900, 900, SHAPE).astype("i2")


def affine(codes="RAS", steps=(1.0, 1.5, 3.0)):
    """From (x, y, z) that grow as `codes` say, with slices of 3 mm, a little askew."""
    world = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    axes = np.zeros((3, 3))
    for axis, (letter, step) in enumerate(zip(codes, steps)):
        row, sign = world[letter]
        axes[row, axis] = sign * step
    tilt = nib.eulerangles.euler2mat(0.1, -0.05, 0.2)
    return nib.affines.from_matvec(tilt @ axes, [-30, 20.5, 7])


def save(path, values=VALUES, matrix=None, kind=nib.Nifti1Image, **fields):
    """Write an image and then fields of its header as nibabel would not."""
    image = kind(values, affine() if matrix is None else matrix)
    image.to_filename(path)
    if fields:
        zipped = path.name.endswith(".gz")
        data = bytearray((gzip.decompress if zipped else bytes)(path.read_bytes()))
        header = image.header
        head = type(header)(bytes(data[: len(header.binaryblock)]), check=False)
        for name, value in fields.items():
            head[name] = value
        data[: len(head.binaryblock)] = head.binaryblock
        path.write_bytes((gzip.compress if zipped else bytes)(data))
    return path


def in_ras(image, index=()):
    """What nibabel makes of an image, as (z, y, x) that grow to S, A, R."""
    canonical = nib.as_closest_canonical(image)
    values = np.asanyarray(canonical.dataobj)[(..., *index)]
    return values.T, canonical.affine[:, [2, 1, 0, 3]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("anatomical.nii", {}),
        ("functional.nii", {"time": 7}),
        ("example4d.nii.gz", {"time": 1}),
        ("example_nifti2.nii.gz", {"time": 0}),
    ],
)
def test_files_of_nibabel(name, options):
    path = Path(data_path) / name
    index = tuple(options.values())
    volume = open_volume(path, **options)
    expected, matrix = in_ras(nib.load(path), index)
    view = volume.view(orientation="RAS")
    assert view.space.isclose(Space(matrix, expected.shape), 1e-6)
    found = volume.to_dask(orientation="RAS").compute()
    assert found.dtype == volume.dtype
    np.testing.assert_allclose(found, expected.astype(found.dtype), rtol=1e-6)
    if expected.dtype.kind == "i":
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "LAS"])
def test_orientations(tmp_path, codes, suffix, kind):
    path = save(tmp_path / f"scan{suffix}", matrix=affine(codes), kind=kind)
    volume = open_volume(path)
    assert volume.space.orientation == codes
    assert volume.space.spacing == pytest.approx((3, 1.5, 1))
    assert volume.properties["nifti.version"] == ("1" if kind is nib.Nifti1Image else "2")
    image = nib.load(path)
    assert "".join(nib.aff2axcodes(image.affine)) == codes
    np.testing.assert_allclose(volume.space.affine[:, [2, 1, 0, 3]], image.affine, atol=1e-5)
    np.testing.assert_array_equal(volume.to_dask().compute(), np.asanyarray(image.dataobj).T)
    expected, matrix = in_ras(image)
    np.testing.assert_array_equal(volume.to_dask(orientation="RAS").compute(), expected)
    assert volume.view(orientation="RAS").space.isclose(Space(matrix, expected.shape), 1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "LAS"])
def test_places_by_qform_alone(tmp_path, codes, order):
    image = nib.Nifti1Image(VALUES, None, nib.Nifti1Header(endianness=order))
    image.set_qform(affine(codes), 1)
    image.set_sform(None, 0)
    image.to_filename(tmp_path / "scan.nii")
    volume = open_volume(tmp_path / "scan.nii")
    assert volume.properties["nifti.form"] == "qform"
    expected = Space(nib.load(tmp_path / "scan.nii").affine[:, [2, 1, 0, 3]], volume.shape)
    assert volume.space.isclose(expected, 1e-4)
    assert volume.space.orientation == codes
    np.testing.assert_array_equal(volume.to_dask().compute(), VALUES.T)


def test_blocks_of_wide_volumes_are_no_larger_than_asked_for(tmp_path):
    values = np.zeros((1100, 3, 2), "i2")
    values[1000, 1, 1] = 5
    volume = open_volume(save(tmp_path / "wide.nii", values))
    lazy = volume.to_dask(chunks=512)
    assert lazy.chunks == ((2,), (3,), (512, 512, 76))
    np.testing.assert_array_equal(lazy.compute(), values.T)


def test_pairs(tmp_path):
    nib.Nifti1Pair(VALUES, affine()).to_filename(tmp_path / "zipped.img.gz")
    for name in ("zipped.img.gz", "zipped.hdr.gz"):
        np.testing.assert_array_equal(open_volume(tmp_path / name).to_dask().compute(), VALUES.T)
    nib.Nifti1Pair(VALUES, affine()).to_filename(tmp_path / "scan.img")
    for name in ("scan.img", "scan.hdr"):
        volume = open_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.to_dask().compute(), VALUES.T)
    (tmp_path / "scan.img").unlink()
    with pytest.raises(ImageNotFoundError, match=r"scan\.img is missing"):
        open_volume(tmp_path / "scan.hdr")
    (tmp_path / "other.img").write_bytes(bytes(1000))
    (tmp_path / "other.hdr").write_text("ENVI\nsamples = 3\n" * 99)
    with pytest.raises(UnsupportedImageError, match="no backend reads"):
        open_volume(tmp_path / "other.img")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("stored", "slope", "inter", "expected"),
    [
        *[(code, 1, 0, code) for code in ("u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8")],
        ("i2", 0, 5, "i2"),  # as the standard has it: no slope
        ("i2", np.nan, 5, "i2"),
        ("u1", 1, -1024, "i2"),
        ("u1", -2, 3, "i2"),
        ("i2", 1, -1024, "i4"),
        ("i2", 2.5, 0, "f4"),
        ("i4", 1, 0.5, "f4"),
        ("f4", 2, 1, "f4"),
        ("f8", 0.5, -3, "f8"),
    ],
)
def test_types_and_slopes(tmp_path, stored, slope, inter, expected, order):
    values = np.random.default_rng(1).integers(0, 120, SHAPE).astype(stored)
    values[0, 0, 0] = 0 if stored[0] == "f" else np.iinfo(stored).max
    image = nib.Nifti1Image(
        values, affine(), nib.Nifti1Header(endianness=order), dtype=values.dtype
    )
    image.to_filename(tmp_path / "scan.nii")
    data = bytearray((tmp_path / "scan.nii").read_bytes())
    data[112:120] = np.array([slope, inter], f"{order}f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(data)
    volume = open_volume(tmp_path / "scan.nii")
    assert volume.dtype == np.dtype(expected)
    if slope == 0 or np.isnan(slope):
        slope, inter = 1, 0
    wanted = values.T.astype("f8") * slope + inter if slope != 1 or inter else values.T
    found = volume.to_dask().compute()
    assert found.dtype == volume.dtype
    np.testing.assert_array_equal(found, wanted.astype(expected))


def test_time_points_components_and_colours(tmp_path):
    times = np.stack([VALUES, VALUES + 1, VALUES + 2], -1)
    for suffix in (".nii", ".nii.gz"):
        path = save(tmp_path / f"times{suffix}", times)
        with pytest.raises(UsageError, match="3 time points"):
            open_volume(path)
        with pytest.raises(UsageError, match="no time point 3"):
            open_volume(path, time=3)
        np.testing.assert_array_equal(open_volume(path, time=2).to_dask().compute(), VALUES.T + 2)
        every = open_volume(path, time="channels")
        assert every.channels == 3
        np.testing.assert_array_equal(
            every.read((1, 2, 3), (2, 3, 4)), times.transpose(2, 1, 0, 3)[1:3, 2:5, 3:7]
        )
    vectors = save(tmp_path / "vectors.nii", times[:, :, :, None])
    assert open_volume(vectors).channels == 3
    np.testing.assert_array_equal(
        open_volume(vectors).to_dask().compute(), times.transpose(2, 1, 0, 3)
    )
    both = save(tmp_path / "both.nii", np.stack([times, times + 9], -1))
    with pytest.raises(UsageError, match="time points"):
        open_volume(both)
    with pytest.raises(UsageError, match="3 time points.*means nothing"):
        open_volume(both, time="channels")
    np.testing.assert_array_equal(
        open_volume(both, time=1).to_dask().compute()[..., 1], VALUES.T + 10
    )
    rgb = np.random.default_rng(2).integers(0, 256, (*SHAPE, 3), "u1")
    packed = rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    colours = open_volume(save(tmp_path / "rgb.nii", packed))
    assert (colours.channels, colours.dtype) == (3, np.uint8)
    np.testing.assert_array_equal(
        colours.read((1, 2, 3), (2, 3, 4)), rgb.transpose(2, 1, 0, 3)[1:3, 2:5, 3:7]
    )
    flat = save(tmp_path / "flat.nii", VALUES[:, :, 0])
    assert open_volume(flat).shape == (1, 10, 14)


def test_units(tmp_path):
    said = {"m": 1, "mm": 2, "um": 3, "none": 0}
    factors = {"m": 1000, "mm": 1, "um": 0.001, "none": 1}
    for name, code in said.items():
        path = save(tmp_path / f"{name}.nii", xyzt_units=code)
        assert open_volume(path).spacing == pytest.approx(
            tuple(s * factors[name] for s in (3, 1.5, 1))
        )
    path = save(tmp_path / "bare.nii", xyzt_units=3, sform_code=0, qform_code=0)
    assert open_volume(path).spacing == pytest.approx((0.003, 0.0015, 0.001))


def test_forms(tmp_path):
    image = nib.Nifti1Image(VALUES, None)
    image.set_sform(affine("RAS"), 1)
    image.set_qform(affine("LAS"), 1)
    image.to_filename(tmp_path / "two.nii")
    with pytest.raises(SpaceError, match="(?s)sform and qform.*SAR.*SAL") as caught:
        open_volume(tmp_path / "two.nii")
    assert isinstance(caught.value, GeometryError)
    assert isinstance(caught.value, ImageError)
    assert open_volume(tmp_path / "two.nii", form="sform").space.orientation == "RAS"
    record = Record(tmp_path / "two.nii", form="qform")
    assert record.view().space.orientation == "LAS"
    assert (
        record.open().to_dask().name
        != open_volume(tmp_path / "two.nii", form="sform").to_dask().name
    )
    given = open_volume(tmp_path / "two.nii", form="qform")
    assert images_of(given)[0].record.options["form"] == "qform"
    with pytest.raises(UsageError, match="form is 'sform' or 'qform'"):
        open_volume(tmp_path / "two.nii", form="best")
    shifted = affine()
    shifted[0, 3] += 0.005  # less than a hundredth of a voxel
    image.set_sform(shifted, 1)
    image.set_qform(affine(), 1)
    image.to_filename(tmp_path / "near.nii")
    assert open_volume(tmp_path / "near.nii").space is not None
    one = save(tmp_path / "one.nii", sform_code=0, qform_code=1)
    assert open_volume(one).properties["nifti.form"] == "qform"
    with pytest.raises(UsageError, match="no sform"):
        open_volume(one, form="sform")


def test_a_qform_is_as_exact_as_single_precision(tmp_path):
    """Files that nibabel writes from one affine do not contradict themselves."""
    turned = np.diag([-1.0, 1, 1, 1])
    turned[:3, :3] = nib.eulerangles.euler2mat(0.052, 0.003, 0.086) @ turned[:3, :3]
    image = nib.Nifti1Image(np.zeros((4, 4, 300), np.uint8), turned)
    image.set_sform(turned, 1)
    image.set_qform(turned, 1)
    image.to_filename(tmp_path / "turned.nii")
    again = nib.load(tmp_path / "turned.nii").header
    far = np.array([0, 0, 299, 1])
    assert np.abs((again.get_sform() - again.get_qform()) @ far).max() > 0.01
    assert open_volume(tmp_path / "turned.nii").properties["nifti.form"] == "sform"
    image.set_qform(np.diag([-1.0, 1, 1, 1]), 1)  # of another place
    image.to_filename(tmp_path / "other.nii")
    with pytest.raises(SpaceError):
        open_volume(tmp_path / "other.nii")


def test_what_files_without_a_place_mean(tmp_path):
    bare = open_volume(save(tmp_path / "bare.nii", sform_code=0, qform_code=0))
    assert (bare.space, bare.spacing) == (None, pytest.approx((3, 1.5, 1)))
    zeros = {f"srow_{axis}": np.zeros(4) for axis in "xyz"}
    zero = open_volume(save(tmp_path / "zero.nii", **zeros, qform_code=0))
    assert (zero.space, zero.spacing) == (None, pytest.approx((3, 1.5, 1)))
    lost = open_volume(save(tmp_path / "lost.nii", sform_code=0, qform_code=0, pixdim=np.nan))
    assert (lost.space, lost.spacing) == (None, None)
    known = Space(affine()[:, [2, 1, 0, 3]], VALUES.T.shape)
    assert Record(tmp_path / "lost.nii", space=known).view(orientation="LPS").space is not None
    # the sform says it all
    assert open_volume(save(tmp_path / "odd.nii", pixdim=np.nan)).space.isclose(known, 1e-4)


HUGE = [3, 32767, 32767, 32767, 1, 1, 1, 1]
BAD = {
    "extent": ({"dim": [3, -5, 10, 6, 1, 1, 1, 1]}, "dim is .*-5"),
    "no-axes": ({"dim": [0, 14, 10, 6, 1, 1, 1, 1]}, "number of axes"),
    "too-many": ({"dim": [9, 14, 10, 6, 1, 1, 1, 1]}, "number of axes"),
    "huge": ({"dim": HUGE}, "70362301923678"),
    "datatype": ({"datatype": 32}, "datatype 32"),
    "offset": ({"vox_offset": 100}, "vox_offset is 100"),
    "offset-nan": ({"vox_offset": np.nan}, "vox_offset is nan"),
    "slope": ({"scl_slope": np.inf}, "scl_slope is inf"),
    "inter": ({"scl_slope": 1, "scl_inter": np.nan}, "scl_inter nan"),
    "pixdim": ({"sform_code": 0, "qform_code": 1, "pixdim": np.nan}, "pixdim is .nan"),
    "sform": ({"srow_x": [np.nan, 0, 0, 0], "qform_code": 0}, "sform says nothing"),
    "flat-sform": ({"srow_x": [0, 0, 0, 0], "qform_code": 0}, "(?s)sform says nothing.*qform"),
    "quaternion": ({"sform_code": 0, "qform_code": 1, "quatern_b": 9}, "qform says nothing"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", BAD)
def test_headers_that_cannot_be_true(tmp_path, name, suffix):
    fields, message = BAD[name]
    path = save(tmp_path / f"bad{suffix}", **fields)
    tracemalloc.start()
    try:
        with pytest.raises((CorruptImageError, UnsupportedImageError), match=message) as caught:
            open_volume(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 20e6


def test_files_that_are_not_nifti(tmp_path):
    save(tmp_path / "scan.nii")
    whole = (tmp_path / "scan.nii").read_bytes()
    contents = {
        "cut.nii": whole[:-1],
        "head.nii": whole[:300],
        "text.nii": b"hello" * 200,
        "text.nii.gz": b"hello" * 200,
        "short.nii.gz": gzip.compress(b"hello"),
        "cut.nii.gz": gzip.compress(whole)[:20],
        "analyze.nii": whole[:344] + bytes(4) + whole[348:],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((CorruptImageError, UnsupportedImageError), match=name):
            open_volume(tmp_path / name)
    with pytest.raises(DaskdmedError, match=r"dataset='x' means nothing"):
        open_volume(tmp_path / "scan.nii", dataset="x")


def test_extensions_lie_before_the_voxels(tmp_path):
    image = nib.Nifti1Image(VALUES, affine())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a" * 1000))
    for suffix in (".nii", ".nii.gz"):
        image.to_filename(tmp_path / f"more{suffix}")
        np.testing.assert_array_equal(
            open_volume(tmp_path / f"more{suffix}").to_dask().compute(), VALUES.T
        )


def test_without_nibabel(tmp_path, monkeypatch):
    path = save(tmp_path / "scan.nii.gz")
    monkeypatch.setitem(sys.modules, "nibabel.nifti1", None)
    with pytest.raises(DaskdmedError, match=r"pip install 'daskdmed\[volumes\]'"):
        open_volume(path)


class TestNifti(BackendConformance):
    backend = get_backend("nifti")

    def make(self, tmp_path):
        return str(save(tmp_path / "scan.nii")), [VALUES.T[..., None]]


class TestInMemory(TestNifti):
    def make(self, tmp_path):
        return str(save(tmp_path / "scan.nii.gz")), [VALUES.T[..., None]]


class TestConverted(TestInMemory):
    @pytest.fixture(autouse=True)
    def _never_in_memory(self):
        with dask.config.set({"daskdmed.images.decoded-limit": 0}):
            yield

    def test_rows_are_tiles(self, reader):
        assert reader.info.levels[0].tile_shape == (1, 1, 14)
        assert reader.read(0, Region.of((1, 1, 1))).shape == (1, 1, 1, 1)
