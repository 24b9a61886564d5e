"""A training process in simulated time: a thread that makes batches, and the training.

The resident set and the two ways of sampling are those of `daskdmed.persistence.resident`,
`daskdmed.loading.local` and `daskdmed.loading.remote`, step by step in the same order;
`tests/test_scale.py` compares what is asked for with a loader that runs.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from daskdmed.loading.prefetch import _AHEAD_BATCHES
from daskdmed.loading.remote import DEPTH
from daskdmed.loading.spans import Span, cut
from daskdmed.persistence.plan import RotationPlan, Turn, Visit
from daskdmed.persistence.ranks import POLL_EVERY, Ranks
from scaling.clock import Bell, Clock, Process, Server, Wires
from scaling.scheduler import Desk, Worker
from scaling.values import Fleet

#: what the thread that makes batches may wait for; for "training" when it is ahead
WAITS = ("scheduler", "slower ranks", "big chunks", "small chunks", "training")


class Turns:
    """The turns of a plan from the one that holds a draw, made once for all ranks."""

    def __init__(self, plan: RotationPlan, position: int = 0) -> None:
        plan.skip_to(position)
        self.position = position
        self._plan = plan
        self._made = [next(plan)]
        self.first = self._made[0].number

    def __getitem__(self, number: int) -> Turn:
        while len(self._made) <= number - self.first:
            self._made.append(next(self._plan))
        return self._made[number - self.first]

    def __iter__(self) -> Iterator[Turn]:
        return map(self.__getitem__, itertools.count(self.first))


@dataclass(eq=False)
class Chunk:
    """Draws that are under way together: spans, and how many come from which worker."""

    spans: list[Span]
    elsewhere: dict[int, int]
    cropped: int = 0


class Rank:
    """One training process: a thread that makes batches, and the training."""

    def __init__(
        self, clock: Clock, fleet: Fleet, number: int, desk: Desk, turns: Turns, wires: Wires
    ) -> None:
        self.number, self.machine = number, number // fleet.ranks
        self.clock, self.fleet, self.desk, self.wires = clock, fleet, desk, wires
        self.turns = turns
        self.bell = Bell(clock)
        self.inbox = Server(clock)
        # -- of the resident set, see `ResidentSet`
        self.allotment = fleet.allotment().within(len(turns[turns.first].resident))
        self.most = self.allotment.capacity
        self.ranks: Ranks | None = None
        if fleet.world > 1:
            mine = number % fleet.world
            self.ranks = Ranks(
                desk,  # type: ignore[arg-type]
                "plan",
                mine,
                fleet.world,
                clock=lambda: clock.now,
                meeting=fleet.meeting,
            )
            spare = self.allotment.capacity - self.allotment.slots
            self.most -= (spare + self.allotment.group + 1) // 2
        self.entered, self.looked = turns.first - 1, turns.first
        self.known, self.held = -1, 0
        self.queue: deque[Visit] = deque()
        self.waiting_for: dict[int, set[int]] = {}
        self.size: dict[int, int] = {}
        self.leased: deque[Turn] = deque()
        self.there: dict[int, Worker] = {}
        # -- batches
        self.rows = self.ready = self.untold = 0
        self.delivered: list[tuple[int, int]] = []
        #: what was asked for and let go of, for comparison with a loader
        self.diary: list[tuple[str, int]] = []
        # -- how it went: seconds that the thread computes, or waits for what
        self.spent = dict.fromkeys(("computing", *WAITS), 0.0)
        self.waited = 0.0
        self.steps = 0

    def busy(self, seconds: float) -> float:
        """The thread that makes batches computes."""
        self.spent["computing"] += seconds
        return seconds

    def waiting(self, what: str, until: Callable[[], bool]) -> Process:
        """The thread that makes batches waits for something."""
        began = self.clock.now
        while not until():
            yield self.bell
        self.spent[what] += self.clock.now - began

    def question(self, answered: Callable[[], float], what: str = "scheduler") -> Process:
        """The thread that makes batches asks the scheduler, and waits for the answer."""
        costs = self.fleet.costs
        yield self.busy(costs.ask)
        began = self.clock.now
        yield costs.wire
        yield answered()
        yield costs.wire
        self.spent[what] += self.clock.now - began

    # -- the resident set: as in persistence/resident.py ----------------------------------

    def look_ahead(self) -> None:
        turn = self.turns[self.looked]
        self.looked += 1
        # the newest come last
        new = itertools.takewhile(lambda v: v.number > self.known, reversed(turn.resident))
        self.queue.extend(reversed(list(new)))
        self.known = max(self.known, turn.resident[-1].number)

    def can_advance(self) -> bool:
        if self.looked == self.entered + 1:
            self.look_ahead()
        newest = self.turns[self.entered + 1].resident[-1].number
        return not self.queue or self.queue[0].number > newest

    def enter(self, turn: Turn) -> Process:
        """Begin a turn: everything it needs is asked for."""
        if turn.number == self.entered:
            return
        if self.entered == self.turns.first - 1 and self.ranks is not None:
            yield from self.meet(lambda ranks: ranks.join(turn.number))
        if self.looked == turn.number:
            self.look_ahead()
        self.entered = turn.number
        yield self.busy(self.fleet.costs.turn)
        newest = turn.resident[-1].number
        while self.queue and self.queue[0].number <= newest:
            if self.ranks is not None:
                yield from self.wait_for_room(self.ranks)
            yield from self.ask()
        yield from self.read_ahead()

    def read_ahead(self) -> Process:
        group = self.allotment.group
        while self.held + group <= self.most:
            while len(self.queue) < group:
                self.look_ahead()
            yield from self.ask()

    def ask(self) -> Process:
        group = self.allotment.group
        number = self.queue[0].number // group
        while self.queue[-1].number < number * group + group - 1:
            self.look_ahead()
        visits = set()  # after a resume, the first may be fewer
        while self.queue and self.queue[0].number // group == number:
            visits.add(self.queue.popleft().number)
        self.held += len(visits)
        self.diary += [("ask", v) for v in sorted(visits)]
        self.waiting_for[number] = visits
        self.size[number] = len(visits)
        yield self.busy(self.fleet.costs.ask)
        self.clock.begin(self.desk.ask(self, number, len(visits)))

    def evict(self, visit: Visit) -> None:
        number = visit.number // self.allotment.group
        left = self.waiting_for[number]
        left.discard(visit.number)
        self.diary.append(("let go", visit.number))
        if left:
            return
        del self.waiting_for[number]
        self.held -= self.size.pop(number)
        self.there.pop(number, None)
        self.clock.begin(self.desk.let_go(self, number))

    def finish(self, turn: Turn) -> Process:
        """A turn is over."""
        ranks = self.ranks
        if ranks is None:
            for visit in turn.leaving:
                self.evict(visit)
            yield from self.read_ahead()
            return
        self.leased.append(turn)
        ranks.finished(turn.number)
        self.end_leases(ranks)
        yield from self.read_ahead()
        if self.fleet.told == "turn" or self.untold:
            self.untold = 0
            yield from self.meet(Ranks.tell)
            self.end_leases(ranks)
            yield from self.read_ahead()

    def end_leases(self, ranks: Ranks) -> None:
        slowest = ranks.slowest
        while self.leased and self.leased[0].number < slowest:
            for visit in self.leased.popleft().leaving:
                self.evict(visit)

    def wait_for_room(self, ranks: Ranks) -> Process:
        ranks.begin_to_wait()
        while self.leased and self.held + self.allotment.group > self.most:
            yield POLL_EVERY
            self.spent["slower ranks"] += POLL_EVERY
            yield from self.meet(Ranks.look, "slower ranks")
            self.end_leases(ranks)
        ranks.waits = False

    def meet(self, hear: Callable[[Ranks], None], what: str = "scheduler") -> Process:
        """Tell the scheduler where this rank is, and hear where the others are."""
        assert self.ranks is not None
        yield from self.question(lambda: self.desk.meet(self.fleet.meeting), what)
        hear(self.ranks)

    # -- batches: as in loading/local.py and loading/remote.py -----------------------------

    def spans(self) -> Iterator[Span]:
        fleet = self.fleet
        longest = 1 << 62 if fleet.in_process else fleet.together
        mine = self.number % fleet.world
        return cut(
            iter(self.turns),
            longest=longest,
            deal=fleet.batch,
            rank=mine,
            world_size=fleet.world,
            position=self.turns.position,
        )

    def make_batches(self) -> Process:
        if not self.fleet.in_process:
            yield from self._of_processes()
            return
        for span in self.spans():
            yield from self.enter(span.turn)
            yield from self.come(span)
            yield from self.commit(span)
            if span.last:
                yield from self.finish(span.turn)

    def _of_processes(self) -> Process:
        spans, flying, open_ = self.spans(), deque[Chunk](), False
        while True:
            while len(flying) < DEPTH:
                if not open_ and flying and not self.can_advance():
                    break
                taken: list[Span] = []
                rows = 0
                while rows < self.fleet.together:
                    if taken and not open_ and not self.can_advance():
                        break
                    span = next(spans)
                    yield from self.enter(span.turn)
                    taken.append(span)
                    rows += len(span)
                    open_ = not span.last
                while flying and not self.are_there(taken):
                    yield from self.receive(flying.popleft())
                chunk = yield from self.send(taken)
                if chunk.elsewhere or flying:
                    flying.append(chunk)
                else:
                    yield from self.receive(chunk)
            if flying:
                yield from self.receive(flying.popleft())

    def needs(self, span: Span) -> Iterator[int]:
        """Units that draws come from."""
        return iter(np.unique(span.visits // self.allotment.group).tolist())

    def are_there(self, spans: list[Span]) -> bool:
        return all(n in self.there for span in spans for n in self.needs(span))

    def come(self, span: Span) -> Process:
        """Wait until all is there that draws come from."""
        yield from self.waiting("big chunks", lambda: self.are_there([span]))

    def send(self, spans: list[Span]) -> Process:
        chunk = Chunk(spans, {})
        for span in spans:
            yield from self.come(span)
            for visit in span.visits.tolist():
                worker = self.there[visit // self.allotment.group]
                if worker.machine != self.machine:
                    name = self.desk.workers.index(worker)
                    chunk.elsewhere[name] = chunk.elsewhere.get(name, 0) + 1
        for name, count in chunk.elsewhere.items():
            yield self.busy(self.fleet.costs.ask)
            self.clock.begin(self._crop(chunk, self.desk.workers[name], count))
        return chunk

    def _crop(self, chunk: Chunk, worker: Worker, count: int) -> Process:
        """A task crops small chunks where they are."""
        costs, cropped = self.fleet.costs, Bell(self.clock)
        yield costs.to_scheduler + costs.wire
        yield self.desk.hear(2)
        yield costs.to_worker + costs.wire
        worker.pool.run(count * costs.crop_elsewhere, cropped.ring, 10.0)
        yield cropped
        yield costs.from_worker + costs.wire
        yield self.desk.hear(2)
        yield costs.to_client + costs.wire
        chunk.cropped += 1
        self.bell.ring()

    def receive(self, chunk: Chunk) -> Process:
        parts = len(chunk.elsewhere)
        yield from self.waiting("small chunks", lambda: chunk.cropped == parts)
        if parts:
            yield from self.question(lambda: self.desk.hear(2))
            fetched: list[int] = []
            for name, count in chunk.elsewhere.items():
                self.clock.begin(self._fetch(self.desk.workers[name], count, fetched))
            yield from self.waiting("small chunks", lambda: len(fetched) == parts)
        for span in chunk.spans:
            yield from self.commit(span)
        for span in chunk.spans:
            if span.last:
                yield from self.finish(span.turn)

    def _fetch(self, worker: Worker, count: int, fetched: list[int]) -> Process:
        nbytes = count * self.fleet.crop_bytes
        yield self.wires.send(worker.machine, self.machine, nbytes)
        yield self.inbox.serve(nbytes / self.fleet.costs.unpack)
        fetched.append(count)
        self.bell.ring()
        yield self.fleet.costs.to_scheduler + self.fleet.costs.wire
        yield self.desk.hear(2)

    def commit(self, span: Span) -> Process:
        """Draws become rows of batches; waits while enough batches are ready."""
        at = span.start
        while at < span.stop:
            stop = min(span.stop, at + self.fleet.batch - self.rows)
            yield self.busy((stop - at) * self.fleet.costs.crop)
            self.delivered.append((at, stop))
            self.rows += stop - at
            at = stop
            if self.rows == self.fleet.batch:
                self.rows = 0
                yield from self.waiting("training", lambda: self.ready < _AHEAD_BATCHES)
                self.ready += 1
                self.untold += 1
                self.bell.ring()

    # -- training ---------------------------------------------------------------------------

    def train(self, times: Iterator[float], arrive: Callable[[Rank], Process]) -> Process:
        """Take batches; a step of the given length for each."""
        for seconds in times:
            began = self.clock.now
            while not self.ready:
                yield self.bell
            self.ready -= 1
            self.bell.ring()
            self.waited += self.clock.now - began
            yield seconds
            yield from arrive(self)
