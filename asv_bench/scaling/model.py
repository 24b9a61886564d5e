"""Ranks, schedulers and machines, in simulated time.

What is daskdmed's own decision is made by its own code: the plan (`persistence.plan`), who
draws what (`loading.spans`), what a budget holds (`persistence.budget`), and who may be how far
ahead (`persistence.ranks`).

Not simulated: disks and file servers, lost processes, the time that ranks take from each other on
a machine, heartbeats.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from scaling.clock import Bell, Clock, Pool, Process, Wires
from scaling.rank import Rank, Turns
from scaling.scheduler import Desk, Worker
from scaling.values import Fleet, Outcome


class Together:
    """Steps end for all ranks at once, or for each when it does."""

    def __init__(self, clock: Clock, fleet: Fleet, ranks: int) -> None:
        self._bell, self._there = Bell(clock), 0
        self._ranks, self._synchronised = ranks, fleet.synchronised
        self.least = 0
        self._done = [0] * ranks

    def arrive(self, rank: Rank) -> Process:
        rank.steps += 1
        self._done[rank.number] += 1
        self._there += 1
        if self._done[rank.number] > self.least:
            self.least = min(self._done)
        if not self._synchronised:
            return
        if self._there == self._ranks:
            self._there = 0
            self._bell.ring()
        else:
            yield self._bell


class Simulation:
    """A fleet that trains; from the middle of the plan, or `cold` from its beginning."""

    def __init__(self, fleet: Fleet, *, cold: bool = False) -> None:
        self.fleet, self.clock = fleet, Clock()
        clock, count = self.clock, fleet.machines * fleet.ranks
        self.workers = [
            Worker(machine, Pool(clock, fleet.threads))
            for machine in range(fleet.machines)
            for _ in range(fleet.workers)
        ]
        self.wires = Wires(clock, fleet.machines, fleet.network, fleet.costs.wire)
        each = fleet.workers * fleet.spans
        self.desks = [
            Desk(clock, fleet, self.workers[n * each : (n + 1) * each]) for n in range(fleet.sets)
        ]
        plans = fleet.sets if fleet.way == "own" else 1
        position = 0
        if not cold:  # when every visit of the start has left
            round_ = fleet.batch * fleet.world
            position = -(-fleet.allotment().slots * fleet.draws // round_) * round_
        turns = [Turns(fleet.plan(n), position) for n in range(plans)]
        self.ranks = [
            Rank(
                clock,
                fleet,
                number,
                self.desks[number // fleet.meeting],
                turns[number // fleet.world],
                self.wires,
            )
            for number in range(count)
        ]
        self.together = Together(clock, fleet, count)

    def times(self, step: int) -> Any:
        """Seconds of a step of each rank."""
        fleet, count = self.fleet, len(self.ranks)
        rng = np.random.default_rng([fleet.seed, step])
        factor = 1 + fleet.jitter * np.abs(rng.standard_normal(count))
        factor *= np.where(rng.random(count) < fleet.late, fleet.lateness, 1.0)
        return fleet.step * factor

    def run(self, steps: int, before: int) -> Outcome:
        """So many steps of every rank, after some that are not counted."""
        for rank in self.ranks:
            self.clock.begin(rank.make_batches())
            self.clock.begin(rank.train(self._steps(rank.number), self.together.arrive))
        together = self.together
        self.clock.run(lambda: together.least >= before)
        first = self._counters()
        self.clock.run(lambda: together.least >= before + steps)
        return self._outcome(first, before, before + steps)

    def _steps(self, rank: int) -> Iterator[float]:
        return (float(self.times(step)[rank]) for step in itertools.count())

    def _counters(self) -> dict[str, Any]:
        return {
            "now": self.clock.now,
            "messages": np.array([d.messages for d in self.desks]),
            "scheduler": np.array([d.server.busy for d in self.desks]),
            "read": sum(d.read for d in self.desks),
            "nbytes": self.wires.nbytes,
            "network": np.array([s.busy for s in (*self.wires.out, *self.wires.into)]),
            "reading": sum(w.pool.busy for w in self.workers),
            "spent": np.array([list(r.spent.values()) for r in self.ranks]),
            "waited": np.array([r.waited for r in self.ranks]),
            "steps": sum(r.steps for r in self.ranks),
        }

    def _outcome(self, first: dict[str, Any], begin: int, end: int) -> Outcome:
        fleet, last = self.fleet, self._counters()
        grown = {name: last[name] - first[name] for name in last}
        seconds, steps = grown["now"], grown["steps"]
        times = np.array([self.times(step) for step in range(end)])
        ideal = times.max(axis=1) if fleet.synchronised else times.mean(axis=1)
        group = self.ranks[0].allotment.group
        # of each plan: what several schedulers read of it counts once
        asked = [desk.asked for desk in self.desks]
        if fleet.way == "each":
            asked = [set().union(*asked)]
        return Outcome(
            fleet=fleet,
            seconds=seconds,
            ideal=float(ideal[begin:].sum()),
            begun=first["now"] - float(ideal[:begin].sum()),
            waits=float(grown["waited"].mean() / seconds),
            worst=float(grown["waited"].max() / seconds),
            messages=float(grown["messages"].max() / seconds),
            scheduler=float(grown["scheduler"].max() / seconds),
            nbytes=grown["nbytes"] / steps,
            network=float(grown["network"].max() / seconds),
            reading=grown["reading"] / seconds / (len(self.workers) * fleet.threads),
            thread=dict(
                zip(
                    self.ranks[0].spent,
                    (grown["spent"].mean(axis=0) / seconds).tolist(),
                    strict=True,
                )
            ),
            read=grown["read"] / seconds / fleet.machines,
            reads=last["read"] / (sum(map(len, asked)) * group) if last["read"] else 0.0,
            peak=max(d.peak for d in self.desks),
            capacity=self.ranks[0].allotment.capacity,
            batches=steps,
        )
