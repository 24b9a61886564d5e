"""Results of volumes as NIfTI in the file's own space. nibabel reads them back."""

from __future__ import annotations

import gzip
import itertools

import dask.array as da
import nibabel
import nibabel.processing
import numpy as np
import pytest
from scipy import ndimage

from daskdmed import Patient, Record, Space, export_volume, heatmap, open_volume, predict
from daskdmed.errors import GeometryError, StoreError, UsageError
from daskdmed.store.export import volumes

TURN = nibabel.eulerangles.euler2mat(0.2, -0.1, 0.3)


def identity(windows):
    return windows


def affine_of(orientation, *, oblique=False):
    """x first, as nibabel has it: voxels of 1 x 1.5 x 2 mm along the axes named."""
    order = [("RL", "AP", "SI").index(pair) for pair in map(_pair, orientation)]
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for axis, (world, letter) in enumerate(zip(order, orientation, strict=True)):
        matrix[world, axis] = (1.0, 1.5, 2.0)[axis] * (1 if letter in "RAS" else -1)
    if oblique:
        matrix[:3, :3] = TURN @ matrix[:3, :3]
    matrix[:3, 3] = (31.5, -20.25, 7.0)
    return matrix.astype(np.float32).astype(np.float64)


def _pair(letter):
    return next(pair for pair in ("RL", "AP", "SI") if letter in pair)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """(values in the order of arrays, affine) -> a file of a volume there, and its image."""
    folder, count = tmp_path_factory.mktemp("files"), itertools.count()

    def make(values, affine, **facts):
        path = folder / f"{next(count)}.npy"
        np.save(path, values)
        space = Space(affine[:, [2, 1, 0, 3]], values.shape[:3])
        return Record(path, space=space, **facts)

    return make


@pytest.mark.parametrize(
    ("stored", "seen", "oblique"),
    [("LAS", None, False), ("LAS", "RAS", True), ("PIR", "RAS", False), ("SRA", "IPL", True)],
)
def test_what_was_turned_comes_back_to_the_voxel(record, tmp_path, stored, seen, oblique):
    affine = affine_of(stored, oblique=oblique)
    # their sums are exact
    values = (np.random.default_rng(1).integers(0, 999, (12, 11, 10)) / 8).astype(np.float32)
    image = record(values, affine)
    found = predict(image.view(orientation=seen), identity, kernel_size=(8, 8, 8), blend="constant")
    path = export_volume(found, tmp_path / "x.nii", like=image)
    back = nibabel.load(path)
    np.testing.assert_array_equal(back.get_fdata().T, values)
    np.testing.assert_array_equal(back.affine, affine)
    assert back.get_data_dtype() == np.float32
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(back.get_qform(), affine, atol=1e-5)
    assert back.header.get_xyzt_units()[0] == "mm"


def blobs(shape=(24, 22, 20)):
    """Labels 0, 3 and 200, not symmetric in any axis."""
    grid = np.indices(shape)
    values = np.zeros(shape, np.int16)
    for label, middle, radius in ((3, (8, 8, 7), 6), (200, (16, 12, 13), 5)):
        far = sum((g - m) ** 2 for g, m in zip(grid, middle, strict=True))
        values[far < radius**2] = label
    return values


@pytest.mark.parametrize("spacing", [(1.0, 0.75, 0.5), (3.0, 2.5, 1.7)])
def test_labels_seen_at_another_spacing_come_back_to_their_place(record, tmp_path, spacing):
    affine = affine_of("PIR", oblique=True)
    image = record(blobs(), affine)
    view = image.view(spacing=spacing, orientation="RAS").as_labels()
    seen = view.read(whole(view))
    path = export_volume(
        da.from_array(seen, chunks=7), tmp_path / "x.nii.gz", like=image, space=view.space
    )
    back = nibabel.load(path)
    found = np.asarray(back.dataobj).T
    assert found.dtype == np.uint8  # the smallest that holds 200
    assert set(np.unique(found)) <= {0, 3, 200}
    assert back.header.get_intent()[0] == "label"
    # nibabel's nearest neighbour, where a voxel and those around it are of one class
    coarse = nibabel.Nifti1Image(seen.T.astype(np.int16), view.space.affine[:, [2, 1, 0, 3]])
    other = nibabel.processing.resample_from_to(coarse, back, order=0, mode="nearest")
    other = np.asarray(other.dataobj).T
    sure = ndimage.minimum_filter(other, 7) == ndimage.maximum_filter(other, 7)
    assert 0.2 < sure.mean() < 1
    np.testing.assert_array_equal(found[sure], other[sure])
    truth = blobs()
    for label in (3, 200):
        both = np.count_nonzero((found == label) & (truth == label))
        assert 2 * both / (np.sum(found == label) + np.sum(truth == label)) > 0.85


def whole(view):
    from daskdmed import Region

    return Region.of(view.spatial_shape)


def test_values_seen_at_another_spacing_are_interpolated(record, tmp_path):
    affine = affine_of("LAS")
    z, y, x = np.indices((16, 12, 14)).astype(np.float32)
    image = record(2 * z + y - 0.5 * x, affine)
    view = image.view(spacing=(4.0, 3.0, 1.0))
    found = predict(view, identity, kernel_size=(8, 6, 14))
    back = nibabel.load(export_volume(found, tmp_path / "x.nii", like=image))
    # a plane stays one, but where the outermost voxels have no neighbour
    inner = (slice(2, -2), slice(2, -2), slice(2, -2))
    wanted = (2 * z + y - 0.5 * x)[inner]
    np.testing.assert_allclose(back.get_fdata().T[inner], wanted, atol=1e-4)
    np.testing.assert_array_equal(back.affine, affine)


def test_channels_become_the_fourth_dimension(record, tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, "_SLAB_BYTES", 5000)  # a few rows at a time
    values = np.random.default_rng(2).random((9, 8, 7)).astype(np.float32)
    image = record(values, affine_of("PIR"))
    found = predict(
        image.view(orientation="LPS"),
        lambda w: np.stack([w, 2 * w, -w], 1),
        kernel_size=(4, 4, 4),
        out=tmp_path / "x.zarr",
    )
    assert found.shape[0] == 3
    paths = [tmp_path / "x.nii", tmp_path / "x.nii.gz"]
    for path in paths:
        export_volume(tmp_path / "x.zarr", path, like=Patient("p", {"image": image}))
        back = nibabel.load(path)
        assert back.shape == (7, 8, 9, 3)
        wanted = np.stack([values, 2 * values, -values], -1).transpose(2, 1, 0, 3)
        np.testing.assert_allclose(back.get_fdata(), wanted, atol=1e-5)
    assert gzip.decompress(paths[1].read_bytes()) == paths[0].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nii", "x.nii.gz", "x.zarr"]


def test_slabs_are_small(record, tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, "_SLAB_BYTES", 4 * 20 * 20 * 4)
    largest = []
    read = volumes.VolumeView.read

    def spied(self, region, out=None):
        largest.append(region.size)
        return read(self, region, out)

    monkeypatch.setattr(volumes.VolumeView, "read", spied)
    values = np.random.default_rng(0).integers(0, 9, (40, 20, 20)).astype(np.uint8)
    image = record(values, affine_of("RAS"))
    largest.clear()
    export_volume(values, tmp_path / "x.nii", like=image, space=image.space)
    assert max(largest) <= 4 * 20 * 20
    assert sum(largest) == values.size
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "x.nii").dataobj).T, values)


def test_results_are_read_chunk_by_chunk(record):
    image = record(np.ones((8, 8, 8), np.float32), affine_of("RAS"))
    found = predict(image.view(), identity, kernel_size=(4, 4, 4), chunks=4)
    assert found.numblocks == (1, 1, 1)
    assert volumes._placed(found, None)[0].tile_shape == (4, 4, 4)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1], np.uint8),
        ([-1, 5], np.int8),
        ([0, 300], np.uint16),
        ([-2, 300], np.int16),
        ([0, 2**31], np.uint32),
        ([-1, 2**31], np.int64),
    ],
)
def test_labels_have_the_smallest_type(record, tmp_path, values, dtype):
    array = np.resize(np.array(values, np.int64), (2, 2, 2))
    image = record(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    back = nibabel.load(export_volume(array, tmp_path / "x.nii", like=image, space=image.space))
    assert back.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(back.dataobj).T, array)


def test_quantised_probabilities_are_no_labels(record, tmp_path):
    image = record(np.linspace(0, 1, 8 * 8 * 8, dtype=np.float32).reshape(8, 8, 8), np.eye(4))
    view = image.view(spacing=(2, 2, 2))
    found = predict(view, identity, kernel_size=(4, 4, 4), post="uint8")
    back = nibabel.load(export_volume(found, tmp_path / "x.nii", like=image))
    assert back.get_data_dtype() == np.uint8
    assert back.header.get_intent()[0] == "none"
    # between two cells there are values of neither
    assert not set(np.unique(back.get_fdata())) <= set(np.unique(found.compute()))


def test_sheared_axes_have_no_qform(record, tmp_path):
    affine = affine_of("LAS")
    affine[1, 2] = 0.7  # a tilted gantry
    values = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
    image = record(values, affine)
    found = predict(image.view(orientation="RPI"), identity, kernel_size=(4, 4, 4))
    back = nibabel.load(export_volume(found, tmp_path / "x.nii", like=image))
    assert int(back.header["qform_code"]) == 0
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)
    np.testing.assert_allclose(back.get_fdata().T, values, atol=1e-4)


def test_a_qform_that_would_contradict_is_left_out(record, tmp_path):
    """Of some small rotations of LAS the quaternion's fourth number is lost in single precision."""
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = nibabel.eulerangles.euler2mat(0.052, 0.003, 0.086) @ affine[:3, :3]
    affine = affine.astype(np.float32).astype(np.float64)
    shape = (300, 4, 4)
    image = record(np.zeros(shape, np.uint8), affine)
    path = export_volume(np.ones(shape), tmp_path / "x.nii", like=image, space=image.space)
    back = nibabel.load(path)
    rebuilt = Space(back.header.get_qform()[:, [2, 1, 0, 3]], shape)
    assert not rebuilt.isclose(image.space)
    assert int(back.header["qform_code"]) == 0
    np.testing.assert_array_equal(back.affine, affine)
    assert open_volume(path).space.isclose(image.space)


def test_borders_that_no_cell_is_near_are_nan(record, tmp_path):
    image = record(np.ones((12, 12, 12), np.float32), np.eye(4))
    found = heatmap(
        image.view(), lambda w: w.mean((1, 2, 3)), kernel_size=(6, 6, 6), stride=2, edge="drop"
    )
    values = nibabel.load(export_volume(found, tmp_path / "x.nii", like=image)).get_fdata()
    # cells of 2 voxels cover 2 to 10, and half of one beyond
    inside = np.zeros(values.shape, bool)
    inside[1:11, 1:11, 1:11] = True
    np.testing.assert_array_equal(np.isfinite(values), inside)
    np.testing.assert_allclose(values[inside], 1)


def test_arithmetic_keeps_the_place_and_turning_does_not(record, tmp_path):
    values = np.random.default_rng(3).random((8, 8, 8)).astype(np.float32)
    image = record(values, affine_of("LAS"))
    found = predict(image.view(), identity, kernel_size=(8, 8, 8))
    back = nibabel.load(export_volume(found > 0.5, tmp_path / "x.nii.gz", like=image))
    np.testing.assert_array_equal(np.asarray(back.dataobj).T, values > 0.5)
    for turned in (found[::-1], found.transpose(2, 1, 0), found[:, ::-1]):
        with pytest.raises(UsageError, match="cut, turned or reduced"):
            export_volume(turned, tmp_path / "y.nii", like=image)


def test_what_cannot_be_exported_says_why(record, tmp_path):
    image = record(np.ones((8, 8, 8), np.float32), affine_of("LAS"))
    found = predict(image.view(), identity, kernel_size=(8, 8, 8))
    bare = Record(array=np.ones((8, 8, 8), np.float32), spacing=1.0)
    plain = predict(bare.view(spatial_ndim=3), identity, kernel_size=(8, 8, 8))
    oblique = record(np.ones((8, 8, 8), np.float32), affine_of("LAS", oblique=True))
    far = affine_of("LAS")
    far[:3, 3] += 500
    elsewhere = record(np.ones((8, 8, 8), np.float32), far)
    out = tmp_path / "x.nii"
    for result, arguments, error, match in (
        (found, {"like": bare}, GeometryError, "does not say how it lies"),
        (plain, {"like": image}, UsageError, "does not say where it lies"),
        (np.ones((8, 8, 8)), {"like": image}, UsageError, "give space="),
        (np.ones((8, 8)), {"like": image, "space": image.space}, GeometryError, "a volume is"),
        (found, {"like": oblique}, GeometryError, "obliquely"),
        (found, {"like": elsewhere}, GeometryError, "lies elsewhere"),
        (found.astype(complex), {"like": image}, UsageError, "real numbers"),
    ):
        with pytest.raises(error, match=match):
            export_volume(result, out, **arguments)
    with pytest.raises(UsageError, match=r"\*\.nii"):
        export_volume(found, tmp_path / "x.img", like=image)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays_until_the_new_one_is_complete(record, tmp_path, monkeypatch):
    image = record(np.ones((8, 8, 8), np.float32), affine_of("LAS"))
    found = predict(image.view(), identity, kernel_size=(8, 8, 8))
    path = export_volume(found, tmp_path / "x.nii", like=image)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="overwrite=True"):
        export_volume(found, path, like=image)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(volumes, "_fill", full)
        with pytest.raises(StoreError, match="disk is full"):
            export_volume(found * 2, path, like=image, overwrite=True)
    assert path.read_bytes() == before
    export_volume(found * 2, path, like=image, overwrite=True)
    assert nibabel.load(path).get_fdata().max() == 2
    assert [p.name for p in tmp_path.iterdir()] == ["x.nii"]


@pytest.mark.parametrize("seen", [{"orientation": "RAS"}, {"orientation": "PIR"}])
def test_a_file_of_a_scan_comes_back_as_it_was(tmp_path, seen):
    """Codes of sform and qform too."""
    affine = affine_of("LAS", oblique=True)
    values = np.random.default_rng(4).integers(0, 99, (10, 11, 12)).astype(np.int16)
    scan = nibabel.Nifti1Image(values, affine)
    scan.set_sform(affine, code="mni")
    scan.set_qform(affine, code="aligned")
    path = tmp_path / "scan.nii.gz"
    nibabel.save(scan, path)
    found = predict(
        path, lambda w: w.astype(np.float32), kernel_size=(8, 8, 8), blend="constant", **seen
    )
    back = nibabel.load(export_volume(found, tmp_path / "x.nii", like=path))
    np.testing.assert_array_equal(back.affine, nibabel.load(path).affine)
    np.testing.assert_allclose(back.get_fdata(), values, rtol=1e-6)
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (4, 2)
    np.testing.assert_allclose(back.get_qform(), affine, atol=1e-4)


def test_a_stored_result_is_a_volume_where_it_lies(record, tmp_path):
    image = record(np.ones((8, 8, 8), np.float32), affine_of("LAS", oblique=True))
    view = image.view(orientation="RAS", spacing=(4.0, 3.0, 2.0))
    predict(view, identity, kernel_size=(4, 4, 4), out=tmp_path / "x.zarr")
    assert open_volume(tmp_path / "x.zarr").space.isclose(view.space, 1e-6)
