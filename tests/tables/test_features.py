"""Features of a cohort: rows that are right, tables that are whole, runs that go on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal

import dask.array as da
import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn

from daskdmed import Dataset, Patient, Record, SlidingWindowDL, heatmap, predict, samples
from daskdmed.errors import CorruptImageError, DatasetError, GeometryError, StoreError, UsageError
from daskdmed.tables import StreamWriter, features, read_windows, run_stream, windows_to_heatmap
from daskdmed.tables.formats import stored_facts
from tests import forked

KEYS = {"kernel_size": (20, 16), "stride": (15, 16), "block_windows": 2}


def pixels(number, shape=(90, 70)):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (*shape, 3), np.uint8)


def cohort(n=2, **facts):
    return Dataset(
        "cohort",
        [Patient(f"p/{i}", {"wsi": Record(array=pixels(i), mpp=(0.25, 0.5))}) for i in range(n)],
    )


class Encoder(nn.Module):
    def __init__(self, k=5):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, k, 5, stride=3)
        self.norm = nn.BatchNorm2d(k)

    def forward(self, x):
        return self.norm(self.body(x)).mean((2, 3))


class Counting(Encoder):
    """Tells how many windows it has seen, and fails after some."""

    seen, most = 0, 10**9

    def forward(self, x):
        type(self).seen += len(x)
        if self.seen > self.most:
            raise RuntimeError("the power went off")
        return super().forward(x)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


def left(folder):
    """What is there beside tables and reports."""
    known = {".parquet", ".json", ".csv"}
    return [p for p in folder.rglob("*") if p.is_file() and p.suffix not in known]


def report(folder):
    with open(folder / "run.csv", newline="") as file:
        rows = {row["patient"]: row for row in csv.DictReader(file)}
    return json.loads((folder / "run.json").read_text()), rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return folder, features(cohort(), Encoder(), out=folder, **KEYS)


def test_rows_are_those_of_a_stream(made, tmp_path):
    folder, found = made
    data, net = cohort(), Encoder().eval()
    assert found == {f"p/{i}": folder / f"p%2F{i}" / "wsi.parquet" for i in range(2)}
    with SlidingWindowDL(data, kernel_size=(20, 16), stride=(15, 16), edge="pad") as loader:
        with torch.inference_mode():
            run_stream(loader, lambda b: net(b[0].float() / 255), StreamWriter(tmp_path))
    for patient in data:
        rows = read_windows(found[patient.key])
        streamed = read_windows(tmp_path).select(patient.key)
        order = np.lexsort(streamed.indices.T[::-1])
        for name, column in rows.columns.items():
            np.testing.assert_array_equal(column, streamed.columns[name][order], err_msg=name)
            assert column.dtype == streamed.columns[name].dtype
        np.testing.assert_allclose(rows.values, streamed.values[order], atol=1e-5)
        assert rows.image() == streamed.image()
    # a folder is read with all in it, without the report
    everything = read_windows(folder)
    assert len(everything) == 2 * 6 * 5
    assert everything.values.dtype == np.float32
    # and is as good as the heatmap
    again = windows_to_heatmap(found["p/1"])
    want = heatmap(data[1], net, **KEYS)
    np.testing.assert_array_equal(again, want)


def test_the_column_is_a_fixed_size_list(made):
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, found = made
    schema = pq.read_schema(found["p/0"])
    assert schema.field("features").type == pa.list_(pa.float32(), 5)
    assert {"patient", "record", "x", "y", "level", "mpp_x", "mpp_y"} <= set(schema.names)


def test_the_report(made, tmp_path):
    folder, _ = made
    told, rows = report(folder)
    assert told["kind"] == "features"
    assert told["state"] == "finished"
    assert told["windows"] == 60
    assert {"daskdmed", "dask", "torch", "numpy"} <= set(told["versions"])
    assert told["model"]
    assert told["parameters"]["kernel_size"] == [20, 16]
    assert told["seed"] is None
    assert list(rows) == ["p/0", "p/1"]
    assert {r["state"] for r in rows.values()} == {"done"}
    assert {r["windows"] for r in rows.values()} == {"30"}
    assert all(float(r["windows_per_second"]) > 0 for r in rows.values())


def test_parameters_are_plain_json(tmp_path):
    data = Dataset("c", [Patient(f"{i:02}", {"x": Record(array=pixels(i))}) for i in range(20)])
    predict(
        data, lambda w: w[..., 0], kernel_size=np.int64(16), overlap=0, fill=np.nan, out=tmp_path,
        mask={p.key: None for p in data}, blend="constant",
    )  # fmt: skip
    told = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    known = told["parameters"]
    assert known["kernel_size"] == 16
    assert known["fill"] == "nan"
    assert known["mask"] == "dict of 20"


def test_runs_that_share_a_folder_share_the_report(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for part in (slice(0, 1), slice(1, 2)):
        features(cohort()[part], Encoder(), out="~/parts" if part.start else "parts", **KEYS)
    told, rows = report(tmp_path / "parts")
    assert list(rows) == ["p/1", "p/0"]
    assert {r["state"] for r in rows.values()} == {"done"}
    assert told["windows"] == 30  # of the last run


def test_masks_leave_out_rows(tmp_path):
    mask = np.zeros((9, 7), bool)
    mask[:3, :4] = True
    data = cohort(2)
    masks = {"p/0": mask, "p/1": np.zeros((9, 7), bool)}
    found = features(data, Encoder(), out=tmp_path, mask=masks, mask_fraction=0.5, **KEYS)
    whole = heatmap(data[0], Encoder().eval(), mask=mask, mask_fraction=0.5, **KEYS).compute()
    rows = read_windows(found["p/0"])
    inside = np.argwhere(np.isfinite(whole[0]))
    np.testing.assert_array_equal(rows.indices, inside)
    np.testing.assert_array_equal(rows.values, whole[:, inside[:, 0], inside[:, 1]].T)
    empty = read_windows(found["p/1"])
    assert empty.values.shape == (0, 5)
    assert empty.image().patient == "p/1"
    with pytest.raises(GeometryError, match="aspect ratio"):
        features(data[0], Encoder(), out=tmp_path / "b", mask=np.ones((7, 90), bool), **KEYS)


def test_a_run_that_was_cut_off_goes_on(made, tmp_path):
    import dask

    data = cohort(2)
    model = Counting()
    want = tmp_path / "whole"
    features(data, model, out=want, **KEYS)
    full, Counting.seen = Counting.seen, 0
    out = tmp_path / "out"
    Counting.most = 45  # in the second slide
    with pytest.raises(StoreError, match="power went off.*call again"):
        with dask.config.set(scheduler="sync"):
            features(data, model, out=out, **KEYS)
    told, rows = report(out)
    assert (rows["p/0"]["state"], rows["p/1"]["state"]) == ("done", "stopped")
    assert told["state"] == "stopped"
    assert "power went off" in told["error"]
    Counting.seen, Counting.most = 0, 10**9
    features(data, model, out=out, **KEYS)
    assert 0 < Counting.seen < full / 2
    assert contents(out) == contents(want)
    assert not left(out)
    told, after = report(out)
    assert (after["p/0"]["state"], after["p/1"]["state"]) == ("done before", "done")
    assert after["p/0"]["seconds"] == rows["p/0"]["seconds"]
    # a part of its windows was computed by the run before
    assert float(after["p/1"]["seconds"]) > 0
    assert after["p/1"]["windows_per_second"] == ""
    # and once more: nothing is computed, nothing changes
    Counting.seen, times = 0, {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    features(data, model, out=out, **KEYS)
    assert Counting.seen <= 2  # the trial
    assert times == {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}


def test_another_model_or_other_parameters(made, tmp_path):
    out = tmp_path / "out"
    data = cohort(1)
    features(data, Encoder(), out=out, **KEYS)
    before = contents(out)
    other = Encoder()
    other.body.bias.data += 1
    for model, keys in ((other, KEYS), (Encoder(), {**KEYS, "stride": (20, 16)})):
        with pytest.raises(StoreError, match="begun with other parameters"):
            features(data, model, out=out, **keys)
    assert contents(out) == before
    features(data, other, out=out, overwrite=True, **KEYS)
    new = contents(out)
    assert new != before
    Counting.seen = 0
    features(data, other, out=out, overwrite=True, **KEYS)  # goes on: there is nothing to do
    assert contents(out) == new
    # a file that is none of ours
    (out / "p%2F0" / "wsi.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(StoreError, match="cannot be read as a table"):
        features(data, other, out=out, **KEYS)
    features(data, other, out=out, overwrite=True, **KEYS)
    assert contents(out) == new


class _Torn:
    """Pixels that cannot be read in one place."""

    def __init__(self, number, at):
        self.number, self.at = number, at

    def __dask_tokenize__(self):
        return "torn", self.number

    def __call__(self, block, block_info=None):
        if block_info[0]["chunk-location"][:2] == self.at:
            raise CorruptImageError("a torn tile", uri="torn.svs")
        return block


def torn(number):
    whole = da.from_array(pixels(number), chunks=(45, 70, 3))
    return whole.map_blocks(_Torn(number, (1, 0)), dtype=np.uint8, meta=np.empty((0, 0, 0), "u1"))


@pytest.mark.parametrize("call", ["features", "heatmap", "predict"])
def test_slides_that_cannot_be_read_are_left_out(call, tmp_path):
    gone = tmp_path / "gone.svs"
    data = Dataset(
        "c",
        [
            Patient("good", {"wsi": Record(array=pixels(1))}),
            Patient("gone", {"wsi": Record(gone)}),
            Patient("torn", {"wsi": Record(array=torn(2))}),
            Patient("last", {"wsi": Record(array=pixels(3))}),
        ],
    )
    out = tmp_path / "out"
    run = {
        "features": lambda d, **k: features(d, Encoder(), out=out, **KEYS, **k),
        "heatmap": lambda d, **k: heatmap(d, Encoder(), out=out, **KEYS, **k),
        "predict": lambda d, **k: predict(d, lambda w: w[..., 0], kernel_size=16, out=out, **k),
    }[call]
    found = run(data, on_error="skip")
    assert list(found) == ["good", "last"]
    assert [f.patient for f in found.failures] == ["gone", "torn"]
    told, rows = report(out)
    assert told["state"] == "finished"
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {"good": "done", "gone": "skipped", "torn": "skipped", "last": "done"}
    assert "torn tile" in rows["torn"]["reason"]
    assert "no such file" in rows["gone"]["reason"].lower() or "gone.svs" in rows["gone"]["reason"]
    shutil.rmtree(out)
    with pytest.raises(CorruptImageError, match="torn tile"):
        run(data[2:])
    assert report(out)[0]["state"] == "stopped"
    shutil.rmtree(out)
    with pytest.raises(DatasetError, match="none of the 1 images.*torn tile"):
        run(data[2:3], on_error="skip")


def test_devices_share_the_work(tmp_path, made):
    folder, _ = made
    features(cohort(), Encoder(), out=tmp_path, devices=["cpu", "cpu"], **KEYS)
    assert contents(tmp_path) == contents(folder)


def test_several_outputs_half_precision_and_volumes(tmp_path):
    data = cohort(1)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Encoder().bfloat16().eval()

        def forward(self, x):
            return {"logits": x.mean((1, 2, 3)), "features": self.net(x)}

    with pytest.raises(UsageError, match="output="):
        features(data, Two(), out=tmp_path / "a", **KEYS)
    found = features(data, Two(), out=tmp_path / "a", output="features", **KEYS)
    assert read_windows(found["p/0"]).values.shape == (30, 5)
    one = features(data, lambda w: w.mean((1, 2, 3)), out=tmp_path / "b", **KEYS)
    assert read_windows(one["p/0"]).values.shape == (30, 1)
    volume = np.random.default_rng(0).random((8, 12, 12), np.float32)
    path = features(volume, lambda w: w.mean((2, 3)), kernel_size=(4, 4, 6), out=tmp_path / "c")
    rows = read_windows(path)
    assert rows.values.shape == (2 * 3 * 2, 4)
    np.testing.assert_allclose(rows.values[1], volume[:4, :4, 6:].mean((1, 2)), rtol=1e-5)
    assert rows.columns["origin_x"].tolist()[:2] == [0, 6]


def test_bad_arguments(tmp_path):
    with pytest.raises(UsageError, match="local folder"):
        features(cohort(1), Encoder(), out="memory://a", **KEYS)
    with pytest.raises(UsageError, match="local folder"):
        features(cohort(1), Encoder(), out=None, **KEYS)
    with pytest.raises(UsageError, match=r"devices=\[\] must be"):
        features(cohort(1), Encoder(), out=tmp_path, devices=[], **KEYS)
    with pytest.raises(UsageError, match="pool the maps"):
        features(cohort(1), nn.Conv2d(3, 2, 3), out=tmp_path, kernel_size=16)
    with pytest.raises(UsageError, match="give client="):
        features(cohort(1), Encoder(), out=tmp_path, resources={"GPU": 1}, **KEYS)
    with pytest.raises(UsageError, match="NaN or infinite"):
        features(cohort(1), lambda w: np.full((len(w), 2), np.nan), out=tmp_path, **KEYS)


SCRIPT = """
import sys
from tests.inference._killing import Moments
from tests.tables.test_features import Encoder, KEYS, cohort
from daskdmed.inference import report
from daskdmed.store.results import donemap
from daskdmed.tables import features
import dask

report._EVERY = donemap._FLUSH_EVERY = 0  # each run has the same moments
Moments(sys.argv[1], int(sys.argv[2]))
with dask.config.set(scheduler="sync"):
    features(cohort(), Encoder(), out=sys.argv[1], **KEYS)
"""


@pytest.mark.parametrize(("moment", "tables"), [(30, 0), (51, 1)])
def test_killed_at_any_moment(made, moment, tables, tmp_path):
    """Of 114: amid the blocks of a slide, and between its table and its end."""
    folder, _ = made
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(SCRIPT)
    out.mkdir()
    (out / ".run.csv.1.partial").write_text("of a run before")
    os.utime(out / ".run.csv.1.partial", (0, 0))
    done = forked.run(script, tmp_path, {}, [str(out), str(moment)])
    assert done.returncode == -signal.SIGKILL, done.stderr
    told, rows = report(out)
    assert told["state"] == "running"
    assert (rows["p/0"]["state"], rows["p/1"]["state"]) == ("stopped", "not begun")
    assert len(contents(out)) == tables
    assert list(out.rglob("*.features.zarr"))
    features(cohort(), Encoder(), out=out, **KEYS)
    assert contents(out) == contents(folder)
    assert not left(out)


def test_the_facts_of_a_table(made):
    _, found = made
    facts = stored_facts(found["p/0"])
    assert facts["parameters"]["kind"] == "features"
    assert facts["images"][0]["patient"] == "p/0"


@pytest.mark.cluster
def test_a_cluster_gives_the_same_tables(made, tmp_path):
    from distributed import Client, LocalCluster

    folder, _ = made
    with (
        LocalCluster(
            2, threads_per_worker=1, processes=False, resources={"GPU": 1}, memory_limit=0,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        keys = {"client": client, "resources": {"GPU": 1}}
        features(cohort(), Encoder(), out=tmp_path / "a", **keys, **KEYS)
        bad = Dataset("c", [*cohort(), Patient("torn", {"wsi": Record(array=torn(2))})])
        found = features(bad, Encoder(), out=tmp_path / "b", on_error="skip", **keys, **KEYS)
        assert [f.patient for f in found.failures] == ["torn"]
    assert contents(tmp_path / "a") == contents(folder) == contents(tmp_path / "b")


def test_a_slide_of_a_file(tmp_path):
    path = samples.make_slide(tmp_path / "s.tif", 700, levels=2, mpp=0.5).path
    found = features(path, lambda w: w.mean((1, 2)), kernel_size=100, mpp=1.0, out=tmp_path / "f")
    rows = read_windows(found)
    assert rows.columns["x"].tolist()[:3] == [0, 200, 400]
    assert set(rows.columns["mpp_x"]) == {1.0}
    assert set(rows.columns["level"]) == {-1}
