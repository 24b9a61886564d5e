from __future__ import annotations

import dask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskdmed.errors import BudgetError, UsageError
from daskdmed.persistence.budget import BASELINE, allot, check_workers, to_bytes

MIB = 1 << 20


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 32))
def test_an_allotment_stays_within_the_budget(budget, block):
    if budget // block < 2:
        with pytest.raises(BudgetError):
            allot(budget, block)
        return
    a = allot(budget, block)
    assert a.nbytes <= budget
    assert 1 <= a.slots < a.capacity
    # room to read ahead while groups that are partly used up linger
    assert a.group == 1 or 4 * a.group <= a.capacity - a.slots


def test_small_blocks_are_read_in_groups():
    assert allot(2048 * MIB, 48 * MIB).group == 2
    assert allot(2048 * MIB, 3 * MIB).group == 32
    assert allot(192 * MIB, 48 * MIB).group == 1


def test_too_small_a_budget_is_refused_with_numbers():
    with pytest.raises(
        BudgetError, match=r"60\.00 MiB holds 1 big chunks of 48\.00 MiB.*96\.00 MiB"
    ):
        allot(60 * MIB, 48 * MIB)


def test_what_workers_need_beside_the_budget():
    limits = [1000 * MIB, 500 * MIB]
    room = 400 * MIB - BASELINE  # of the smaller one, until it pauses at 80 %
    check_workers(2 * room, limits, 2, 0, 0)
    check_workers(2 * room - 4 * 10 * MIB - 6 * MIB, limits, 4, 10 * MIB, 6 * MIB)
    check_workers(1 << 60, [0, 1], 4, 10 * MIB, 6 * MIB)
    check_workers(1 << 60, [], 4, 10 * MIB, 6 * MIB)
    with pytest.raises(BudgetError) as refused:
        check_workers(2 * room, limits, 4, 10 * MIB, 6 * MIB)
    for number in (
        "worker's memory (500.00 MiB) 400.00 MiB can be used",
        f"{room // MIB}.00 MiB of big chunks",
        f"{BASELINE // MIB}.00 MiB of interpreter",
        "20.00 MiB for decoding",
        "3.00 MiB of small chunks",
        f"at most {2 * (room // MIB - 23)}.00 MiB",
    ):
        assert number in str(refused.value)
    with dask.config.set({"distributed.worker.memory.pause": False}):
        check_workers(2 * room, limits, 4, 10 * MIB, 6 * MIB)


def test_sizes():
    assert to_bytes("2 GiB") == 2 << 30
    assert to_bytes(123) == 123
    for bad in ("much", "-1 GiB", 0, None, "2 bananas"):
        with pytest.raises(UsageError, match="resident"):
            to_bytes(bad)


@given(st.integers(2, 10**6), st.integers(1, 1 << 27), st.integers(1, 10**6))
def test_what_a_plan_can_use(visits, block, slots):
    whole = allot(visits * block, block)
    part = whole.within(slots)
    assert part.slots == min(slots, whole.slots)
    assert part.slots < part.capacity <= min(whole.capacity, 2 * slots)
    assert part.group == 1 or 4 * part.group <= part.capacity - part.slots
    if slots >= whole.slots:
        assert part == whole


@given(st.integers(2, 10**4), st.integers(1, 1 << 30), st.integers(1, 1 << 30))
def test_of_few_bytes_of_each_big_chunk_more_are_held_for_as_many_bytes(visits, block, kept):
    whole = allot(visits * block, block)
    part = whole.keeping(kept)
    assert part.slots == whole.slots
    assert part.block_bytes == min(kept, block)
    assert part.capacity >= whole.capacity
    assert part.nbytes <= whole.nbytes
    assert part.group >= whole.group
    assert part.group == 1 or 4 * part.group <= part.capacity - part.slots
    assert whole.keeping(block) == whole


def test_big_chunks_of_which_little_is_kept_are_read_together():
    assert allot(2048 * MIB, 48 * MIB).keeping(7 * MIB).group == 8
    assert allot(192 * MIB, 48 * MIB).keeping(7 * MIB).group == 6
