"""`predict` as a lazy array, of datasets, and as Dask tasks with a name."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import torch

from daskdmed import Dataset, Patient, Record, events, predict
from daskdmed.errors import DatasetError, UsageError
from daskdmed.inference.dense import job as jobs
from daskdmed.inference.dense import mosaic


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch):
    """Bands of one row of chunks, as large images have them."""
    monkeypatch.setattr(mosaic, "_SWEEP_BYTES", 1)


class Counting:
    """Values and channels of windows; counts windows."""

    def __init__(self):
        self.windows = 0

    def __call__(self, windows):
        self.windows += len(windows)
        return np.stack([windows[..., 0] * 2, windows[..., 1] + 1], axis=-1)

    def __dask_tokenize__(self):
        return "counting"


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 3, 5, padding=2), torch.nn.Dropout(0.9))


IMAGE = np.random.default_rng(0).random((130, 170, 2)).astype(np.float32)
MASK = np.random.default_rng(3).random((5, 7)) > 0.6
SETTINGS = {"kernel_size": 32, "chunks": 25, "batch_size": 3}


@pytest.mark.parametrize("model", [Counting(), net()], ids=["callable", "module"])
@pytest.mark.parametrize(
    "more", [{}, {"mask": MASK}, {"post": "argmax", "mask": MASK}, {"post": "uint8"}], ids=str
)
def test_the_lazy_array_equals_the_written_one(model, more, monkeypatch):
    wanted = predict(IMAGE, model, **SETTINGS, **more).compute()
    for limit in (1, 2**27):  # as few steps to a block as can be, and as many
        monkeypatch.setattr(jobs, "_LAZY_BYTES", limit)
        found = predict(IMAGE, model, **SETTINGS, **more, compute=False)
        assert isinstance(found, da.Array)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert found.numblocks[-1] > (limit == 1)
        assert found.numblocks[-2] > 3
        for scheduler in ("threads", "synchronous"):
            np.testing.assert_array_equal(found.compute(scheduler=scheduler), wanted)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).compute(), wanted)


@pytest.mark.parametrize("chunk", [7, 47, 64])
def test_blocks_take_what_they_need_of_a_dask_array_with_chunks_of_any_size(chunk, monkeypatch):
    monkeypatch.setattr(jobs, "_LAZY_BYTES", 1)
    wanted = predict(IMAGE, Counting(), **SETTINGS).compute()
    image = da.from_array(IMAGE, chunks=(chunk, chunk, 2))
    found = predict(image, Counting(), **SETTINGS, compute=False)
    np.testing.assert_array_equal(found.compute(), wanted)


def test_a_slice_computes_no_other_bands():
    model = Counting()
    found = predict(IMAGE, model, **SETTINGS, compute=False)
    assert model.windows == 1  # the trial
    wanted = found.compute()
    whole, model.windows = model.windows - 1, 0
    part = found[:, 30:40, 60:90].compute()
    np.testing.assert_array_equal(part, wanted[:, 30:40, 60:90])
    assert 0 < model.windows < whole / 3


def test_names_say_what_and_are_the_same_for_the_same():
    one, two = (predict(IMAGE, Counting(), **SETTINGS, compute=False) for _ in range(2))
    assert one.name == two.name
    assert one.name.startswith("predict-")
    other = predict(IMAGE, Counting(), **SETTINGS, compute=False, blend="constant")
    assert other.name != one.name


def test_the_model_of_a_lazy_array_stays_in_evaluation_mode():
    model = net().train()  # with much dropout
    wanted = predict(IMAGE, model, **SETTINGS).compute()
    found = predict(IMAGE, model, **SETTINGS, compute=False)
    assert model.training
    np.testing.assert_array_equal(found.compute(), wanted)
    assert model.training


@pytest.mark.parametrize("how", [{"out": "x.zarr"}, {"resume": True}, {"overwrite": True}], ids=str)
def test_what_says_how_to_write_is_refused_beside_a_lazy_array(how):
    with pytest.raises(UsageError, match="compute=False.*to_zarr"):
        predict(IMAGE, Counting(), **SETTINGS, compute=False, **how)


def dataset():
    there = [Patient(k, {"x": Record(array=IMAGE[: 60 + 20 * i])}) for i, k in enumerate("ab")]
    return Dataset("all", [there[0], Patient("gone", {"x": Record("gone.tiff")}), there[1]])


@pytest.mark.parametrize("compute", [True, False])
def test_a_dataset_gives_a_result_for_each_patient(compute, tmp_path):
    how = {"out": tmp_path} if compute else {"compute": False}
    masks = {"a": MASK[:2], "gone": None, "b": None}
    with dask.config.set(num_workers=2):
        found = predict(dataset(), Counting(), **SETTINGS, mask=masks, on_error="skip", **how)
    assert list(found) == ["a", "b"]
    assert [f.patient for f in found.failures] == ["gone"]
    if compute:
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "run.csv", "run.json"]
    for key, rows in (("a", 60), ("b", 80)):
        wanted = predict(IMAGE[:rows], Counting(), **SETTINGS, mask=masks[key])
        np.testing.assert_array_equal(found[key], wanted)


def test_an_image_that_does_not_open_is_an_error_unless_it_may_be_skipped():
    with pytest.raises(Exception, match=r"gone\.tiff") as caught:
        predict(dataset(), Counting(), **SETTINGS)
    assert any("'gone'" in note for note in caught.value.__notes__)
    with pytest.raises(DatasetError, match="none of the 1"):
        predict(dataset()[1:2], Counting(), **SETTINGS, on_error="skip")


def test_a_run_tells_its_blocks_as_events():
    seen = []
    unsubscribe = events.subscribe(seen.append)
    try:
        predict(IMAGE, Counting(), **SETTINGS)
    finally:
        unsubscribe()
    begun = [e for e in seen if isinstance(e, events.RunStarted)]
    done = [e for e in seen if isinstance(e, events.BlockDone)]
    assert [e.name for e in begun] == ["predict"]
    assert len(done) == begun[0].total > 3


def test_halves_of_a_killed_run_are_swept_up(tmp_path):
    out = tmp_path / "x.zarr"
    predict(IMAGE, Counting(), out=out, **SETTINGS)
    half = out / "0" / "c" / "0.1.partial"
    half.write_bytes(b"half")
    predict(IMAGE, Counting(), out=out, resume=True, **SETTINGS)
    assert not list(out.rglob("*.partial"))
