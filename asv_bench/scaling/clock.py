"""Simulated time: processes as generators, and what they queue for.

A process yields a number (seconds to let pass) or a `Bell` (to wait until it rings). What
happens at the same moment happens in the order in which it was asked for, so that a simulation
is a function of its arguments.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

#: what is simulated: yields seconds, or bells
Process: TypeAlias = Generator[Any, None, Any]


class Clock:
    """Simulated time, and what happens at which moment of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something later."""
        heapq.heappush(self._due, (self.now + seconds, next(self._order), call))

    def begin(self, process: Process) -> None:
        """Start a process, now."""
        self.after(0.0, lambda: self._go_on(process))

    def _go_on(self, process: Process) -> None:
        what = next(process, None)
        if isinstance(what, Bell):
            what.waiting.append(lambda: self._go_on(process))
        elif what is not None:
            self.after(what, lambda: self._go_on(process))

    def run(self, until: Callable[[], bool]) -> None:
        """Let time pass until something holds; RuntimeError: nothing happens any more before."""
        while not until():
            if not self._due:
                raise RuntimeError(f"everybody waits for somebody else at {self.now:.3f} s")
            self.now, _, call = heapq.heappop(self._due)
            call()


class Bell:
    """Wakes all who wait for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.waiting: list[Callable[[], None]] = []

    def ring(self) -> None:
        woken, self.waiting = self.waiting, []
        for go_on in woken:
            self._clock.after(0.0, go_on)


class Server:
    """Serves one after the other, in the order in which they come."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free = 0.0
        self.busy = 0.0

    def serve(self, seconds: float) -> float:
        """Seconds until who comes now has been served."""
        self._free = max(self._clock.now, self._free) + seconds
        self.busy += seconds
        return self._free - self._clock.now


class Pool:
    """Some threads; whoever waits for one with the greatest priority is next."""

    def __init__(self, clock: Clock, threads: int) -> None:
        self._clock = clock
        self._idle = threads
        self._waiting: list[tuple[float, int, float, Callable[[], None]]] = []
        self._order = itertools.count()
        self.busy = 0.0

    def run(self, seconds: float, done: Callable[[], None], priority: float = 0.0) -> None:
        """Have a thread busy for so long, then call `done`."""
        heapq.heappush(self._waiting, (-priority, next(self._order), seconds, done))
        self._next()

    def _next(self) -> None:
        if not self._idle or not self._waiting:
            return
        self._idle -= 1
        _, _, seconds, done = heapq.heappop(self._waiting)
        self.busy += seconds

        def over() -> None:
            self._idle += 1
            self._next()
            done()

        self._clock.after(seconds, over)


class Wires:
    """The network between machines: each sends and receives one after the other."""

    def __init__(self, clock: Clock, machines: int, rate: float, latency: float) -> None:
        self.out = [Server(clock) for _ in range(machines)]
        self.into = [Server(clock) for _ in range(machines)]
        self._rate, self._latency = rate, latency
        self.nbytes = 0

    def send(self, source: int, target: int, nbytes: int) -> float:
        """Seconds until bytes have arrived; both ends are busy with them."""
        self.nbytes += nbytes
        seconds = nbytes / self._rate
        ends = self.out[source].serve(seconds), self.into[target].serve(seconds)
        return max(ends) + self._latency
