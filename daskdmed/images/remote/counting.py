"""How many requests, and bytes, reading takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestCount:
    """What this process asked servers for while `count_requests` was active."""

    #: requests sent, those that failed included
    requests: int = 0
    #: of these, another attempt at what had failed
    retries: int = 0
    #: bytes of ranges that came
    fetched: int = 0
    #: bytes that readers wanted, those from the cache included
    needed: int = 0
    #: bytes of whole blocks with some of these that were in the cache, or on their way for others
    cached: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(
        self,
        *,
        requests: int = 0,
        retries: int = 0,
        fetched: int = 0,
        needed: int = 0,
        cached: int = 0,
    ) -> None:
        with self._lock:
            self.requests += requests
            self.retries += retries
            self.fetched += fetched
            self.needed += needed
            self.cached += cached


_counters: tuple[RequestCount, ...] = ()
_counters_lock = threading.Lock()


@contextmanager
def count_requests() -> Iterator[RequestCount]:
    """Count what this process asks servers for, in all threads, of TIFF and other single files."""
    global _counters
    count = RequestCount()
    with _counters_lock:
        _counters = (*_counters, count)
    try:
        yield count
    finally:
        with _counters_lock:
            _counters = tuple(c for c in _counters if c is not count)


def counted(**numbers: int) -> None:
    """Tell who counts."""
    for counter in _counters:
        counter.add(**numbers)
