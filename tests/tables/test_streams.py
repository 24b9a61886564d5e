"""Streams: pieces kept, folded or written; tables complete or not there."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
import torch

import daskdmed.tables.formats as formats
import daskdmed.tables.tablethread as writing
from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL
from daskdmed.errors import GeometryError, LoaderError, MissingExtraError, StoreError, UsageError
from daskdmed.tables import ProcessedPiece, StreamCollector, StreamWriter, read_windows, run_stream
from daskdmed.tables.rows import WindowTable, row_columns
from daskdmed.tables.tabulate import tabulate
from daskdmed.tiling.grid import WindowGrid
from daskdmed.tiling.imagegrid import ImageGrid
from tests.waiting import until

FORMATS = ["parquet", "csv"]


def encoded(number, shape=(90, 70)):
    """(y, x) float32: a number that says patient and place."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (number * 10_000 + y * 100 + x).astype("f4")


def dataset_of(n=2, shape=(90, 70), mpp=(0.25, 0.5)):
    patients = [
        Patient(
            f"p{i}",
            {"wsi": Record(array=da.from_array(encoded(i, shape), chunks=32), mpp=mpp)},
            {"n": i},
        )
        for i in range(n)
    ]
    return Dataset("d", patients)


GRID = {"kernel_size": (20, 16), "stride": (15, 16)}


def loader_of(n=2, **options):
    return SlidingWindowDL(dataset_of(n), **{**GRID, "batch_size": 7, **options})


def corner(batch):
    """One value per window: its first pixel, which says where it is."""
    return batch[0][:, 0, 0, 0]


RESULTS = {
    "scalar": corner,
    "vector": lambda b: b[0][:, 0, :3, 0],
    "map": lambda b: b[0][:, :, :4, :2],
    "integer": lambda b: b[0][:, 0, 0, 0].long(),
    "boolean": lambda b: b[0][:, 0, 0, :2] % 2 == 0,
    "double": lambda b: b[0][:, 0, 0, 0].double() / 3,
}


def truth(table, values):
    """What `values` gives for the windows of a table, cut by hand."""
    rows = []
    for patient, y, x in zip(
        table.columns["patient"], table.columns["origin_y"], table.columns["origin_x"]
    ):
        image = np.pad(encoded(int(patient[1:])), [(0, 40), (0, 40)])
        window = torch.from_numpy(image[y : y + 20, x : x + 16][None, None])
        rows.append(values((window,))[0].numpy())
    return np.stack(rows)


# -- tables -----------------------------------------------------------------------------


@pytest.mark.parametrize("per_patient", [True, False])
@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_written_is_what_is_read(tmp_path, kind, result, per_patient):
    out = tmp_path / ("tables" if per_patient else f"all.{kind}")
    with loader_of(order="interleaved", block_windows=2) as loader:
        paths = run_stream(loader, RESULTS[result], StreamWriter(out, format=kind))
    names = {f"p0.{kind}", f"p1.{kind}"} if per_patient else {f"all.{kind}"}
    assert {p.name for p in paths.values()} == names
    assert set(os.listdir(out if per_patient else tmp_path)) == names
    table = read_windows(out)
    assert len(table) == loader.windows == 2 * 6 * 5
    expected = truth(table, RESULTS[result])
    assert table.values.dtype == expected.dtype
    np.testing.assert_array_equal(table.values, expected)
    assert list(table.columns) == list(row_columns(2))
    column = table.columns
    np.testing.assert_array_equal(column["origin_y"], column["index_y"] * 15)
    np.testing.assert_array_equal(column["origin_x"], column["index_x"] * 16)
    np.testing.assert_array_equal(column["y"], column["origin_y"])
    np.testing.assert_array_equal(column["height"], np.minimum(20, 90 - column["origin_y"]))
    np.testing.assert_array_equal(column["width"], np.minimum(16, 70 - column["origin_x"]))
    assert set(column["kernel_y"]) == {20}
    assert set(column["stride_y"]) == {15}
    assert set(column["level"]) == {0}
    assert set(column["mpp_x"]) == {0.25}
    assert set(column["mpp_y"]) == {0.5}
    assert set(column["record"]) == {"wsi"}
    assert table.images == loader.images
    one = table.select("p1")
    assert len(one) == 30
    assert one.image() == loader.images[1]
    places = {(p, *i) for p, i in zip(column["patient"], table.indices.tolist())}
    assert len(places) == len(table)


def test_a_map_with_holes_keeps_its_shape(tmp_path):
    # the seed's maps shrank: a missing row or column of windows moved all behind it
    mask = np.ones((90, 70), bool)
    mask[30:45] = mask[:, 16:32] = False  # index_y 2 is only half covered, column 1 is not
    with loader_of(1, mask=mask, min_mask=0.6) as loader:
        run_stream(loader, corner, StreamWriter(tmp_path / "t"))
    table = read_windows(tmp_path / "t")
    image = table.image()
    heat = np.full(image.grid.counts, np.nan)
    heat[tuple(table.indices.T)] = table.values
    assert heat.shape == (6, 5)
    assert np.isnan(heat[2]).all()
    assert np.isnan(heat[:, 1]).all()
    rows, columns = [0, 1, 3, 4, 5], [0, 2, 3, 4]
    y, x = np.mgrid[:6, :5]
    expected = y * 15 * 100 + x * 16
    np.testing.assert_array_equal(heat[np.ix_(rows, columns)], expected[np.ix_(rows, columns)])


@pytest.mark.parametrize("kind", FORMATS)
def test_patients_without_rows_have_a_table(tmp_path, kind):
    masks = {"p0": np.zeros((3, 3)), "p1": np.ones((3, 3))}
    with loader_of(mask=masks) as loader:
        run_stream(loader, RESULTS["vector"], StreamWriter(tmp_path / "t", format=kind))
    empty = read_windows(tmp_path / "t" / f"p0.{kind}")
    assert (len(empty), empty.value_shape) == (0, (3,))
    assert empty.image().patient == "p0"
    assert len(read_windows(tmp_path / "t")) == 30
    with loader_of(mask=lambda patient: np.zeros((3, 3))) as loader:
        run_stream(loader, corner, StreamWriter(tmp_path / "none", format=kind))
    nothing = read_windows(tmp_path / "none")
    assert len(nothing) == 0
    assert [i.patient for i in nothing.images] == ["p0", "p1"]


def test_both_formats_have_the_same_columns(tmp_path):
    pd = pytest.importorskip("pandas")
    for kind in FORMATS:
        with loader_of(1) as loader:
            run_stream(loader, RESULTS["map"], StreamWriter(tmp_path / f"t.{kind}"))
    frame = pd.read_csv(tmp_path / "t.csv", comment="#")
    pd.testing.assert_frame_equal(frame, pd.read_parquet(tmp_path / "t.parquet"), check_dtype=False)
    assert list(frame) == [*row_columns(2), *(f"value_{i}" for i in range(8))]
    row = frame[(frame["y"] == 15) & (frame["x"] == 32)].iloc[0]
    assert row["value_3"] == (15 + 1) * 100 + 32 + 1


@settings(max_examples=30)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=5),
    st.sampled_from(["f2", "f4", "f8", "i1", "u2", "i8", "u8", "?"]),
    st.data(),
)
def test_any_names_and_numbers_come_back(names, kind, data):
    with tempfile.TemporaryDirectory() as folder:
        n = len(names)
        raw = data.draw(st.binary(min_size=16 * n, max_size=16 * n))
        values = np.frombuffer(raw, kind if kind != "?" else "u1")[: 2 * n].reshape(n, 2)
        values = values.astype(kind)
        columns = {name: np.zeros(n, dtype) for name, dtype in row_columns(2).items()}
        columns["patient"] = columns["record"] = np.array(names, object)
        columns["mpp_y"][:] = np.nan
        table = WindowTable(columns, values)
        for suffix in FORMATS:
            file = formats.FORMATS[suffix](Path(folder) / f"t.{suffix}", table)
            file.append(table)
            found = read_windows(file.finish())
            assert found.columns["patient"].tolist() == names
            np.testing.assert_array_equal(found.columns["mpp_y"], columns["mpp_y"])
            assert found.values.dtype == values.dtype
            np.testing.assert_array_equal(found.values, values)


def test_levels_keep_their_place(tmp_path):
    from daskdmed import open_slide
    from daskdmed.samples import make_slide

    slide = open_slide(make_slide(tmp_path / "a.tif", 1500, levels=2, downsample=4).path)
    for kind in FORMATS:
        with SlidingWindowDL(slide, kernel_size=100, level=1, edge="shift") as loader:
            run_stream(loader, lambda b: b[0][:, 0, 0, 0], StreamWriter(tmp_path / f"t.{kind}"))
        table = read_windows(tmp_path / f"t.{kind}")
        image = table.image()
        assert image.level == 1
        assert image.source == slide.uri
        assert set(table.columns["level"]) == {1}
        for row in range(len(table)):
            origin = image.grid.origin(tuple(table.indices[row]))
            place = [round(o * d) for o, d in zip(origin, image.downsample)]
            assert [table.columns["y"][row], table.columns["x"][row]] == place
        assert len({tuple(i) for i in table.indices}) == 16
    with SlidingWindowDL(slide, kernel_size=100, mpp=1.1) as loader:
        run_stream(loader, lambda b: b[0][:, 0, 0, 0], StreamWriter(tmp_path / "mpp.parquet"))
    table = read_windows(tmp_path / "mpp.parquet")
    assert set(table.columns["level"]) == {-1}
    assert table.image().level is None
    assert table.columns["mpp_x"][0] == pytest.approx(1.1)


@pytest.mark.parametrize("kind", FORMATS)
def test_volumes(tmp_path, kind):
    volume = np.arange(6 * 10 * 12).reshape(6, 10, 12).astype("i4")
    with SlidingWindowDL(volume, kernel_size=(3, 5, 4)) as loader:
        run_stream(loader, lambda b: b[0][:, 0, 0, 0, 0], StreamWriter(tmp_path / f"v.{kind}"))
    table = read_windows(tmp_path / f"v.{kind}")
    assert (table.ndim, len(table)) == (3, 12)
    z, y, x = (table.columns[a] for a in "zyx")
    np.testing.assert_array_equal(table.values, volume[z, y, x])
    assert set(table.columns["depth"]) == {3}


def test_wide_results_are_one_list_column(tmp_path):
    import pyarrow.parquet as pq

    with loader_of() as loader:
        run_stream(loader, lambda b: b[0], StreamWriter(tmp_path / "wide.parquet"))
    names = pq.read_schema(tmp_path / "wide.parquet").names
    assert "values" in names
    assert "value_0" not in names
    table = read_windows(tmp_path / "wide.parquet")
    assert table.value_shape == (1, 20, 16)
    np.testing.assert_array_equal(table.values, truth(table, lambda b: b[0]))


@pytest.mark.parametrize("kind", FORMATS)
def test_many_groups_of_rows(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(writing, "_GROUP_ROWS", 8)
    monkeypatch.setattr(writing, "_OPEN_BYTES", 4000)
    with loader_of(3, order="interleaved", slides_at_once=3, block_windows=1) as loader:
        run_stream(loader, RESULTS["vector"], StreamWriter(tmp_path / "t", format=kind))
    table = read_windows(tmp_path / "t")
    assert len(table) == 90
    np.testing.assert_array_equal(table.values, truth(table, RESULTS["vector"]))
    if kind == "parquet":
        import pyarrow.parquet as pq

        assert pq.ParquetFile(tmp_path / "t" / "p0.parquet").num_row_groups >= 4


def test_names_that_are_no_file_names(tmp_path):
    ids = ["a/b", "..", ".hidden", "ü ß", "con:1", "x" * 40]
    patients = [
        Patient(i, {"wsi": Record(array=np.full((20, 20), n, "f4"))}) for n, i in enumerate(ids)
    ]
    with SlidingWindowDL(Dataset("odd", patients), kernel_size=10) as loader:
        paths = run_stream(loader, corner, StreamWriter(tmp_path / "t"))
    assert all(p.parent == tmp_path / "t" and p.exists() for p in paths.values())
    assert len(set(paths.values())) == len(ids)
    table = read_windows(tmp_path / "t")
    for n, i in enumerate(ids):
        assert set(table.select(i).values) == {n}


def test_as_a_data_frame(tmp_path):
    pytest.importorskip("pandas")
    with loader_of() as loader:
        run_stream(loader, RESULTS["vector"], StreamWriter(tmp_path / "t.parquet"))
    frame = read_windows(tmp_path / "t.parquet").to_pandas()
    assert frame.groupby("patient").size().to_dict() == {"p0": 30, "p1": 30}
    assert list(frame)[-3:] == ["value_0", "value_1", "value_2"]


def test_ranks_write_parts(tmp_path):
    for rank in range(2):
        options = {"rank": rank, "world_size": 2, "block_windows": 2}
        with loader_of(**options) as loader:
            with pytest.raises(UsageError, match=f"part='rank-{rank}'"):
                run_stream(loader, corner, StreamWriter(tmp_path / "t"))
        with loader_of(**options) as loader:
            run_stream(loader, corner, StreamWriter(tmp_path / "t", part=f"rank-{rank}"))
    table = read_windows(tmp_path / "t")
    places = {(p, *i) for p, i in zip(table.columns["patient"], table.indices.tolist())}
    assert len(places) == len(table) == 60
    assert len(table.images) == 2


# -- collectors -------------------------------------------------------------------------


class Corners(StreamCollector):
    """A subclass, as the seed has it."""

    def process_pieceofstream(self, batch):
        return ProcessedPiece.of_batch(batch[2], corner(batch))

    def accumulate(self, previous, piece, patient):
        assert patient == str(piece.source_smallchunk.patient.id)
        return max(previous or 0.0, float(piece.data))


def test_keeping_all_pieces():
    with loader_of() as loader:
        collector = Corners(loader)
        found = collector.start_collecting()
        assert collector.stream_ended
        with pytest.raises(UsageError, match="already"):
            collector.start_collecting()
    assert {p: len(pieces) for p, pieces in found.items()} == {"p0": 30, "p1": 30}
    for piece in found["p1"]:
        y, x = piece.source_smallchunk.origin
        assert float(piece.data) == 10_000 + y * 100 + x
        assert piece.source_smallchunk.data.size == 0, "pixels would keep the batch"
        assert piece.size == (20, 16)


def test_folding_holds_one_value_per_patient():
    with loader_of() as loader:
        assert Corners(loader, mode="accumulate").start_collecting() == {
            "p0": 75 * 100 + 64,
            "p1": 10_000 + 75 * 100 + 64,
        }
        total = run_stream(loader, corner, fold=lambda before, piece, patient: (before or 0) + 1)
    assert total == {"p0": 30, "p1": 30}


def test_streaming_through_a_subclass(tmp_path):
    with loader_of() as loader:
        run_stream(loader, Corners, StreamWriter(tmp_path / "a"))
        Corners(loader, writer=StreamWriter(tmp_path / "b")).start_collecting()
    a, b = read_windows(tmp_path / "a"), read_windows(tmp_path / "b")
    np.testing.assert_array_equal(a.values, b.values)


def test_the_flag_ends_an_endless_stream(tmp_path):
    class Few(Corners):
        def get_flag_finishcollecting(self):
            assert not self.stream_ended
            return sum(map(len, self.results.values())) >= 20 if self.writer is None else True

    options = {"smallchunk_size": (20, 16), "batch_size": 8, "bigchunk_size": 64}
    with LightDL(dataset_of(), **options, resident="1 MiB", smallchunks_per_bigchunk=8) as loader:
        found = Few(loader).start_collecting()
        assert sum(map(len, found.values())) == 24
        Few(loader, writer=StreamWriter(tmp_path / "t.parquet")).start_collecting()
    # crops belong to no grid, but know their place
    table = read_windows(tmp_path / "t.parquet")
    assert len(table) == 8
    assert (table.indices == -1).all()
    assert set(table.columns["kernel_x"]) == {16}
    assert set(table.columns["stride_x"]) == {0}
    assert table.images == ()
    column = table.columns
    expected = [int(p[1:]) * 10_000 for p in column["patient"]]
    np.testing.assert_array_equal(table.values, expected + column["y"] * 100 + column["x"])


def test_pieces_may_be_fewer_than_windows(tmp_path):
    def some(batch):
        return [ProcessedPiece(w, 1.0) for w in batch[2] if w.index[0] == 2]

    with loader_of() as loader:
        run_stream(loader, some, StreamWriter(tmp_path / "t"))
    table = read_windows(tmp_path / "t")
    assert len(table) == 10
    assert set(table.columns["index_y"]) == {2}


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (lambda b: corner(b)[:-1], "results for"),
        (lambda b: ["a"] * len(b[0]), "numbers"),
        (lambda b: [None] * len(b[0]), "numbers"),
        (lambda b: [np.zeros(1 + i % 2) for i in range(len(b[0]))], "agree"),
        (lambda b: [ProcessedPiece(w, [[1], [2, 3]]) for w in b[2]], "numbers"),
        (lambda b: corner(b) if len(b[0]) == 7 else corner(b).double(), "agree"),
        (lambda b: np.zeros((len(b[0]), 0)), "numbers"),
        (lambda b: [ProcessedPiece(b[0], 1)], "small chunk"),
    ],
)
def test_results_that_are_no_table(tmp_path, process, message):
    with loader_of() as loader, pytest.raises(UsageError, match=message):
        run_stream(loader, process, StreamWriter(tmp_path / "t.parquet"))
    assert not os.listdir(tmp_path)


def test_bad_collectors(tmp_path):
    class Wrong(StreamCollector):
        def process_pieceofstream(self, batch):
            return [1.0]

    class Plain(StreamCollector):
        def process_pieceofstream(self, batch):
            return ProcessedPiece.of_batch(batch[2], corner(batch))

    with loader_of() as loader:
        with pytest.raises(UsageError, match="list of ProcessedPiece"):
            Wrong(loader).start_collecting()
        with pytest.raises(UsageError, match="accumulate"):
            Plain(loader, mode="accumulate").start_collecting()
        for options in ({"mode": "stream"}, {"mode": "other"}):
            with pytest.raises(UsageError, match="mode"):
                Plain(loader, **options)
        writer = StreamWriter(tmp_path / "t")
        with pytest.raises(UsageError, match="takes no"):
            Plain(loader, mode="keep", writer=writer)
        with pytest.raises(UsageError, match="two modes"):
            run_stream(loader, corner, writer, fold=max)
        with pytest.raises(UsageError, match="callable"):
            run_stream(loader, 5)
        with pytest.raises(UsageError, match="subclass"):
            run_stream(loader, int)
    with pytest.raises(TypeError):
        StreamCollector(loader)


# -- complete or not there --------------------------------------------------------------


def failing_loader():
    def broken(block, block_info=None):
        if block_info[None]["chunk-location"] == (2, 2):
            raise OSError("torn")
        return block

    sound, torn_ = (da.from_array(encoded(i), chunks=32) for i in range(2))
    torn_ = torn_.map_blocks(broken, meta=np.empty((0, 0), "f4"))
    patients = [
        Patient("p0", {"x": Record(array=sound)}),
        Patient("p1", {"x": Record(array=torn_)}),
    ]
    return SlidingWindowDL(Dataset("d", patients), **GRID, batch_size=5, block_windows=2)


@pytest.mark.parametrize("kind", FORMATS)
def test_only_whole_tables_have_their_name(tmp_path, kind):
    folder = tmp_path / "t"
    with failing_loader() as loader, pytest.raises(LoaderError, match="torn"):
        run_stream(loader, corner, StreamWriter(folder, format=kind))
    # the patient that was over is whole, of the other nothing is left
    assert os.listdir(folder) == [f"p0.{kind}"]
    assert len(read_windows(folder)) == 30
    with failing_loader() as loader, pytest.raises(LoaderError):
        run_stream(loader, corner, StreamWriter(tmp_path / f"one.{kind}"))
    assert sorted(os.listdir(tmp_path)) == ["t"]


@pytest.mark.parametrize("kind", FORMATS)
def test_tables_that_are_there(tmp_path, kind):
    folder = tmp_path / "t"
    with loader_of() as loader:
        run_stream(loader, corner, StreamWriter(folder, format=kind))
        before = read_windows(folder)
        for out, options in ((folder, {"format": kind}), (folder / f"p0.{kind}", {})):
            with pytest.raises(StoreError, match="overwrite=True"):
                run_stream(loader, corner, StreamWriter(out, **options))
        # a failed replacement leaves the old table as it was
        with pytest.raises(ZeroDivisionError):
            run_stream(loader, lambda b: 1 / 0, StreamWriter(folder, format=kind, overwrite=True))
        np.testing.assert_array_equal(read_windows(folder).values, before.values)
        loader.rewind()
        run_stream(loader, RESULTS["vector"], StreamWriter(folder, format=kind, overwrite=True))
    assert read_windows(folder).value_shape == (3,)
    assert sorted(os.listdir(folder)) == [f"p0.{kind}", f"p1.{kind}"]


def test_going_on_with_the_patients_that_are_left(tmp_path):
    folder = tmp_path / "t"
    with failing_loader() as loader, pytest.raises(LoaderError):
        run_stream(loader, corner, StreamWriter(folder))
    writer = StreamWriter(folder, resume=True)
    rest = dataset_of().filter(lambda patient: not writer.finished(patient))
    assert [p.id for p in rest] == ["p1"]
    with SlidingWindowDL(rest, **GRID) as loader:
        run_stream(loader, corner, writer)
    assert len(read_windows(folder)) == 60


def test_close_and_abort_are_idempotent(tmp_path):
    with loader_of(1) as loader:
        _, _, windows = next(loader)
    pieces = ProcessedPiece.of_batch(windows, np.arange(len(windows)))
    writer = StreamWriter(tmp_path / "a.parquet")
    writer.write(pieces)
    writer.flush()
    assert not (tmp_path / "a.parquet").exists()
    writer.close()
    writer.close()
    writer.abort()
    assert len(read_windows(tmp_path / "a.parquet")) == 7
    with pytest.raises(StoreError, match="closed"):
        writer.write(pieces)
    for _ in range(2):
        writer = StreamWriter(tmp_path / "b.parquet")
        writer.write(pieces)
        writer.abort()
        writer.abort()
        writer.close()
    with pytest.raises(KeyError), StreamWriter(tmp_path / "c.csv") as writer:
        writer.write(pieces)
        writer.flush()
        raise KeyError
    with StreamWriter(tmp_path / "d.csv") as writer:
        writer.write(pieces)
    with StreamWriter(tmp_path / "e.parquet"):
        pass  # nothing came: no table
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "d.csv"]
    assert "1 complete" in repr(writer)


def test_a_forgotten_writer_leaves_nothing(tmp_path):
    with loader_of(1) as loader:
        _, _, windows = next(loader)
    writer = StreamWriter(tmp_path / "a.csv")
    writer.write(ProcessedPiece.of_batch(windows, np.arange(len(windows))))
    writer.flush()
    del writer
    gc.collect()
    assert not os.listdir(tmp_path)
    assert not [t for t in threading.enumerate() if t.name.startswith("daskdmed-writer")]


def test_a_loader_in_the_middle_of_its_pass_writes_no_table(tmp_path):
    with loader_of() as loader:
        next(loader)
        with pytest.raises(UsageError, match="behind window 7.*lack"):
            run_stream(loader, corner, StreamWriter(tmp_path / "t.csv"))
        assert sum(map(len, run_stream(loader, corner).values())) == 53
        run_stream(loader, corner, StreamWriter(tmp_path / "t.csv"))  # another pass
    assert len(read_windows(tmp_path / "t.csv")) == 60


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    (tmp_path / ".a.csv.partial").write_text("half a row")
    (tmp_path / ".b.parquet.partial").write_bytes(b"PAR1")
    for name in ("a.csv", "b.parquet"):
        with loader_of() as loader:
            run_stream(loader, corner, StreamWriter(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "b.parquet"]
    assert len(read_windows(tmp_path / "a.csv")) == 60


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from daskdmed import SlidingWindowDL
from daskdmed.tables import ProcessedPiece, StreamWriter
image = np.zeros((90, 70), "f4")
writer = StreamWriter(sys.argv[1])
with SlidingWindowDL(image, kernel_size=10, batch_size=5) as loader:
    for n, (x, _, windows) in enumerate(loader):
        writer.write(ProcessedPiece.of_batch(windows, x[:, 0, 0, 0]))
        writer.flush()
        if n == 3:
            os.kill(os.getpid(), 9)
"""


def test_a_killed_run_leaves_no_table(tmp_path):
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.csv"), root])
    assert done.returncode == -9
    assert not (tmp_path / "a.csv").exists()


# -- back-pressure and failing disks -----------------------------------------------------


class Gate(formats.CsvFile):
    """A disk that waits to be let on."""

    gate = threading.Event()

    def append(self, table):
        self.gate.wait()
        super().append(table)


def test_a_slow_disk_makes_the_producer_wait(tmp_path, monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "csv", Gate)
    monkeypatch.setattr(writing, "_GROUP_ROWS", 1)
    Gate.gate.clear()
    with loader_of(1, batch_size=1) as loader:
        _, _, windows = next(loader)
    piece = ProcessedPiece.of_batch(windows, np.zeros(1))
    size = writing.table_bytes(next(iter(tabulate(piece).values())))
    writer = StreamWriter(tmp_path / "a.csv", buffer=3 * size)
    handed = []

    def produce():
        for n in range(20):
            writer.write(piece)
            handed.append(n)

    producer = threading.Thread(target=produce)
    producer.start()
    until(lambda: len(handed) >= 3)
    time.sleep(0.2)  # in which all twenty could be handed over, were they taken
    assert len(handed) == 3  # one at the disk, two in the buffer
    Gate.gate.set()
    producer.join()
    writer.close()
    assert len(handed) == len(read_windows(tmp_path / "a.csv")) == 20


class Full(formats.CsvFile):
    """A disk that is full after one group."""

    def append(self, table):
        if self._writer is not None:
            raise OSError(28, "No space left on device")
        super().append(table)


def test_a_full_disk_surfaces_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "csv", Full)
    monkeypatch.setattr(writing, "_GROUP_ROWS", 4)
    with loader_of() as loader, pytest.raises(StoreError, match="No space left") as caught:
        run_stream(loader, corner, StreamWriter(tmp_path / "a.csv", buffer=1))
    assert isinstance(caught.value.__cause__, OSError)
    assert not os.listdir(tmp_path)
    # an error that comes while nobody writes is raised by close, once
    with loader_of(1, batch_size=30) as loader:
        _, _, windows = next(loader)
    writer = StreamWriter(tmp_path / "a.csv")
    writer.write(ProcessedPiece.of_batch(windows, np.zeros(30)))
    with pytest.raises(StoreError, match="No space left"):
        writer.close()
    writer.close()
    assert not os.listdir(tmp_path)


def test_a_target_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="folder"):
        StreamWriter(tmp_path / "file" / "tables")
    (tmp_path / "taken.csv").mkdir()
    (tmp_path / "taken.csv" / "mine").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="folder"):
            StreamWriter(tmp_path / "taken.csv", overwrite=overwrite)


@pytest.mark.parametrize(
    ("out", "options", "error"),
    [
        ("t", {"format": "excel"}, UsageError),
        ("t.parquet", {"per_patient": True}, UsageError),
        ("t", {"overwrite": True, "resume": True}, UsageError),
        ("s3://bucket/t", {}, UsageError),
        ("t", {"buffer": "much"}, UsageError),
    ],
)
def test_bad_writers(tmp_path, out, options, error):
    target = out if "://" in out else tmp_path / out
    with pytest.raises(error):
        StreamWriter(target, **options)


def test_one_table_without_a_suffix(tmp_path):
    with loader_of() as loader:
        (path,) = run_stream(
            loader, corner, StreamWriter(tmp_path / "all", per_patient=False)
        ).values()
    assert path.name == "all.parquet"


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for kind in FORMATS:
        with pytest.raises(MissingExtraError, match=r"daskdmed\[tables\]"):
            StreamWriter(tmp_path / "t", format=kind)
        with pytest.raises(MissingExtraError, match="tables"):
            read_windows(tmp_path / f"x.{kind}")


# -- reading ----------------------------------------------------------------------------


def test_damaged_and_foreign_files(tmp_path):
    with loader_of() as loader:
        for kind in FORMATS:
            run_stream(loader, corner, StreamWriter(tmp_path / f"t.{kind}"))
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    text = (tmp_path / "t.csv").read_text()
    (tmp_path / "cut.csv").write_text(text[: len(text) // 2])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n" + text.rstrip().rpartition("\n")[2] + "\n")
    (tmp_path / "empty.csv").write_text("")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in (
        "cut.parquet", "cut.csv", "other.csv", "odd.csv", "empty.csv", "other.parquet",
        "missing.parquet", "missing.csv",
    ):  # fmt: skip
        with pytest.raises(StoreError, match=name.split(".")[0]):
            read_windows(tmp_path / name)
    with pytest.raises(UsageError, match="ends in none"):
        read_windows(tmp_path / "t.xlsx")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(StoreError, match="no table"):
        read_windows(tmp_path / "nothing")
    later = json.loads(text.rstrip().rpartition("\n")[2][2:])
    later["version"] = 99
    (tmp_path / "later.csv").write_text(
        text.rstrip().rpartition("\n")[0] + f"\n# {json.dumps(later)}\n"
    )
    with pytest.raises(StoreError, match="99"):
        read_windows(tmp_path / "later.csv")


def test_tables_that_do_not_fit_together(tmp_path):
    with loader_of() as loader:
        run_stream(loader, corner, StreamWriter(tmp_path / "a.csv"))
        run_stream(loader, RESULTS["vector"], StreamWriter(tmp_path / "b.csv"))
    with pytest.raises(StoreError, match="2 kinds"):
        read_windows([tmp_path / "a.csv", tmp_path / "b.csv"])
    table = read_windows(tmp_path / "a.csv")
    with pytest.raises(UsageError, match="name one"):
        table.image()
    with pytest.raises(StoreError, match="missing"):
        WindowTable({}, np.zeros(3))
    with pytest.raises(GeometryError):
        WindowTable.empty(7)


def test_grids_survive_json():
    for mpp in (None, (0.25, 0.26)):
        image = ImageGrid(
            "p",
            "wsi",
            WindowGrid.of((9, 8), 4, overlap=1, edge="shift"),
            (1.5, 1.0),
            None,
            mpp,
            "u",
        )
        assert ImageGrid.from_json(json.loads(json.dumps(image.to_json()))) == image
