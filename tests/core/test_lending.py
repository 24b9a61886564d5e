"""Memory that is lent: writing into it changes nothing for its owner, and is noticed."""

from __future__ import annotations

import os

import numpy as np
import pytest

from daskdmed.core import lending

pytestmark = pytest.mark.skipif(
    not lending.available(), reason="this system has no memory that can be lent"
)
SHAPE = (50, 40, 3)


@pytest.fixture
def memory():
    found = lending.memory(SHAPE, np.uint8)
    found.array[...] = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 251
    return found


def test_what_is_lent_is_the_array_and_nothing_is_copied(memory):
    part = memory.lend(memory.array[10:20, 3:])
    np.testing.assert_array_equal(part, memory.array[10:20, 3:])
    assert part.strides == memory.array[10:20, 3:].strides
    assert part.flags.writeable
    memory.array[12, 5] = 255  # the owner's values are seen, so it is no copy
    np.testing.assert_array_equal(part[2, 2], [255] * 3)


def test_the_owner_does_not_see_what_is_written_and_hears_of_it(memory):
    before = memory.array.copy()
    part = memory.lend(memory.array)
    assert int(part.sum()) == int(before.sum())
    del part
    assert memory.is_intact()
    part = memory.lend(memory.array)
    part[-1, -1, -1] += 1  # one byte
    np.testing.assert_array_equal(memory.array, before)
    del part
    assert not memory.is_intact()
    assert not memory.is_intact()  # and it stays so


def test_torch_that_heeds_no_flags_is_noticed_too(memory):
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(memory.lend(memory.array))
    assert not memory.is_intact()  # it is still held
    tensor.add_(1)
    del tensor
    assert not memory.is_intact()
    assert memory.array[0, 0, 0] == 0


def test_any_view_of_what_is_lent_counts_as_held(memory):
    view = memory.lend(memory.array)[3].T[::-1]
    assert not memory.is_intact()
    del view
    assert memory.is_intact()


def test_memory_that_was_written_into_is_as_good_as_new_when_it_is_used_again():
    lending._pool.clear()
    memory = lending.memory(SHAPE, np.uint8)
    where = memory.array.ctypes.data
    memory.lend(memory.array)[...] = 9
    del memory
    assert lending.spare_bytes() > 0
    again = lending.memory(SHAPE, np.uint8)
    assert again.array.ctypes.data == where
    again.array[...] = 4
    assert (again.lend(again.array) == 4).all()
    assert again.is_intact()


def test_memory_is_not_used_again_while_anything_of_it_is_held():
    lending._pool.clear()
    memory = lending.memory(SHAPE, np.uint8)
    memory.array[...] = 1
    kept = memory.lend(memory.array)[:2]
    del memory
    assert lending.spare_bytes() == 0
    other = lending.memory(SHAPE, np.uint8)
    other.array[...] = 2
    assert (kept == 1).all()


def test_what_is_written_late_by_who_kept_it_is_gone_when_the_memory_is_used_again():
    lending._pool.clear()
    memory = lending.memory(SHAPE, np.uint8)
    memory.array[...] = 1
    kept = memory.lend(memory.array)
    assert not memory.is_intact()
    memory.is_intact()
    del memory
    kept[...] = 9
    del kept
    again = lending.memory(SHAPE, np.uint8)
    again.array[...] = 4
    assert (again.lend(again.array) == 4).all()


def test_memory_that_was_found_intact_is_not_looked_through_once_more(monkeypatch):
    lending._pool.clear()
    memory = lending.memory(SHAPE, np.uint8)
    assert memory.lend(memory.array).size
    assert memory.is_intact()
    looked = []
    monkeypatch.setattr(lending._Pages, "written", lambda self: looked.append(1))
    del memory
    assert lending.spare_bytes() > 0
    assert not looked


@pytest.mark.parametrize("missing", ["memfd_create", "pread"])
def test_a_system_that_cannot_lend_says_so(monkeypatch, missing):
    def refused(*args):
        raise OSError(1, "Operation not permitted")

    lending.available.cache_clear()
    monkeypatch.setattr(os, missing, refused)
    try:
        assert not lending.available()
        assert lending.memory(SHAPE, np.uint8) is None
    finally:
        lending.available.cache_clear()


def test_without_room_there_is_none_and_what_cannot_be_told_is_not_intact(memory, monkeypatch):
    def refused(*args):
        raise OSError(24, "Too many open files")

    lending._pool.clear()
    monkeypatch.setattr(os, "memfd_create", refused)
    assert lending.memory(SHAPE, np.uint8) is None
    monkeypatch.setattr(os, "open", refused)
    assert not memory.is_intact()
