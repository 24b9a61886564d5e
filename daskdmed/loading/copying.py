"""Crops into batches, several at a time.

One thread copies about a third of what the memory of a small machine can deliver; NumPy
lets go of the interpreter while it copies, so that two do better even beside decoders.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from daskdmed.core.types import Array

#: copying threads, the caller included; more only fight for the memory bus
MOST_THREADS = 4
#: fewer copies than this are not worth handing out
_WORTHWHILE = 8


class Copier:
    """Collects copies and makes them together, by some threads, the caller included."""

    def __init__(self, threads: int) -> None:
        self._threads = max(1, min(threads, MOST_THREADS))
        self._pool = (
            ThreadPoolExecutor(self._threads - 1, thread_name_prefix="daskdmed-copy")
            if self._threads > 1
            else None
        )
        self._copies: list[tuple[Array, Array, int]] = []

    def add(self, target: Array, source: Array, owner: int = -1) -> None:
        """Copy later; both are referenced until `flush`, or `settle` of who owns the source."""
        self._copies.append((target, source, owner))

    def settle(self, owners: Collection[int]) -> None:
        """Make the copies of some owners here and now, then forget them: these are few, and handing
        them out would cost more than making them."""
        _copy([copy for copy in self._copies if copy[2] in owners])
        self._copies = [copy for copy in self._copies if copy[2] not in owners]

    def flush(self) -> None:
        """Make all copies, then forget them."""
        copies, self._copies = self._copies, []
        if self._pool is None or len(copies) < _WORTHWHILE:
            _copy(copies)
            return
        parts = [copies[i :: self._threads] for i in range(self._threads)]
        others = [self._pool.submit(_copy, part) for part in parts[1:]]
        _copy(parts[0])
        for other in others:
            other.result()

    def close(self) -> None:
        """Stop the threads. Idempotent."""
        self._copies.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True)


def _copy(copies: list[tuple[Array, Array, int]]) -> None:
    for target, source, _ in copies:
        target[...] = source
