"""Arrays as images: byte order, spacing, background, names of what is wrapped."""

from __future__ import annotations

import pickle
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
from dask.task_spec import Task
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL, predict, read_annotations
from daskdmed.core.region import Region
from daskdmed.errors import DatasetError, GeometryError, ResolutionError, UsageError
from daskdmed.images.arrayview import ArrayView

VALUES = np.arange(20 * 24, dtype=np.int32).reshape(20, 24)


def dataset(array, **options):
    return Dataset("d", [Patient("p", {"ct": Record(array=array, **options)})])


@pytest.mark.parametrize("kind", [">i2", ">u2", ">f4"])
def test_big_endian_arrays_are_read_in_the_order_of_the_machine(kind):
    array = (VALUES * 3).astype(kind)
    view = Record(array=array).view()
    assert view.dtype == array.dtype.newbyteorder("=")
    assert view.dtype.isnative
    got = view.read(Region((3, 2), (5, 7)))
    np.testing.assert_array_equal(got, array[3:8, 2:9])
    assert got.dtype.isnative


def test_both_loaders_give_big_endian_values_right():
    array = (VALUES * 3).astype(">i2")
    with SlidingWindowDL(dataset(array), kernel_size=(10, 12), batch_size=4) as loader:
        ((x, _, windows),) = list(loader)
        for pixels, window in zip(x[:, 0], windows, strict=True):
            across, down = window.location
            np.testing.assert_array_equal(pixels, array[down : down + 10, across : across + 12])
    options = {"smallchunk_size": 8, "batch_size": 4, "epoch_length": 8, "resident": "1 MiB"}
    with LightDL(dataset(array), **options) as loader:
        for x, _, chunks in loader:
            for pixels, chunk in zip(x[:, 0], chunks, strict=True):
                across, down = chunk.location
                np.testing.assert_array_equal(pixels, array[down : down + 8, across : across + 8])


def test_spacing_is_that_of_the_record():
    volume = np.zeros((4, 5, 6), np.float32)
    view = Record(array=volume, spacing=(3, 0.5, 0.25)).view()
    assert view.spatial_ndim == 3, "as many axes as the spacing has numbers"
    assert view.spacing == (3.0, 0.5, 0.25)
    assert view.mpp is None
    assert Record(array=volume, spacing=2, spatial_ndim=3).view().spacing == (2.0, 2.0, 2.0)
    plane = Record(array=volume[0], spacing=(0.001, 0.0005))
    assert plane.view().mpp == pytest.approx((0.5, 1.0))
    assert plane.view().spacing == (0.001, 0.0005)
    assert plane.view(mpp=(0.5, 1.0)).shape == (5, 6)
    assert Record(array=volume).view(spatial_ndim=3).spacing is None
    assert Record(array=volume, spacing=2) != Record(array=volume, spacing=3)
    renamed = Patient("p", {"ct": Record(array=volume, spacing=2)}).records["ct"]
    assert (renamed.name, renamed.spacing) == ("ct", (2.0,))


def test_a_spacing_that_cannot_be_meant_is_refused():
    volume = np.zeros((4, 5, 6), np.float32)
    for spacing in (0, (1, -1, 1), "wide", (), np.nan):
        with pytest.raises(ResolutionError, match="positive numbers"):
            Record(array=volume, spacing=spacing)
    with pytest.raises(ResolutionError, match="give one"):
        Record(array=volume[0], spacing=1, mpp=0.5)
    one = {"spacing": 1}
    with pytest.raises(DatasetError, match="spacing mean nothing beside annotations="):
        Record(
            annotations=read_annotations(b'{"type": "FeatureCollection", "features": []}'), **one
        )
    with pytest.raises(GeometryError, match="3 positive numbers"):
        ArrayView(da.from_array(volume), 3, spacing=(1, 2))


@pytest.mark.parametrize(
    ("dtype", "channels", "expected"),
    [("u1", (3,), 255), ("u1", (), 0), ("u2", (3,), 0), ("f4", (), 0), ("?", (), 0)],
)
def test_what_lies_outside_when_nobody_says(dtype, channels, expected):
    view = Record(array=np.zeros((5, 6, *channels), dtype)).view()
    out = view.read_padded(Region((4, 4), (2, 3)))
    assert (out[1] == expected).all()
    assert (out[:, 2] == expected).all()


def test_signed_integers_are_padded_with_what_was_given_and_with_nothing_else():
    ct = np.full((3, 8, 8), 40, np.int16)
    outside = Region((2, 0, 0), (3, 8, 8))
    view = Record(array=ct).view(spatial_ndim=3)
    np.testing.assert_array_equal(view.read_padded(Region.of((3, 8, 8))), ct)
    with pytest.raises(UsageError, match=r"background=-1024.*or avoid padding"):
        view.read_padded(outside)
    air = Record(array=ct, background=-1024).view(spatial_ndim=3)
    got = air.read_padded(outside)
    assert (got[0] == 40).all()
    assert (got[1:] == -1024).all()
    assert air.token != view.token
    options = {"smallchunk_size": (5, 8, 8), "batch_size": 1, "epoch_length": 1, "pad": True}
    with LightDL(dataset(ct, background=-1024), **options) as loader:
        ((x, _, _),) = list(loader)
    assert (x[0, 0, 3:] == -1024).all()
    assert (x[0, 0, :3] == 40).all()


def test_backgrounds_have_the_channels_and_the_type_of_the_image():
    image = da.zeros((4, 4, 3), dtype=np.int16)
    assert ArrayView(image, 2, background=(1, 2, 3)).background.tolist() == [1, 2, 3]
    assert ArrayView(image, 2, background=-7).background.tolist() == [-7, -7, -7]
    assert ArrayView(da.zeros((4, 4)), 2, background=np.nan).background.shape == ()
    for wrong in ((1, 2), 40_000, 0.5, "air"):
        with pytest.raises(UsageError, match="is not one int16, or one per channel"):
            ArrayView(image, 2, background=wrong)


def test_outside_a_map_of_labels_there_is_no_label():
    labels = Record(array=np.ones((4, 4), np.int64)).view()
    assert labels.as_labels().read_padded(Region((3, 3), (2, 2))).tolist() == [[1, 0], [0, 0]]
    other = Record(array=np.ones((4, 4), np.int64), background=-1).view()
    assert other.as_labels() is other


class TestHDF5:
    """Datasets of HDF5 files."""

    @pytest.fixture
    def path(self, tmp_path):
        h5py = pytest.importorskip("h5py")
        path = tmp_path / "scan.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("volume", data=np.arange(6000.0).reshape(20, 20, 15), chunks=True)
            file["mask"] = np.zeros((20, 20, 15), np.uint8)
        return path

    def record(self, path, name="volume"):
        import h5py

        with h5py.File(path) as file:
            return Record(array=file[name], spatial_ndim=3)

    def test_they_are_read_after_their_file_was_closed_and_have_one_name(self, path):
        record = self.record(path)
        twin = pickle.loads(pickle.dumps(self.record(path)))
        assert record.key == twin.key
        assert record.key != self.record(path, "mask").key
        region = Region((3, 4, 5), (6, 7, 8))
        expected = np.arange(6000.0).reshape(20, 20, 15)[region.slices]
        np.testing.assert_array_equal(twin.view().read(region), expected)
        script = (
            "import h5py, sys; from daskdmed import Record; "
            "print(Record(array=h5py.File(sys.argv[1])['volume']).key)"
        )
        command = [sys.executable, "-c", script, str(path)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == record.key

    def test_a_prediction_of_one_is_resumed(self, path, tmp_path):
        options = {"kernel_size": (10, 10, 15), "out": tmp_path / "y.zarr"}
        first = predict(self.record(path), lambda w: w, **options).compute()
        again = predict(self.record(path), lambda w: w, **options, resume=True).compute()
        np.testing.assert_array_equal(first, again)


@settings(max_examples=60)
@given(st.data())
def test_blocks_in_memory_are_copied_from_without_a_graph(data):
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 2, st.integers(1, 3)))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape[:2])
    values = np.arange(np.prod(shape), dtype="i4").reshape(shape)
    view = ArrayView(da.from_array(values, chunks=(*chunks, shape[2])), 2)
    first = tuple(data.draw(st.integers(0, n)) for n in shape[:2])
    extent = tuple(data.draw(st.integers(0, n - a)) for n, a in zip(shape, first, strict=False))
    region = Region(first, extent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayView, "_compute", None)
        found = view.read(region)
        np.testing.assert_array_equal(found, values[region.slices])
        found[:] = -1  # it is nobody else's
        np.testing.assert_array_equal(view.read(region), values[region.slices])


def test_a_region_of_one_block_needs_no_graph(monkeypatch):
    calls = []

    def block(number):
        calls.append(number)
        return np.full((1, 6, 8), number)

    graph = {("s", i, 0, 0): Task(("s", i, 0, 0), block, i) for i in range(5)}
    slices = da.Array(graph, "s", ((1,) * 5, (6,), (8,)), dtype=int)
    held = np.arange(60).reshape(3, 4, 5)
    monkeypatch.setattr(da.Array, "compute", None)  # of a region of more than one it is needed
    view = ArrayView(slices, 3)
    region = Region((3, 1, 2), (1, 4, 5))
    np.testing.assert_array_equal(view.read(region), np.full((1, 4, 5), 3))
    assert calls == [3]
    whole = ArrayView(da.from_array(held, chunks=-1), 3)
    found = whole.read(Region.of(held.shape))
    found[:] = 0  # it is nobody else's
    np.testing.assert_array_equal(whole.read(Region((1, 1, 1), (2, 2, 2))), held[1:, 1:3, 1:3])
    with pytest.raises(TypeError, match="not callable"):
        view.read(Region((3, 1, 2), (2, 4, 5)))
    monkeypatch.undo()
    np.testing.assert_array_equal(view.narrowed(region).read(region), np.full((1, 4, 5), 3))
    np.testing.assert_array_equal(view.read(Region((3, 1, 2), (2, 4, 5)))[:, 0, 0], [3, 4])
    # what is computed from other blocks, and regions without extent, go the other way
    twice = ArrayView(slices * 2, 3)
    assert twice.read(Region((4, 0, 0), (1, 1, 1))).item() == 8
    assert view.read(Region((1, 0, 0), (0, 6, 8))).shape == (0, 6, 8)
