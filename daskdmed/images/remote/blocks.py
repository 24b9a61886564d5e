"""Blocks of remote files that were fetched, kept for all readers of the process.

Bounded in bytes, the longest unused go first. A block that somebody is fetching is waited for,
not fetched twice. Not covered: how blocks are fetched (`daskdmed.images.remote.source`).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import Future

#: bytes of a block, of which files are seen to consist
BLOCK = 64 * 2**10


class BlockCache:
    """Blocks by file and number. Thread-safe."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Hashable, int], bytes] = OrderedDict()
        self._flights: dict[tuple[Hashable, int], Future[bytes]] = {}
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self._nbytes

    def claim(
        self, file: Hashable, numbers: Iterable[int]
    ) -> tuple[dict[int, bytes], list[int], dict[int, Future[bytes]]]:
        """What is there of some blocks, which of them the caller has to fetch now, and which are
        on their way for others. What is claimed has to be published or abandoned."""
        there: dict[int, bytes] = {}
        mine: list[int] = []
        others: dict[int, Future[bytes]] = {}
        with self._lock:
            for number in numbers:
                key = (file, number)
                if (data := self._kept.get(key)) is not None:
                    self._kept.move_to_end(key)
                    there[number] = data
                elif (flight := self._flights.get(key)) is not None:
                    others[number] = flight
                else:
                    self._flights[key] = Future()
                    mine.append(number)
        return there, mine, others

    def publish(self, file: Hashable, found: Mapping[int, bytes], limit: int) -> None:
        """Give claimed blocks to those who wait, and keep them within `limit`; with 0 they are not
        kept."""
        with self._lock:
            flights = [(self._flights.pop((file, n), None), data) for n, data in found.items()]
            for number, data in found.items() if limit else ():
                self._keep((file, number), data)
            while limit and self._nbytes > limit:
                self._nbytes -= len(self._kept.popitem(last=False)[1])
        for flight, data in flights:
            if flight is not None:
                flight.set_result(data)

    def _keep(self, key: tuple[Hashable, int], data: bytes) -> None:
        old = self._kept.pop(key, None)
        self._nbytes += len(data) - (0 if old is None else len(old))
        self._kept[key] = data

    def abandon(self, file: Hashable, numbers: Iterable[int], error: Exception | None) -> None:
        """Say that claimed blocks do not come: those who wait get the error too; without one they
        fetch them themselves."""
        with self._lock:
            flights = [self._flights.pop((file, number), None) for number in numbers]
        for flight in flights:
            if flight is not None and error is None:
                flight.cancel()
            elif flight is not None:
                flight.set_exception(error)

    def forget(self, file: Hashable) -> None:
        """Drop the blocks of a file."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == file]:
                self._nbytes -= len(self._kept.pop(key))

    def clear(self) -> None:
        """Drop all blocks."""
        with self._lock:
            self._kept.clear()
            self._nbytes = 0


#: of this process
blocks = BlockCache()

if hasattr(os, "register_at_fork"):
    # the lock may be held, and who fetches is in the parent
    os.register_at_fork(after_in_child=blocks._reset)
