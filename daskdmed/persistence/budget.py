"""Bytes to visits: what a memory budget holds, decided before anything is read.

Pure arithmetic. Not covered: who is resident (`daskdmed.persistence.plan`), and keeping to
the budget at run time (`daskdmed.persistence.resident`).
"""

from __future__ import annotations

from dataclasses import dataclass

from dask.utils import format_bytes, parse_bytes

from daskdmed.errors import BudgetError, UsageError

#: one read task handles about this many bytes: a task costs milliseconds end to end, so
#: small big chunks share one
BYTES_PER_READ = 24 << 20


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


def allot(
    budget: int,
    block_bytes: int,
    *,
    threads: int,
    draws_per_visit: int,
    draws_in_flight: int,
    memory_limit: int | None,
) -> Allotment:
    """Share a budget between visits that are drawn from and reads that run ahead.

    Parameters
    ----------
    budget : int
        Bytes for all big chunks.
    block_bytes : int
        Bytes of the largest big chunk.
    threads : int
        Threads that read, over all workers.
    draws_per_visit : int
        Draws after which a visit leaves.
    draws_in_flight : int
        Draws submitted but not yet received; their visits cannot be let go.
    memory_limit : int or None
        Memory of all workers together, None when unknown.

    Raises
    ------
    BudgetError
        The budget holds fewer than two big chunks, or exceeds half of the workers' memory.
    """
    if memory_limit is not None and budget > memory_limit / 2:
        raise BudgetError(
            f"resident={format_bytes(budget)} exceeds half of the workers' memory "
            f"({format_bytes(memory_limit)} in all); the other half is needed for decoding, "
            f"batches and the model: ask for at most {format_bytes(memory_limit // 2)}, or "
            "add workers"
        )
    capacity = budget // block_bytes
    if capacity < 2:
        raise BudgetError(
            f"resident={format_bytes(budget)} holds {capacity} big chunks of "
            f"{format_bytes(block_bytes)}, and rotation needs at least 2; ask for "
            f"{format_bytes(2 * block_bytes)} or more, or make bigchunk_size smaller"
        )
    # two reads per thread hide the latency of a task; never more than a third of the budget
    spare = max(1, capacity // 3)
    group = max(1, min(BYTES_PER_READ // block_bytes, spare // (2 * threads + 2)))
    ahead = min(2 * threads * group, spare)
    # a group is let go as a whole, so the oldest and the newest may linger
    slack = 2 * (group - 1)
    lag = min(-(-draws_in_flight // draws_per_visit), spare) if draws_in_flight else 0
    slots = max(1, capacity - ahead - slack - lag)
    return Allotment(capacity, slots, group, block_bytes)
