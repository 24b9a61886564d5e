"""Bytes to visits: what a memory budget holds, decided before anything is read.

Pure arithmetic. Not covered: who is resident (`daskdmed.persistence.plan`), and keeping to
the budget at run time (`daskdmed.persistence.resident`).
"""

from __future__ import annotations

from dataclasses import dataclass

from dask.utils import format_bytes, parse_bytes

from daskdmed.core.errors import BudgetError, UsageError

#: one read task handles about this many bytes: a task costs milliseconds end to end, so
#: small big chunks share one
BYTES_PER_READ = 96 << 20


@dataclass(frozen=True, slots=True)
class Allotment:
    """How a budget is spent.

    Parameters
    ----------
    capacity : int
        Big chunks that may be in memory at a time, resident or being read.
    slots : int
        Visits that are drawn from at a time.
    group : int
        Big chunks that one task reads.
    block_bytes : int
        Bytes of the largest big chunk.
    """

    capacity: int
    slots: int
    group: int
    block_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes that are never exceeded."""
        return self.capacity * self.block_bytes

    def within(self, slots: int) -> Allotment:
        """What of it a plan can use that draws from fewer visits at a time.

        Beyond those, as many again are read ahead: whatever the budget has room for, more
        would lie in memory for many turns before it is drawn from.

        Parameters
        ----------
        slots : int
            Visits that the plan draws from at a time.
        """
        capacity = min(self.capacity, 2 * slots)
        slots = min(slots, self.slots)
        group = max(1, min(self.group, (capacity - slots) // 4))
        return Allotment(capacity, slots, group, self.block_bytes)


def to_bytes(budget: int | str) -> int:
    """``"2 GiB"`` or a number of bytes.

    Raises
    ------
    UsageError
        Not a size, or not positive.
    """
    try:
        nbytes = int(parse_bytes(budget))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f'resident={budget!r} is no size; write resident="2 GiB"') from error
    if nbytes <= 0:
        raise UsageError(f"resident={budget!r} must be positive")
    return nbytes


def allot(budget: int, block_bytes: int) -> Allotment:
    """Share a budget between visits that are drawn from and reads that run ahead.

    A quarter is for reading ahead and for visits whose last draws are under way. Depends
    on nothing else, above all not on the number of workers: batches depend on `slots`.

    Parameters
    ----------
    budget : int
        Bytes for all big chunks.
    block_bytes : int
        Bytes of the largest big chunk.

    Raises
    ------
    BudgetError
        The budget holds fewer than two big chunks.
    """
    capacity = budget // block_bytes
    if capacity < 2:
        raise BudgetError(
            f"resident={format_bytes(budget)} holds {capacity} big chunks of "
            f"{format_bytes(block_bytes)}, and rotation needs at least 2; ask for "
            f"{format_bytes(2 * block_bytes)} or more, or make bigchunk_size smaller"
        )
    spare = max(1, capacity // 4)
    # a group leaves memory as a whole, so several groups must fit into what is spare
    group = max(1, min(BYTES_PER_READ // block_bytes, spare // 4))
    return Allotment(capacity, capacity - spare, group, block_bytes)


def check_memory(budget: int, memory_limit: int | None) -> None:
    """Refuse a budget that leaves workers no room for anything else.

    Parameters
    ----------
    budget : int
        Bytes for all big chunks.
    memory_limit : int or None
        Memory of all workers together, None when unknown.

    Raises
    ------
    BudgetError
        The budget exceeds half of the workers' memory.
    """
    if memory_limit is not None and budget > memory_limit / 2:
        raise BudgetError(
            f"resident={format_bytes(budget)} exceeds half of the workers' memory "
            f"({format_bytes(memory_limit)} in all); the other half is needed for decoding, "
            f"batches and the model: ask for at most {format_bytes(memory_limit // 2)}, or "
            "add workers"
        )
