"""Rows of windows become the map that `heatmap` makes: every row in its cell, holes stay."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import daskdmed
from daskdmed import heatmap
from daskdmed.cohort.dataset import Dataset
from daskdmed.cohort.patient import Patient
from daskdmed.cohort.record import Record
from daskdmed.errors import GeometryError, StoreError, UsageError
from daskdmed.samples import make_slide
from daskdmed.store.results.finished import open_heatmap
from daskdmed.tables.raster import windows_to_heatmap
from daskdmed.tables.rows import WindowTable, axes_of, row_columns
from daskdmed.tiling.grid import WindowGrid
from daskdmed.tiling.imagegrid import ImageGrid


def table_of(image, indices, values):
    """Rows of the given windows of a grid."""
    indices = np.asarray(indices, np.int64).reshape(-1, image.grid.ndim)
    n, axes = len(indices), axes_of(image.grid.ndim)
    columns = {name: np.zeros(n, kind) for name, kind in row_columns(image.grid.ndim).items()}
    columns["patient"] = np.array([image.patient] * n, object)
    columns["record"] = np.array([image.record] * n, object)
    for axis, name in enumerate(axes):
        origins = np.array([image.grid.axis_origin(axis, int(i)) for i in indices[:, axis]], int)
        columns[f"index_{name}"] = indices[:, axis]
        columns[f"origin_{name}"] = origins
        columns[name] = np.rint(origins * image.downsample[axis]).astype(np.int64)
        columns[f"kernel_{name}"][:] = image.grid.kernel_size[axis]
        columns[f"stride_{name}"][:] = image.grid.stride[axis]
        columns[f"downsample_{name}"][:] = image.downsample[axis]
    return WindowTable(columns, values, (image,))


@settings(max_examples=40)
@given(st.data())
def test_any_rows_in_any_order(data):
    ndim = data.draw(st.integers(1, 3))
    shape = tuple(data.draw(st.integers(4, 20)) for _ in range(ndim))
    kernel = tuple(data.draw(st.integers(1, 4)) for _ in range(ndim))
    stride = tuple(data.draw(st.integers(1, 5)) for _ in range(ndim))
    edge = data.draw(st.sampled_from(["pad", "shift", "drop"]))
    grid = WindowGrid.of(shape, kernel, stride=stride, edge=edge)
    image = ImageGrid("p", "r", grid, (2.0,) * ndim)
    cells = [index for index, _ in grid]
    picked = data.draw(st.lists(st.sampled_from(cells), unique=True)) if cells else []
    value_shape = data.draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    rng = np.random.default_rng(0)
    values = rng.random((len(picked), *value_shape)).astype(np.float32)
    block = data.draw(st.integers(1, 6))
    found = windows_to_heatmap(table_of(image, picked, values), block_windows=block).compute()
    k = int(np.prod(value_shape)) if value_shape else 0
    expected = np.full((max(k, 1), *grid.counts), np.nan, np.float32)
    for index, value in zip(picked, values):
        expected[(slice(None), *index)] = value.reshape(-1) if k else value
    np.testing.assert_array_equal(found, expected if k else expected[0])


def score(windows):
    return windows.mean(axis=(1, 2, 3), dtype=np.float32)


def pair(windows):
    return np.stack([score(windows), windows[:, 0, 0, 1].astype(np.float32)], 1)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return make_slide(tmp_path_factory.mktemp("s") / "s.tif", (900, 700), tile=128, levels=2)


@pytest.mark.parametrize("model", [score, pair])
@pytest.mark.parametrize("edge", ["pad", "shift"])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_stream_gives_the_heatmap(slide, tmp_path, model, edge, suffix):
    torch = pytest.importorskip("torch")
    pytest.importorskip("pyarrow")
    dataset = Dataset("d", [Patient("one", {"he": Record(slide.path)})])
    mask = np.ones((7, 9), bool)
    mask[2:4, 3:6] = False
    arguments = {"kernel_size": 40, "stride": 30, "edge": edge}

    def process(batch):
        windows = np.moveaxis(batch[0].numpy(), 1, -1)
        return torch.from_numpy(model(windows))

    with daskdmed.SlidingWindowDL(dataset, mask=mask, **arguments) as loader:
        writer = daskdmed.tables.StreamWriter(tmp_path / "rows", format=suffix)
        daskdmed.tables.run_stream(loader, process, writer)
    out = tmp_path / "map.zarr"
    found = windows_to_heatmap(tmp_path / "rows", out, patient="one")
    expected = heatmap(slide.path, model, mask=mask, out=tmp_path / "h.zarr", **arguments)
    np.testing.assert_allclose(found.compute(), expected.compute(), rtol=1e-6)
    assert np.isnan(found).any().compute()
    here, there = open_heatmap(out), open_heatmap(tmp_path / "h.zarr")
    assert here.georeference == there.georeference
    assert (here.shape0, here.edge) == (there.shape0, there.edge)
    ome = [zarr.open_group(p)["0"].attrs.asdict() for p in (out, tmp_path / "h.zarr")]
    assert ome[0] == ome[1]


IMAGE = ImageGrid("p", "r", WindowGrid.of((40, 60), 10), (1.0, 1.0), mpp=(0.5, 0.5))


def rows(n=24, **changes):
    indices = [(i // 6, i % 6) for i in range(n)]
    table = table_of(IMAGE, indices, np.arange(n, dtype=np.float32))
    for name, value in changes.items():
        table.columns[name][3] = value
    return table


def test_data_frames():
    pytest.importorskip("pandas")
    frame = rows().to_pandas().sample(frac=0.5, random_state=0)
    found = windows_to_heatmap(frame, image=IMAGE).compute()
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    known = np.isfinite(found)
    assert known.sum() == 12
    np.testing.assert_array_equal(found[known], whole[known])
    with pytest.raises(UsageError, match="lacks"):
        windows_to_heatmap(frame.drop(columns=["origin_y"]), image=IMAGE)
    with pytest.raises(UsageError, match="0 images"):
        windows_to_heatmap(frame)


def test_wrong_rows_are_refused():
    twice = WindowTable.concatenate([rows(), rows(2)])
    with pytest.raises(GeometryError, match=r"2 windows have several rows.*\(0, 0\), \(0, 1\)"):
        windows_to_heatmap(twice)
    for changes, match in (
        ({"index_y": 4}, r"\(4, 3\).*outside the grid of \(4, 6\)"),
        ({"index_y": -1}, "crops without a grid"),
        ({"origin_x": 31}, "origin_x is not that of p/r"),
        ({"kernel_y": 11}, "kernel_y is not"),
        ({"stride_x": 5}, "stride_x is not"),
    ):
        with pytest.raises(GeometryError, match=match):
            windows_to_heatmap(rows(**changes))
    line = ImageGrid("p", "r", WindowGrid.of((40,), 10), (1.0,))
    with pytest.raises(GeometryError, match="over 2 axes, a grid over 1"):
        windows_to_heatmap(rows(), image=line)


def test_wrong_arguments(tmp_path):
    with pytest.raises(UsageError, match="dtype"):
        windows_to_heatmap(rows(), dtype="int8")
    with pytest.raises(UsageError, match="got int"):
        windows_to_heatmap(3)
    with pytest.raises(GeometryError, match="block_windows"):
        windows_to_heatmap(rows(), block_windows=0)
    with pytest.raises(UsageError, match="0 images"):
        windows_to_heatmap(rows(), patient="other")
    texts = table_of(IMAGE, [(0, 0)], np.array(["high"]))
    with pytest.raises(UsageError, match="must be numbers"):
        windows_to_heatmap(texts)
    with pytest.raises((StoreError, UsageError)):
        windows_to_heatmap(tmp_path / "nothing.parquet")


def test_the_map_of_a_volume_lies_by_its_spacing(tmp_path):
    grid = WindowGrid.of((8, 20, 20), (2, 10, 10))
    image = ImageGrid("p", "r", grid, (1.0, 1.0, 1.0), spacing=(3.0, 0.5, 0.5))
    assert ImageGrid.from_json(image.to_json()) == image
    table = table_of(image, [(0, 0, 1)], np.ones(1, np.float32))
    windows_to_heatmap(table, tmp_path / "a.zarr")
    place = open_heatmap(tmp_path / "a.zarr").georeference
    assert (place.scale, place.units) == ((6.0, 5.0, 5.0), ("millimeter",) * 3)


def test_several_images_and_no_rows():
    other = ImageGrid("q", "r", WindowGrid.of((20, 20), 10), (1.0, 1.0))
    both = WindowTable.concatenate([rows(), table_of(other, [(1, 1)], np.array([7.0], "f4"))])
    with pytest.raises(UsageError, match="2 images"):
        windows_to_heatmap(both)
    found = windows_to_heatmap(both, patient="q").compute()
    np.testing.assert_array_equal(found, [[np.nan, np.nan], [np.nan, 7]])
    none = windows_to_heatmap(rows(0)).compute()
    assert none.shape == (4, 6)
    assert np.isnan(none).all()


def test_replacing(tmp_path):
    out = tmp_path / "a.zarr"
    windows_to_heatmap(rows(), out)
    with pytest.raises(StoreError, match="overwrite=True"):
        windows_to_heatmap(rows(), out)
    found = windows_to_heatmap(rows(3), out, dtype="float64", overwrite=True)
    assert found.dtype == np.float64
    assert np.isfinite(found).sum().compute() == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    assert zarr.open_group(out)["done"][...].all()


def test_a_full_disk(tmp_path, monkeypatch):
    put, left = zarr.storage.LocalStore.set, iter(range(6))

    async def limited(store, key, value):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        return await put(store, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", limited)
        with pytest.raises(StoreError, match=r"No space left.*overwrite=True"):
            windows_to_heatmap(rows(), tmp_path / "a.zarr", block_windows=1)
    found = windows_to_heatmap(rows(), tmp_path / "a.zarr", overwrite=True)
    assert np.isfinite(found).all().compute()
