"""Writing in the calling thread: what arrives is what zarr would have written."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from daskdmed.store.results import inline

SHAPE, CHUNK = (3, 70, 50), (3, 16, 16)


def array_in(store, **options):
    group = zarr.create_group(store)
    options = {"chunks": CHUNK, "fill_value": np.nan, **options}
    return group.create_array("0", shape=SHAPE, dtype="f4", **options)


def keys():
    rows, columns = (range(0, n, c) for n, c in zip(SHAPE[1:], CHUNK[1:], strict=True))
    return [(slice(0, 3), slice(y, y + 16), slice(x, x + 16)) for y in rows for x in columns]


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "options",
    [{}, {"compressors": None}, {"chunks": (1, 8, 8), "shards": CHUNK}, {"filters": "auto"}],
    ids=["zstd", "raw", "sharded", "filters"],
)
def test_the_same_files_as_zarr(tmp_path, options):
    values = np.random.default_rng(0).random(SHAPE, np.float32)
    values[:, :16, :16] = np.nan  # an empty chunk has no file
    ours, theirs = (array_in(str(tmp_path / name), **options) for name in ("ours", "theirs"))
    for key in keys():
        inline.write(ours, key, values[key])
        theirs[key] = values[key]
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    assert len(files(tmp_path / "ours")) == 2 + len(keys()) - 1
    np.testing.assert_array_equal(ours[...], values)


def test_the_calling_threads_do_it_all(monkeypatch):
    array = array_in(MemoryStore())
    values = np.random.default_rng(1).random(SHAPE, np.float32)
    original, used = MemoryStore.set, set()

    async def noted(self, *args, **keywords):
        used.add(threading.current_thread().name)
        await original(self, *args, **keywords)

    monkeypatch.setattr(MemoryStore, "set", noted)
    with ThreadPoolExecutor(8, "writer") as pool:
        list(pool.map(lambda key: inline.write(array, key, values[key]), keys() * 5))
    assert used
    assert all(name.startswith("writer") for name in used)
    np.testing.assert_array_equal(array[...], values)


def test_in_a_thread_that_runs_a_loop():
    """A notebook's, or an async server's."""
    array = array_in(MemoryStore())

    async def within():
        inline.write(array, keys()[0], np.ones((3, 16, 16), np.float32))

    asyncio.run(within())
    assert (array[keys()[0]] == 1).all()


class Counting(WrapperStore):
    """A store of some other kind."""

    threads: set = set()

    async def set(self, key, value):
        self.threads.add(threading.current_thread())
        await super().set(key, value)


def test_other_stores_stay_with_zarrs_own_loop():
    array = array_in(Counting(MemoryStore()))
    Counting.threads.clear()
    inline.write(array, keys()[0], np.ones((3, 16, 16), np.float32))
    assert Counting.threads
    assert threading.current_thread() not in Counting.threads
    assert (array[keys()[0]] == 1).all()


def test_errors_arrive(tmp_path, monkeypatch):
    array = array_in(str(tmp_path / "a"))
    assert isinstance(array.store, LocalStore)

    async def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalStore, "set", full)
    with pytest.raises(OSError, match="No space left"):
        inline.write(array, keys()[0], np.ones((3, 16, 16), np.float32))
    monkeypatch.undo()
    inline.write(array, keys()[0], np.ones((3, 16, 16), np.float32))
    assert (array[keys()[0]] == 1).all()


def test_whole_chunks_go_to_the_store_without_zarrs_coroutines(tmp_path, monkeypatch):
    def refused(*args, **keywords):
        raise AssertionError("zarr was asked")

    values = np.random.default_rng(3).random(SHAPE, np.float32)
    for store in (MemoryStore(), LocalStore(tmp_path)):
        array = array_in(store)
        with monkeypatch.context() as patched:
            patched.setattr(type(array.async_array), "setitem", refused)
            for key in keys():
                inline.write(array, key, values[key])
            part = (slice(0, 3), slice(3, 16), slice(0, 16))
            for odd in ((part, values[part]), (keys()[0], np.full(CHUNK, np.nan, "f4"))):
                with pytest.raises(AssertionError, match="zarr was asked"):
                    inline.write(array, *odd)
        np.testing.assert_array_equal(array[...], values)


def test_a_codec_pipeline_of_the_users_own_is_used():
    array = array_in(MemoryStore())
    key = keys()[0]
    assert inline._encoded(array, key, np.ones(CHUNK, "f4")) is not None
    with zarr.config.set({"codec_pipeline.path": "elsewhere.Pipeline"}):
        assert inline._encoded(array, key, np.ones(CHUNK, "f4")) is None
