"""Bytes to visits: what a memory budget holds, decided before anything is read.

Pure arithmetic. Not covered: who is resident (`daskdmed.persistence.plan`), keeping to the
budget at run time (`daskdmed.persistence.resident`), and who else holds memory
(`daskdmed.core.memory`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dask
from dask.utils import format_bytes, parse_bytes

from daskdmed.core.errors import BudgetError, UsageError

#: one read task handles about this many bytes: a task costs milliseconds end to end, so
#: small big chunks share one
BYTES_PER_READ = 96 << 20
#: big chunks that one task reads few pixels of, at most: the first batch waits for a task
MOST_PER_READ = 8
#: what a worker process takes that holds nothing: interpreter, libraries (torch too, which scripts
#: import), event loop, caches
BASELINE = 256 << 20


@dataclass(frozen=True, slots=True)
class Allotment:
    """How a budget is spent.

    `capacity`: big chunks that may be in memory at a time, resident or being read. `slots`: visits
    that are drawn from at a time. `group`: big chunks that one task reads. `block_bytes`: of the
    largest, or what is kept of it at most.
    """

    capacity: int
    slots: int
    group: int
    block_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes that are never exceeded."""
        return self.capacity * self.block_bytes

    def keeping(self, nbytes: int) -> Allotment:
        """The same where no more than so many bytes of a big chunk are kept: as many are drawn
        from, but there is room for more that are read ahead, by fewer tasks.
        """
        each = max(1, min(nbytes, self.block_bytes))
        room = self.nbytes // each - self.slots
        group = max(self.group, min(MOST_PER_READ, BYTES_PER_READ // each, room // 4))
        spare = min(max(self.capacity - self.slots, 4 * group), room)
        return Allotment(self.slots + spare, self.slots, group, each)

    def within(self, slots: int) -> Allotment:
        """What of it a plan can use that draws from fewer visits at a time.

        Beyond those, as many again are read ahead: whatever the budget has room for, more would lie
        in memory for many turns before it is drawn from.
        """
        capacity = min(self.capacity, 2 * slots)
        slots = min(slots, self.slots)
        group = max(1, min(self.group, (capacity - slots) // 4))
        return Allotment(capacity, slots, group, self.block_bytes)


def to_bytes(budget: int | str) -> int:
    """``"2 GiB"`` or a number of bytes."""
    try:
        nbytes = int(parse_bytes(budget))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f'resident={budget!r} is no size; write resident="2 GiB"') from error
    if nbytes <= 0:
        raise UsageError(f"resident={budget!r} must be positive")
    return nbytes


def allot(budget: int, block_bytes: int) -> Allotment:
    """Share a budget between visits that are drawn from and reads that run ahead.

    A quarter is for reading ahead and for visits whose last draws are under way. Depends on nothing
    else, above all not on the number of workers: batches depend on `slots`. BudgetError: the budget
    holds fewer than two big chunks.
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


def check_workers(
    budget: int, limits: Sequence[int], threads: int, scratch: int, under_way: int
) -> None:
    """Refuse a budget that leaves worker processes no room for what they need beside it.

    A worker at the limit takes no more tasks, and a loader would wait for ever. Estimated for each:
    its part of the budget; `BASELINE`; `scratch` bytes for each thread that reads, which are a
    storage tile before and after decoding; and its part of the bytes that are `under_way` to the
    loader. `limits` are bytes of memory per worker, 0 for none.
    """
    if not limits or not all(limits):
        return
    workers, smallest = len(limits), min(limits)
    share = dask.config.get("distributed.worker.memory.pause", None) or 1.0
    usable, reading = int(smallest * share), -(-threads // workers) * scratch
    beside = BASELINE + reading + under_way // workers
    if budget // workers + beside > usable:
        raise BudgetError(
            f"resident={format_bytes(budget)} does not fit beside what else workers need: of a "
            f"worker's memory ({format_bytes(smallest)}) {format_bytes(usable)} can be used until "
            f"it takes no more tasks, and it would hold {format_bytes(budget // workers)} of big "
            f"chunks, {format_bytes(BASELINE)} of interpreter and libraries, "
            f"{format_bytes(reading)} for decoding and {format_bytes(under_way // workers)} of "
            f"small chunks on their way; ask for at most "
            f"{format_bytes(max(usable - beside, 0) * workers)}, or start workers with more memory"
        )
