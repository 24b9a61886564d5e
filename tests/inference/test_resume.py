"""Interrupted, repeated, replaced, and distributed runs."""

from __future__ import annotations

import os
import pickle

import dask.array as da
import numpy as np
import pytest
import torch
import zarr

from daskdmed import heatmap
from daskdmed.errors import StoreError, TileError, UsageError
from daskdmed.store.location import Location


class Model:
    """Fails at its n-th call; what it computes does not depend on that."""

    def __init__(self, fail_at=None, error=ValueError):
        self.calls, self.fail_at, self.error = 0, fail_at, error

    def __dask_tokenize__(self):
        return "weighted"

    def __call__(self, windows):
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error("a cosmic ray")
        return windows.reshape(len(windows), -1).mean(1, dtype=np.float32)


@pytest.fixture
def image():
    return da.from_array(np.arange(300.0 * 200).reshape(300, 200), chunks=64, name="numbers")


def contents(path):
    """Every file of a store, by name."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and not p.name.endswith(".partial")
    }


def run(image, model, out, **keywords):
    return heatmap(image, model, **{"kernel_size": 16, "block_windows": 3, "out": out, **keywords})


def test_a_failed_run_resumes_to_the_identical_store(image, tmp_path):
    whole, broken = tmp_path / "whole.zarr", tmp_path / "broken.zarr"
    expected = run(image, Model(), whole).compute()
    with pytest.raises(StoreError, match="a cosmic ray") as caught:
        run(image, Model(fail_at=30), broken)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "pixels [" in str(caught.value)
    assert "resume=True" in str(caught.value)
    done = zarr.open_group(broken, mode="r")["done"][...]
    assert 0 < done.sum() < done.size
    again = Model()
    found = run(image, again, broken, resume=True)
    np.testing.assert_array_equal(found.compute(), expected)
    assert contents(broken) == contents(whole)
    full = Model()
    run(image, full, tmp_path / "other.zarr")
    assert 1 < again.calls < full.calls  # the finished blocks were not computed again


def test_errors_of_images_stay_what_they_are(image, tmp_path):
    def unreadable(block):
        raise TileError("a tile is torn", uri="slide.tif", level=0, tile=(3, 4))

    lazy = image.map_blocks(unreadable, dtype=image.dtype, meta=np.empty((0, 0), image.dtype))
    with pytest.raises(TileError) as caught:
        run(lazy, Model(), tmp_path / "a.zarr")
    assert caught.value.tile == (3, 4)
    notes = " ".join(caught.value.__notes__)
    assert "pixels [" in notes
    assert "0 of" in notes


def test_a_finished_run_resumes_to_nothing(image, tmp_path):
    out = tmp_path / "a.zarr"
    run(image, Model(), out)
    before = contents(out)
    model = Model()
    run(image, model, out, resume=True)
    assert model.calls == 1  # the probe
    assert contents(out) == before


def test_resume_starts_where_nothing_is(image, tmp_path):
    out = tmp_path / "new" / "a.zarr"
    assert np.isfinite(run(image, Model(), out, resume=True).compute()).all()


def test_what_is_there_is_not_touched_without_being_asked(image, tmp_path):
    out = tmp_path / "a.zarr"
    run(image, Model(), out)
    before = contents(out)
    with pytest.raises(StoreError, match=r"resume=True .* overwrite=True"):
        run(image, Model(), out)
    assert contents(out) == before
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "precious.csv").write_text("1")
    for keywords in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(StoreError, match="no Zarr group"):
            run(image, Model(), folder, **keywords)
        with pytest.raises(StoreError, match="a file"):
            run(image, Model(), folder / "precious.csv", **keywords)
    assert (folder / "precious.csv").read_text() == "1"
    foreign = tmp_path / "foreign.zarr"
    zarr.create_group(foreign)
    with pytest.raises(StoreError, match="nothing to resume"):
        run(image, Model(), foreign, resume=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stride": 8}, "stride"),
        ({"edge": "shift"}, "edge"),
        ({"block_windows": (5, 4)}, "block_windows"),
        ({"mask": np.eye(4)}, "mask"),
        ({"model": lambda w: w.mean(axis=(1, 2)) + 1}, "model"),
        ({"image": da.ones((300, 200), dtype=int)}, "image"),
    ],
)
def test_other_parameters_are_refused_by_name(image, tmp_path, change, named):
    out = tmp_path / "a.zarr"
    run(image, Model(), out)
    before = contents(out)
    arguments = {"image": image, "model": Model(), "out": out, **change}
    with pytest.raises(StoreError, match=rf"{named}: the store has .*, this call"):
        run(**arguments, resume=True)
    assert contents(out) == before


def test_weights_are_part_of_the_parameters(image, tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 1))
    out = tmp_path / "a.zarr"
    run(image, net, out)
    run(image, net, out, resume=True)
    with torch.no_grad():
        net[1].bias += 1
    with pytest.raises(StoreError, match="model: the store has"):
        run(image, net, out, resume=True)


def test_the_old_result_stays_until_the_new_one_is_finished(image, tmp_path):
    out = tmp_path / "a.zarr"
    run(image, Model(), out)
    before = contents(out)
    with pytest.raises(StoreError):
        run(image * 2, Model(fail_at=20), out, overwrite=True)
    assert contents(out) == before
    model = Model()
    found = run(image * 2, model, out, overwrite=True, resume=True)
    fresh = Model()
    other = run(image * 2, fresh, tmp_path / "b.zarr")
    assert model.calls < fresh.calls  # went on with the interrupted replacement
    np.testing.assert_array_equal(found.compute(), other.compute())
    assert contents(out) == contents(tmp_path / "b.zarr")
    run(image, Model(), out, overwrite=True)
    assert contents(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_a_crash_between_the_two_renames_is_mended(tmp_path, image):
    out = tmp_path / "a.zarr"
    run(image, Model(), out)
    os.rename(out, tmp_path / ".a.zarr.old")
    assert Location.of(out).holds_group()
    run(image, Model(), out, resume=True)


def test_a_run_killed_at_its_first_write(tmp_path, image):
    out = tmp_path / "a.zarr"
    out.mkdir()
    (out / "zarr.json.123.partial").write_text("{")
    assert np.isfinite(run(image, Model(), out, resume=True).compute()).all()


def test_stores_that_are_no_folders(image):
    expected = run(image, Model(), None).compute()
    store = zarr.storage.MemoryStore()
    with pytest.raises(StoreError, match="a cosmic ray"):
        run(image, Model(fail_at=20), store)
    np.testing.assert_array_equal(run(image, Model(), store, resume=True).compute(), expected)
    with pytest.raises(StoreError, match="overwrite"):
        run(image, Model(), store)
    np.testing.assert_array_equal(run(image, Model(), store, overwrite=True).compute(), expected)


def test_urls(image):
    pytest.importorskip("fsspec")
    url = "memory://results/a.zarr"
    expected = run(image, Model(), url).compute()
    with pytest.raises(StoreError, match="resume=True"):
        run(image, Model(), url)
    doubled = run(image * 2, Model(), url, overwrite=True)
    np.testing.assert_allclose(doubled.compute(), expected * 2)
    np.testing.assert_allclose(run(image * 2, Model(), url, resume=True).compute(), expected * 2)


def stores():
    """What lies in the memory of one process, however it is named."""
    from zarr.storage import FsspecStore, WrapperStore

    of_url = FsspecStore.from_url("memory://results/c.zarr")
    return [
        ("memory://results/b.zarr", True),
        ("simplecache::memory://results/b.zarr", True),
        (of_url, True),
        (WrapperStore(of_url), True),
        (zarr.storage.MemoryStore(), True),
        (FsspecStore.from_url("file:///data"), False),
        ("s3://bucket/a.zarr", False),
        ("/data/memory.zarr", False),
    ]


def test_what_other_processes_cannot_see():
    pytest.importorskip("fsspec")
    for target, hidden in stores():
        assert Location(target).in_memory == hidden, target


@pytest.mark.parametrize("number", [0, 2])
def test_a_result_in_memory_says_so_in_another_process(image, number, monkeypatch):
    from daskdmed.store import homestore
    from daskdmed.store.results.finished import open_heatmap

    out = stores()[number][0]
    found = run(image, Model(), out)
    expected = found.compute()
    kept = open_heatmap(out).lazy()
    # pickled and back in this process it is what it was
    sent = pickle.dumps((found, kept))
    for again in pickle.loads(sent):
        np.testing.assert_array_equal(again.compute(scheduler="sync"), expected)
    monkeypatch.setattr(homestore, "_ID", "another process")
    for there in pickle.loads(sent):
        with pytest.raises(StoreError, match="lies in the memory of process.*out="):
            there.compute(scheduler="sync")
    # zarr's own store takes its content along
    plain = pickle.loads(pickle.dumps(run(image, Model(), zarr.storage.MemoryStore())))
    np.testing.assert_array_equal(plain.compute(scheduler="sync"), expected)


def test_clusters_cannot_write_into_this_process(image):
    from daskdmed import export_heatmap
    from daskdmed.store import add_pyramid

    url = "memory://results/d.zarr"
    result = run(image, Model(), url)
    for call in (
        lambda client: run(image, Model(), url, client=client, overwrite=True),
        lambda client: add_pyramid(url, client=client),
        lambda client: export_heatmap(result, "memory://results/e.ome.zarr", client=client),
    ):
        with pytest.raises(UsageError, match="this process's memory.*out="):
            call(object())  # no client is asked for anything


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_target_that_may_not_be_written(image, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="cannot create"):
            run(image, Model(), tmp_path / "a.zarr")
    finally:
        tmp_path.chmod(0o700)
