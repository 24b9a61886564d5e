"""Replacing a store: readers see the old one or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import Dataset, Patient, Record, export_heatmap, heatmap, open_slide
from daskdmed.core import files
from daskdmed.core.files import exchange, new_file, write_failure
from daskdmed.errors import ImageError, StoreError
from daskdmed.samples import make_slide
from daskdmed.store import add_pyramid, location, open_heatmap
from daskdmed.store.location import Location, file_name, file_names, result_path


def write(target, value, extent=40):
    """A store whose every chunk and whose metadata say which one it is."""
    group = zarr.create_group(target, attributes={"value": value}, overwrite=True)
    array = group.create_array("0", shape=(extent, extent), chunks=(10, 10), dtype="int64")
    array[...] = value
    return target


def read(target):
    """Which store it is; None when there is none; an error when it is half of one."""
    try:
        group = zarr.open_group(target, mode="r")
    except FileNotFoundError:
        return None
    values = set(np.unique(group["0"][...]).tolist())
    assert values == {group.attrs["value"]}, "parts of two stores, or holes"
    return values.pop()


def watch(path, ready, stop, found):
    """Read the root metadata and one chunk by name, over and over."""
    seen = set()
    metadata, chunk = Path(path) / "zarr.json", Path(path) / "0" / "c" / "1" / "1"
    while not stop.is_set():
        try:
            seen.add(len(metadata.read_bytes()))
            seen.add(-len(chunk.read_bytes()))
        except OSError as error:
            seen.add(type(error).__name__)
        ready.set()
    found.put(seen)


def test_a_reader_never_finds_nothing(tmp_path):
    out = Location.of(write(tmp_path / "a.zarr", 100))  # not 0: chunks of zeros are not written
    probe = (tmp_path / "x", tmp_path / "y")
    for p in probe:
        p.mkdir()
    if not exchange(*probe):
        pytest.skip("this file system cannot exchange two folders")
    context = multiprocessing.get_context("spawn")
    ready, stop, found = context.Event(), context.Event(), context.Queue()
    reader = context.Process(target=watch, args=(str(out), ready, stop, found))
    reader.start()
    ready.wait()  # a new process may take longer to begin than all that follows
    for value in range(1, 20):
        write(out.staging.path, value)
        out.replace(out.staging)
        assert read(out.target) == value
    stop.set()
    seen = found.get()
    reader.join()
    assert seen
    assert not {s for s in seen if isinstance(s, str)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "x", "y"]


class Crash(BaseException):
    """A process that is killed."""


def crashing(monkeypatch, module, name, at):
    """The at-th call from now on is never made, and none after it."""
    calls = iter(range(10_000))
    original = getattr(module, name)

    def counted(*args, **keywords):
        if next(calls) >= at:
            raise Crash
        return original(*args, **keywords)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("at", range(4))
def test_a_crash_while_a_folder_is_replaced(tmp_path, monkeypatch, can_exchange, at):
    out = Location.of(write(tmp_path / "a.zarr", 1))
    write(out.staging.path, 2)
    if not can_exchange:
        monkeypatch.setattr(location, "exchange", lambda one, other: False)
    try:
        with monkeypatch.context() as patch:
            crashing(patch, os, "rename", at)
            out.replace(out.staging)
    except Crash:
        pass
    assert out.holds_group()
    assert read(out.target) in (1, 2)
    out.staging.remove()
    write(out.staging.path, 3)
    out.replace(out.staging)
    assert read(out.target) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_crash_while_a_store_is_removed_leaves_no_holes(tmp_path, monkeypatch):
    out = Location.of(write(tmp_path / "a.zarr", 1))

    def crash(path, *args, **keywords):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(location.shutil, "rmtree", crash)
        with pytest.raises(Crash):
            out.remove()
    assert read(out.target) is None
    write(out.path, 2)
    out.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def bucket():
    fs = fsspec.filesystem("memory")
    yield "memory://bucket/results"
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


def test_the_order_in_which_an_object_store_is_replaced(bucket, monkeypatch):
    """Killed before any of its operations, a reader sees the old, nothing, or the new."""
    from fsspec.implementations.memory import MemoryFileSystem as Memory

    states = []
    for at in range(200):
        out = Location.of(f"{bucket}/{at}.zarr")
        write(out.target, 1, extent=20)
        write(out.staging.target, 2, extent=20)
        with monkeypatch.context() as patch:
            calls = iter(range(10_000))

            def counted(original, calls=calls, at=at):
                def call(*args, **keywords):
                    if next(calls) >= at:
                        raise Crash
                    return original(*args, **keywords)

                return call

            for name in ("rm_file", "cp_file", "pipe_file", "rm", "_rm"):
                patch.setattr(Memory, name, counted(getattr(Memory, name)))
            crashed = False
            try:
                out.replace(out.staging)
            except Crash:
                crashed = True
        states.append(read(out.target))
        began = states[-1] != 1
        # the next run mends it
        assert out.holds_group()
        assert read(out.target) == (2 if began else read(out.target))
        assert not fsspec.filesystem("memory").exists(f"/bucket/results/.{at}.zarr.ready")
        if not crashed:
            break
    assert states[0] == 1
    assert states[-1] == 2
    order = [s for i, s in enumerate(states) if i == 0 or s != states[i - 1]]
    assert order == [1, None, 2]
    assert not crashed


def test_store_objects_are_their_own_staging():
    store = zarr.storage.MemoryStore()
    out = Location.of(write(store, 1))
    assert out.staging == out
    out.replace(out.staging)
    assert read(store) == 1
    out.remove()
    assert read(store) is None


def test_half_written_objects_are_swept_away(tmp_path):
    def mean(windows):
        return windows.mean(axis=(1, 2))

    out = tmp_path / "a.zarr"
    heatmap(np.ones((64, 64)), mean, kernel_size=8, out=out)
    files = sorted(out.rglob("*"))
    (out / "0" / "c" / "0" / "0.0123.partial").write_bytes(b"half")
    heatmap(np.ones((64, 64)), mean, kernel_size=8, out=out, resume=True)
    assert sorted(out.rglob("*")) == files
    Location.of("memory://nothing").sweep()


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Location.of("a.zarr").path == tmp_path / "a.zarr"
    assert Location.of(f"file://{tmp_path}/a.zarr").path == tmp_path / "a.zarr"
    assert Location.of(zarr.storage.LocalStore(tmp_path / "a.zarr")).path == tmp_path / "a.zarr"
    assert Location.of("memory://b/a.zarr").staging.target == "memory://b/.a.zarr.new"
    assert Location.of("memory://b/a.zarr").in_memory
    with pytest.raises(StoreError, match="cannot open it as a Zarr v3 group"):
        Location.of("nothing.zarr").open()


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with new_file(target) as partial:
        partial.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    with pytest.raises(StoreError, match="overwrite=True replaces it"), new_file(target):
        pass
    with pytest.raises(ValueError, match="broken"), new_file(target, overwrite=True) as partial:
        partial.write_text("two")
        raise ValueError("broken")
    with pytest.raises(StoreError, match=r"disk is full.*unchanged"):
        with new_file(target, overwrite=True):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ImageError), new_file(target, overwrite=True):
        raise ImageError("not a matter of writing")
    assert target.read_text() == "one"
    with new_file(target, overwrite=True) as partial:
        partial.write_text("two")
    assert target.read_text() == "two"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
    with pytest.raises(StoreError, match="is a folder"), new_file(tmp_path, overwrite=True):
        pass
    with pytest.raises(StoreError, match="local paths only"), new_file("memory://a.txt"):
        pass
    with pytest.raises(StoreError, match="cannot be written"), new_file(target / "b.txt"):
        pass


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """One of the two files whole, whichever ends later; never parts of both."""
    target = tmp_path / "a.json"
    with (
        new_file(target, overwrite=True) as one,
        new_file(target, overwrite=True) as other,
        open(one, "w") as first,
        open(other, "w") as second,
    ):
        assert one != other
        for _ in range(3):
            first.write("1" * 10_000)
            second.write("2" * 10_000)
    assert target.read_text() == "1" * 30_000  # the outer block ends last
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_exchange_says_when_it_cannot(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="No such file"):
        if not exchange(tmp_path / "a", tmp_path / "b"):
            raise OSError(errno.ENOENT, "No such file")
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *args, **keywords: object())
    assert not exchange(tmp_path / "a", tmp_path / "b")


def test_remedies():
    assert "read-only" in str(write_failure("a", OSError(errno.EROFS, "no"), "then"))
    assert str(write_failure("a", ValueError("odd"))) == "a cannot be written (ValueError: odd)"


def test_a_heatmap_on_a_full_disk_resumes(tmp_path, monkeypatch):
    """Whichever object is the first that has no room: a clear error, and nothing lost."""
    image = np.arange(64.0 * 64).reshape(64, 64)

    def run(out, **keywords):
        def mean(windows):
            return windows.mean(axis=(1, 2), dtype=np.float32)

        return heatmap(image, mean, kernel_size=8, block_windows=4, out=out, **keywords)

    def contents(path):
        return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}

    whole = tmp_path / "whole.zarr"
    run(whole)
    put = zarr.storage.LocalStore.set
    for room in range(8):
        out = tmp_path / f"{room}.zarr"
        left = iter(range(room))

        async def limited(store, key, value, left=left):
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return await put(store, key, value)

        with monkeypatch.context() as patch:
            patch.setattr(zarr.storage.LocalStore, "set", limited)
            with pytest.raises(StoreError, match="No space left on device"):
                run(out)
        run(out, resume=True)
        assert contents(out) == contents(whole)


def test_names_of_results_are_safe_and_differ():
    texts = ["a", "A", "a/b", "a%2Fb", "..", ".a", "%2Ea", "a.", "a%2E", "a ", "50%", "50%25", "ü"]
    names = [file_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        assert not set(name) & set('/\\:*?"<>|')
        assert not name.startswith(".")
        assert not name.endswith((".", " "))
    assert file_name("p 1-b.c") == "p 1-b.c"
    assert result_path("s3://bucket/maps/", "a/b", "wsi") == "s3://bucket/maps/a%2Fb/wsi.zarr"
    assert result_path(Path("maps"), "a", "b.c") == "maps/a/b.c.zarr"


IDS = st.one_of(
    st.text(max_size=80),
    st.text("aA%~. e\u00e9\u60a3", max_size=300),
    st.from_regex(r"[ab]{0,170}~[0-9a-f]{16}", fullmatch=True),
)


@given(st.lists(IDS, unique=True, max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_two_ids_meet_and_every_name_fits(ids):
    alone = [file_name(text) for text in ids]
    assert len(set(alone)) == len(ids)
    together = file_names(ids)
    assert len({name.casefold() for name in together.values()}) == len(ids)
    for text, name in [*zip(ids, alone, strict=True), *together.items()]:
        # room for suffixes, and for siblings that are written first
        assert len(f".{name}-part.geojson.{'0' * 32}.partial".encode()) <= 255
        assert not set(name) & set('/\\:*?"<>|')
        assert text or not name


def test_long_and_alike_ids_have_results_of_their_own(tmp_path):
    long = "\u60a3\u8005\u7f16\u53f7" * 9
    ids = [long, long + "x", "case", "Case", "CASE", "short"]
    arrays = {name: np.full((64, 64, 3), i, np.uint8) for i, name in enumerate(ids)}
    data = Dataset("d", [Patient(n, {"wsi": Record(array=a)}) for n, a in arrays.items()])
    found = heatmap(data, lambda x: x.mean((1, 2, 3)), kernel_size=64, out=tmp_path / "out")
    assert {name: np.asarray(a).item() for name, a in found.items()} == dict(
        zip(ids, map(float, range(6)), strict=True)
    )
    folders = [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert len({name.casefold() for name in folders}) == len(ids)
    assert "short" in folders


STORES = {
    "zip": lambda folder: zarr.storage.ZipStore(folder / "a.zip", mode="w"),
    "zip path": lambda folder: folder / "a.zarr.zip",
    "ozx path": lambda folder: folder / "a.ozx",
    "zip url": lambda folder: f"zip://a.zarr::{folder / 'a.zip'}",
    "http url": lambda folder: "https://example.invalid/a.zarr",
    "read-only folder": lambda folder: zarr.storage.LocalStore(folder / "a", read_only=True),
    "read-only memory": lambda folder: zarr.storage.MemoryStore(read_only=True),
}


@pytest.mark.parametrize("kind", STORES)
def test_places_that_cannot_be_written_block_by_block(tmp_path, kind):
    computed = []

    def model(windows):
        computed.append(len(windows))
        return windows.mean((1, 2, 3))

    image = np.zeros((128, 128, 3), np.uint8)
    with pytest.raises(StoreError, match=r"read-only|zip|is for reading|ZipStore"):
        heatmap(image, model, kernel_size=64, out=STORES[kind](tmp_path))
    assert not computed


def test_stores_of_every_kind_that_can_be_written(tmp_path):
    image = np.arange(128 * 128 * 3, dtype=np.uint8).reshape(128, 128, 3)
    wrapped = AsyncFileSystemWrapper(fsspec.filesystem("memory"), asynchronous=True)
    stores = [
        zarr.storage.MemoryStore(),
        zarr.storage.LocalStore(tmp_path / "local"),
        zarr.storage.FsspecStore(wrapped, path="/of-a-test/a.zarr"),
        f"memory://{tmp_path.name}/a.zarr",
        str(tmp_path / "a.zarr"),
    ]
    expected = None
    for store in stores:
        found = np.asarray(heatmap(image, lambda x: x.mean((1, 2, 3)), kernel_size=64, out=store))
        expected = found if expected is None else expected
        assert np.array_equal(found, expected)
    in_memory = [Location.of(store).in_memory for store in stores]
    assert in_memory == [True, False, True, True, False]


def test_a_packed_result_opens(tmp_path):
    image = np.arange(128 * 128 * 3, dtype=np.uint8).reshape(128, 128, 3)
    found = heatmap(image, lambda x: x.mean((1, 2, 3)), kernel_size=64, out=tmp_path / "a.zarr")
    shutil.make_archive(str(tmp_path / "a.zarr"), "zip", tmp_path / "a.zarr")
    packed = open_heatmap(tmp_path / "a.zarr.zip")
    assert np.array_equal(packed.lazy().compute(), found.compute())
    with pytest.raises(StoreError, match="zip"):
        add_pyramid(tmp_path / "a.zarr.zip")


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    image = np.zeros((128, 128, 3), np.uint8)
    heatmap(image, lambda x: x.mean((1, 2, 3)), kernel_size=64, out="~/a.zarr")
    assert open_heatmap("~/a.zarr").counts == (2, 2)
    add_pyramid("~/a.zarr", smallest=1)
    export_heatmap("~/a.zarr", "~/a.geojson", kind="tiles")
    export_heatmap("~/a.zarr", "~/a.tif")
    made = make_slide("~/a.svs", 64, tile=16)
    open_slide("~/a.svs").to_ome_zarr("~/b.zarr")
    assert made.class_map.shape == (32, 32)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"a.zarr", "a.geojson", "a.tif", "a.svs", "a.mask.npy", "b.zarr"}


@pytest.mark.parametrize("content", ["[1]", '{"zarr_format": {}}', "3", "\\x00", '{"a": ['])
def test_groups_whose_metadata_make_no_sense(tmp_path, content):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text(content)
    with pytest.raises(StoreError, match=r"a\.zarr"):
        Location.of(tmp_path / "a.zarr").open("r", zarr_format=None)
