"""Crops into batches, several at a time.

One thread copies about a third of what the memory of a small machine can deliver; others run while
it copies, so that two do better even beside decoders. And copies go on while the next batch is
begun: `Copier.start` says when they are done to whoever has to know.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from daskdmed.core.native import copy_all
from daskdmed.core.types import Array

#: copying threads, the caller included; more only fight for the memory bus
MOST_THREADS = 4
#: fewer copies than this are not worth handing out
_WORTHWHILE = 8
#: copies that a thread takes at a time
_AT_ONCE = 8

#: target, source, who owns the source
_Copy: TypeAlias = tuple[Array, Array, int]


class Copier:
    """Collects copies and makes them together, by some threads, the caller included.

    One thread at a time may call it, but for what `start` gives.
    """

    def __init__(self, threads: int) -> None:
        self._threads = max(1, min(threads, MOST_THREADS))
        self._pool = (
            ThreadPoolExecutor(self._threads - 1, thread_name_prefix="daskdmed-copy")
            if self._threads > 1
            else None
        )
        self._copies: list[_Copy] = []
        self._begun = _Begun(())

    def add(self, target: Array, source: Array, owner: int = -1) -> None:
        """Copy later; both are referenced until `flush`, or `settle` of who owns the source."""
        self._copies.append((target, source, owner))

    def settle(self, owners: Collection[int]) -> None:
        """Make the copies of some owners here and now, also of those that were begun, then forget
        them: these are few, and handing them out would cost more than making them."""
        if not self._begun.owners.isdisjoint(owners):
            self._begun.wait()
        few = [copy for copy in self._copies if copy[2] in owners]
        if few:
            _copy(few)
            self._copies = [copy for copy in self._copies if copy[2] not in owners]

    def start(self) -> Callable[[], None]:
        """Begin to make all copies, and forget them. What is given waits for them, and helps; any
        thread may call it, any number of times."""
        self._begun.wait()
        copies, self._copies = self._copies, []
        self._begun = begun = _Begun(
            [copies[at : at + _AT_ONCE] for at in range(0, len(copies), _AT_ONCE)]
        )
        if self._pool is not None and len(copies) >= _WORTHWHILE:
            for _ in range(self._threads - 1):
                self._pool.submit(begun.work)
        return begun.wait

    def flush(self) -> None:
        """Make all copies, then forget them."""
        self.start()()

    def close(self) -> None:
        """Make what was begun, forget the rest, and stop the threads. Idempotent; raises nothing:
        what fails is for those who wait."""
        self._begun.work()
        self._copies.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True)


class _Begun:
    """Copies that several threads make, some at a time; nobody holds on to what is done."""

    def __init__(self, parts: Sequence[list[_Copy]]) -> None:
        self.owners = {copy[2] for part in parts for copy in part}
        self._left, self._open = deque(parts), len(parts)
        self._change = threading.Condition()
        self._error: BaseException | None = None

    def work(self) -> None:
        """Make copies until there are none that nobody has begun."""
        while True:
            try:
                part = [self._left.popleft()]
            except IndexError:
                return
            try:
                _copy(part.pop())
            except BaseException as error:  # handed to those who wait
                self._error = error
            with self._change:
                self._open -= 1
                if not self._open:
                    self._change.notify_all()

    def wait(self) -> None:
        """Help, until all are made."""
        if self._open:
            self.work()
            with self._change:
                while self._open:
                    self._change.wait()
        if self._error is not None:
            raise self._error


def _copy(copies: Sequence[_Copy]) -> None:
    copy_all([copy[:2] for copy in copies])
