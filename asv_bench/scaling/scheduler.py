"""A scheduler in simulated time: the messages it hears, the big chunks it knows, and its workers.

To `daskdmed.persistence.ranks` it is a client whose scheduler answers at once; how long the
answer takes is simulated by who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from scaling.clock import Clock, Pool, Process, Server
from scaling.values import Fleet

if TYPE_CHECKING:
    from scaling.rank import Rank


@dataclass
class Worker:
    """A reading process."""

    machine: int
    pool: Pool


@dataclass(eq=False)
class Unit:
    """Big chunks that one task reads, on the scheduler."""

    number: int
    visits: int
    worker: Worker
    wanted: set[Rank] = field(default_factory=set)
    there: bool = False


class Desk:
    """A scheduler: its time, and what it knows of big chunks. Stands in for a client, too."""

    def __init__(self, clock: Clock, fleet: Fleet, workers: list[Worker]) -> None:
        self._clock, self._fleet, self.workers = clock, fleet, workers
        self.server = Server(clock)
        self.messages = self.read = 0
        self.asked: set[int] = set()
        self.units: dict[int, Unit] = {}
        self.held = self.peak = 0
        # for `Ranks`, of which nobody goes away here
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.clients = {"everybody"}
        self.id = "everybody"

    def run_on_scheduler(self, install: Callable[[Any], None]) -> None:
        install(self)

    def sync(self, function: Callable[..., Any], **kwargs: Any) -> Any:
        return function(**kwargs)

    @property
    def scheduler(self) -> Any:
        return SimpleNamespace(**self.handlers)

    # -- time ---------------------------------------------------------------------------

    def hear(self, messages: int) -> float:
        """Seconds until it has seen to messages about tasks."""
        self.messages += messages
        return self.server.serve(messages * self._fleet.costs.message)

    def meet(self, ranks: int) -> float:
        """Seconds until it has answered where the others are."""
        self.messages += 2
        costs = self._fleet.costs
        return self.server.serve(costs.meet + ranks * costs.meet_rank)

    # -- big chunks -----------------------------------------------------------------------

    def ask(self, rank: Rank, number: int, visits: int) -> Process:
        """A rank wants a unit."""
        costs = self._fleet.costs
        yield costs.to_scheduler + costs.wire
        yield self.hear(1)
        unit = self.units.get(number)
        if unit is not None:
            unit.wanted.add(rank)
            if unit.there:
                yield from self._report(unit, rank)
            return
        # the same worker whoever asks first, see `ResidentSet._submit_next`
        unit = Unit(number, visits, self.workers[number % len(self.workers)], {rank})
        self.units[number] = unit
        self.asked.add(number)
        self.read += visits
        self.held += visits
        self.peak = max(self.peak, self.held)
        yield self.hear(1)
        yield costs.to_worker + costs.wire
        seconds = visits * self._fleet.pixels / costs.decode
        unit.worker.pool.run(seconds, lambda: self._clock.begin(self._has_read(unit)), -number)

    def _has_read(self, unit: Unit) -> Process:
        yield self._fleet.costs.from_worker + self._fleet.costs.wire
        yield self.hear(1)
        unit.there = True
        for rank in sorted(unit.wanted, key=lambda r: r.number):
            self._clock.begin(self._report(unit, rank))

    def _report(self, unit: Unit, rank: Rank) -> Process:
        yield self.hear(1)
        wire = self._fleet.costs.wire
        yield self._fleet.costs.to_client + wire
        # who holds it, and from a worker of the same machine, where it lies there
        yield wire
        yield self.hear(2)
        yield wire if unit.worker.machine != rank.machine else 3 * wire
        if unit.number in rank.waiting_for:  # else it was let go of meanwhile
            rank.there[unit.number] = unit.worker
            rank.bell.ring()

    def let_go(self, rank: Rank, number: int) -> Process:
        """A rank wants a unit no more; it is gone when nobody does."""
        yield self._fleet.costs.to_scheduler + self._fleet.costs.wire
        yield self.hear(1)
        unit = self.units[number]
        unit.wanted.discard(rank)
        if not unit.wanted:
            del self.units[number]
            self.held -= unit.visits
            yield self.hear(1)
