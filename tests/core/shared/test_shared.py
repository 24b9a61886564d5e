"""Memory that other processes map: seen as it is, never overwritten while read, never left."""

from __future__ import annotations

import base64
import contextlib
import gc
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from daskdmed.core.shared import mapping, segments
from tests.waiting import until

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="files without names are Linux's"
)
ROWS = 200


class Owner:
    """Another process, see `tests.core.shared.owner`."""

    def __init__(self, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.core.shared.owner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return pickle.loads(base64.b64decode(self.process.stdout.readline()))

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owner():
    other = Owner()
    yield other
    other.kill()


@pytest.fixture(autouse=True)
def nothing_is_left():
    mapping.clear()
    segments.clear()
    before = files()
    yield
    gc.collect()
    mapping.clear()
    segments.clear()
    assert files() == before


def files():
    """Open files of this process that are shared memory, and names of such."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
    named = [p.name for p in Path("/dev/shm").glob("psm_*")]
    return sorted(name for name in found if "memfd:daskdmed" in name), named


def test_another_process_is_read_by_reference(owner):
    array = mapping.attach(owner.ask("a", ROWS, 7))
    assert array.shape == (ROWS - 1, 500)
    assert (array == 7).all()
    assert not array.flags.writeable


def test_what_somebody_reads_is_not_used_again(owner):
    first = owner.ask("a", ROWS, 1)
    array = mapping.attach(first)
    owner.ask("a")  # it has no array there any more, as when Dask has let go of a task
    second = owner.ask("b", ROWS, 2)
    assert second.nonce != first.nonce
    assert (array == 1).all()
    del array
    owner.ask("b")
    third = owner.ask("c", ROWS, 3)
    assert third.nonce in {first.nonce, second.nonce}, "warm pages are used again"
    assert (mapping.attach(third) == 3).all()


def test_a_handle_of_an_earlier_use_leads_nowhere(owner):
    first = owner.ask("a", ROWS, 1)
    owner.ask("a")
    second = owner.ask("b", ROWS, 2)
    assert second.address == first.address
    assert mapping.attach(first) is None
    array = mapping.attach(second)
    assert mapping.attach(first) is None
    assert (array == 2).all()


def test_pixels_outlive_a_killed_owner(owner):
    handle = owner.ask("a", ROWS, 5)
    array = mapping.attach(handle)
    owner.kill()
    assert (array == 5).all()
    again = mapping.attach(handle)  # by the mapping that is still there
    assert (again == 5).all()
    del array, again
    mapping.prune()
    assert mapping.attach(handle) is None


def test_a_killed_reader_gives_its_memory_back(owner):
    handle = owner.ask("a", ROWS, 5)
    code = (
        "import pickle, sys; from daskdmed.core.shared import mapping\n"
        f"array = mapping.attach(pickle.loads({pickle.dumps(handle)!r}))\n"
        "print(array.sum(), flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert int(reader.stdout.readline()) == 5 * (ROWS - 1) * 500
    owner.ask("a")
    other = owner.ask("b", ROWS, 6)
    assert other.nonce != handle.nonce
    reader.kill()
    reader.communicate()
    until(lambda: owner.ask("c", ROWS, 6).nonce == handle.nonce)


def test_a_number_that_another_file_has_by_now_is_refused(owner, tmp_path):
    handle = owner.ask("a", ROWS, 5)
    with open(tmp_path / "some file", "wb") as file:
        file.write(bytes(5000))
        file.flush()
        elsewhere = handle._replace(address=(os.getpid(), file.fileno()))
        assert mapping.attach(elsewhere) is None
    mine = segments.Allocator(100).empty((100,), "u1")
    other = handle._replace(address=segments.handle_of(mine).address)
    assert mapping.attach(other) is None


def test_other_machines_are_not_reached(owner):
    handle = owner.ask("a", ROWS, 5)
    with dask.config.set({"daskdmed.machine": "another one"}):
        assert mapping.attach(handle) is None
    assert mapping.attach(handle) is not None


def test_what_may_not_be_opened_is_said_once(owner, monkeypatch, caplog):
    handle = owner.ask("a", ROWS, 5)

    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/proc/1/fd/3")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(mapping, "_refused", False)
    with caplog.at_level(logging.WARNING, "daskdmed.shared"):
        assert mapping.attach(handle) is None
        assert mapping.attach(handle) is None
    assert len(caplog.records) == 1
    assert "same user" in caplog.text


def test_arrays_of_an_allocator_lie_together():
    memory = segments.Allocator(3 * 1000)
    arrays = [memory.empty((10, 25), "<u4") for _ in range(3)]
    handles = [segments.handle_of(a) for a in arrays]
    assert len({h.address for h in handles}) == 1
    for number, array in enumerate(arrays):
        array[...] = number
    assert [int(mapping.attach(h).max()) for h in handles] == [0, 1, 2]
    more = memory.empty((5000, 5000), "u1")  # more than was expected
    assert segments.handle_of(more).address != handles[0].address
    own = memory.own(np.arange(12.0))
    assert np.array_equal(mapping.attach(segments.handle_of(own)), np.arange(12.0))
    assert memory.own(own) is own
    assert segments.handle_of(np.zeros(5)) is None
    assert memory.empty((0, 3), "u1").shape == (0, 3)


def test_without_shared_memory_blocks_are_private_and_it_is_said(monkeypatch, caplog):
    def full(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", full)
    monkeypatch.setattr(segments, "_owner", segments._Owner())
    with caplog.at_level(logging.WARNING, "daskdmed.shared"):
        for _ in range(2):
            array = segments.Allocator(100).empty((100,), "u1")
            array[...] = 1
            assert segments.handle_of(array) is None
    assert len(caplog.records) == 1
    assert "ulimit" in caplog.text
    assert "shm-size" in caplog.text


def test_what_could_not_be_mapped_closes_no_file_of_others(monkeypatch):
    monkeypatch.setattr(segments, "_owner", segments._Owner())

    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    closed, close = [], os.close
    monkeypatch.setattr(segments.mmap, "mmap", refuse)
    monkeypatch.setattr(os, "close", lambda file: (closed.append(file), close(file)))
    monkeypatch.setattr(segments._Memfd.__del__, "__defaults__", (os.close,))
    assert segments.handle_of(segments.Allocator(100).empty((100,), "u1")) is None
    gc.collect()
    assert len(closed) == 1


def test_a_fork_does_not_unlock_what_its_parent_reads(owner):
    first = owner.ask("a", ROWS, 1)
    array = mapping.attach(first)
    child = os.fork()
    if not child:
        del array
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    owner.ask("a")
    assert owner.ask("b", ROWS, 2).nonce != first.nonce
    assert (array == 1).all()


def test_memory_with_a_name_where_the_system_has_no_other(monkeypatch):
    named = Owner(DASK_DASKDMED__SHARED_MEMORY="named")
    try:
        handle = named.ask("a", ROWS, 7)
        (name,) = handle.address
        assert Path("/dev/shm", name).exists()
        array = mapping.attach(handle)
        assert (array == 7).all()
        named.ask("a")
        assert not Path("/dev/shm", name).exists(), "it is gone with its last use"
        assert (array == 7).all()
        assert mapping.attach(handle) is not None, "by the mapping that is still there"
        named.ask("b", ROWS, 8)
    finally:
        named.kill()
    del array
    until(lambda: not files()[1])  # the tracker of the killed process removes names


def test_a_full_folder_of_names_is_no_crash(monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(segments, "_owner", segments._Owner())
    with dask.config.set({"daskdmed.shared-memory": "named"}):
        array = segments.Allocator(100).empty((100,), "u1")
    assert segments.handle_of(array) is None
    assert "No space left" in caplog.text


class Readers(RuleBasedStateMachine):
    """Whoever comes and goes: an array that was attached keeps its values."""

    arrays = Bundle("arrays")
    handles = Bundle("handles")
    mapped = Bundle("mapped")

    def __init__(self):
        super().__init__()
        self.number = 0
        self.held = {}

    @rule(target=arrays, rows=st.sampled_from([1, 3, 40]))
    def write(self, rows):
        self.number = self.number % 250 + 1
        array = segments.Allocator(rows * 4096).empty((rows, 4096), "u1")
        array[...] = self.number
        return [array]

    @rule(target=handles, array=arrays)
    def tell(self, array):
        return segments.handle_of(array[0]), int(array[0][0, 0])

    @rule(array=consumes(arrays))
    def let_go(self, array):
        array.clear()

    @rule(target=mapped, handle=handles)
    def read(self, handle):
        array = mapping.attach(handle[0])
        key = object()
        if array is not None:
            self.held[key] = array, handle[1]
        return key

    @rule(key=consumes(mapped))
    def forget(self, key):
        self.held.pop(key, None)

    @rule()
    def tidy(self):
        mapping.prune()
        segments.clear()

    @invariant()
    def values_stay(self):
        for array, value in self.held.values():
            assert (array == value).all()

    def teardown(self):
        self.held.clear()


def test_arrays_keep_their_values_whoever_comes_and_goes():
    options = settings(max_examples=25, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(Readers, settings=options)
