"""The persistence scheduler: the plan enacted with futures.

Big chunks are futures under keys of their own, requested ahead of the turn that needs them
and let go when the last draw of their visit has been taken. Loaders that share a cluster
and want the same big chunk hold the same key, so that it is read once. Nothing else keeps
a reference.

Not covered: the plan itself (`daskdmed.persistence.plan`), what a read does
(`daskdmed.persistence.reading`), and cropping.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from daskdmed.core import events, live
from daskdmed.core.waiting import explain
from daskdmed.persistence.arrivals import Arrivals, restarted
from daskdmed.persistence.budget import Allotment
from daskdmed.persistence.cluster import Workers, lost_connection, prepare_scheduler
from daskdmed.persistence.plan import RotationPlan, Turn, Visit
from daskdmed.persistence.ranks import POLL_EVERY, Ranks
from daskdmed.persistence.reading import (
    ReadFailure,
    leave_ticket,
    read_for_others,
    read_ticket,
)
from daskdmed.persistence.strata import StratifiedPlan
from daskdmed.persistence.tally import Tally
from daskdmed.persistence.units import JobFactory, Unit

if TYPE_CHECKING:
    from distributed import Client

#: seconds that closing waits for the client's loop
_SOON = 5.0


class ResidentSet:
    """Keeps the visits of the current turn in memory, and reads ahead of it.

    No more big chunks than the allotment says are in memory; fewer when the plan cannot use so
    many. `in_process`: the workers are threads of this process. `ranks`: other processes that walk
    the same plan on the same cluster.
    """

    def __init__(
        self,
        client: Client,
        plan: RotationPlan | StratifiedPlan,
        factory: JobFactory,
        allotment: Allotment,
        *,
        in_process: bool,
        tally: Tally,
        ranks: Ranks | None = None,
    ) -> None:
        allotment = allotment.within(plan.slots)
        self.client = client
        self.allotment = allotment
        self.in_process = in_process
        self.tally = tally
        self._plan: Iterator[Turn] = plan
        self._factory = factory
        self._ahead: deque[Turn] = deque()
        self._known = -1
        #: the turn that was given last
        self._turn: Turn | None = None
        self._planned = 0
        self._queue: deque[Visit] = deque()
        self._units: dict[int, Unit] = {}
        self._held = 0
        self._closed = False
        self._workers = Workers(client)
        self._arrivals = Arrivals(
            client, self._workers, in_process=in_process, tell=self._arrived, count=self._count
        )
        if not in_process:
            prepare_scheduler(client)
        self._ranks = ranks
        self._leased: deque[Turn] = deque()
        self._most = allotment.capacity
        if ranks is not None:
            # what the others have let go of is held here until they are heard of again: as
            # much as this rank can be ahead, so that it takes half of the spare part
            spare = allotment.capacity - allotment.slots
            self._most -= (spare + allotment.group + 1) // 2

    # -- turns ----------------------------------------------------------------------

    def turns(self) -> Iterator[Turn]:
        """Turns in order; the big chunks of each have been requested when it is given."""
        joined = False
        while True:
            if not self._ahead and not self._look_ahead():
                return
            turn = self._ahead.popleft()
            if self._ranks is not None and not joined:
                self._ranks.join(turn.number)
                joined = True
            self._request(turn)
            self._turn = turn
            yield turn

    def _look_ahead(self) -> bool:
        """Take one more turn from the plan and queue the visits that it admits."""
        turn = next(self._plan, None)
        if turn is None:
            return False
        self._ahead.append(turn)
        self._planned = turn.start + len(turn)
        newest = turn.resident[-1].number
        # the newest come last; with hundreds resident, looking at all would take long
        self._queue.extend(turn.resident[len(turn.resident) - _count_after(turn, self._known) :])
        self._known = max(self._known, newest)
        return True

    def reaches(self, draws: int) -> bool:
        """Whether the plan has at least so many draws; looks ahead, reads nothing."""
        while self._planned < draws and self._look_ahead():
            pass
        return self._planned >= draws

    def can_advance(self) -> bool:
        """Whether the next turn needs no big chunk that the budget has no room for."""
        if not self._ahead and not self._look_ahead():
            return True
        newest = self._ahead[0].resident[-1].number
        return not self._queue or self._queue[0].number > newest

    def _request(self, turn: Turn) -> None:
        newest = turn.resident[-1].number
        while self._queue and self._queue[0].number <= newest:
            if self._ranks is not None:
                self._wait_for_room(self._ranks)
            self._submit_next()
        self.read_ahead()

    def read_ahead(self) -> None:
        """Request further big chunks while the budget has room."""
        group = self.allotment.group
        while self._held + group <= self._most and not self._closed:
            while len(self._queue) < group and self._look_ahead():
                pass
            if not self._queue:
                return
            self._submit_next()

    def finish(self, turn: Turn) -> None:
        """Let go of the visits that have given all their draws."""
        if self._ranks is None:
            for visit in turn.leaving:
                self.evict(visit)
            self.read_ahead()
            return
        # others may need them yet
        self._leased.append(turn)
        self._ranks.finished(turn.number)
        self._end_leases(self._ranks)
        self.read_ahead()
        # told last: who hears of this turn may let go of what has been asked for here
        self._ranks.tell()
        self._end_leases(self._ranks)
        self.read_ahead()

    def _end_leases(self, ranks: Ranks) -> None:
        """Let go of what left with turns that every rank has finished."""
        slowest = ranks.slowest
        while self._leased and self._leased[0].number < slowest:
            for visit in self._leased.popleft().leaving:
                self.evict(visit)

    def _wait_for_room(self, ranks: Ranks) -> None:
        """Wait until slower ranks have caught up, when the budget is full of their visits."""
        ranks.begin_to_wait()
        while self._leased and self._held + self.allotment.group > self._most:
            self._arrivals.pause(POLL_EVERY, "ranks")
            ranks.look()
            self._end_leases(ranks)
        ranks.waits = False

    def evict(self, visit: Visit) -> None:
        """Let go of one visit; memory is freed with the last visit of its unit."""
        unit = self._units.pop(visit.number, None)
        if unit is None:
            return
        self.tally.visits_evicted += 1
        self._tell(events.BigChunkEvicted, (visit,))
        unit.waiting_for.discard(visit.number)
        if not unit.waiting_for:
            self._held -= len(unit.visits)
            self._arrivals.forget(unit)
            unit.let_go()

    # -- reading --------------------------------------------------------------------

    def _submit_next(self) -> None:
        group = self.allotment.group
        # units begin at multiples of the group: the same for every rank, and after a resume
        last = self._queue[0].number // group * group + group - 1
        while self._queue[-1].number < last and self._look_ahead():
            pass
        count = sum(v.number <= last for v in itertools.islice(self._queue, group))
        visits = tuple(self._queue.popleft() for _ in range(count))
        unit = self._factory.unit(visits)
        self._held += len(visits)
        self.tally.visits_admitted += len(visits)
        for visit in visits:
            self._units[visit.number] = unit
        options: dict[str, Any] = {}
        if self.in_process:
            # by cluster: a loader on another one reads for itself
            name = f"{self.client.scheduler.address} {unit.key}"
            unit.ticket = leave_ticket(name, unit.jobs)
            call: tuple[Any, ...] = (read_ticket, name)
        else:
            if self._ranks is None:
                home = self._workers.pick(len(visits))
            else:
                home = self._workers.nth(visits[0].number // group)
            # where it is then read is the scheduler's choice: another loader may have asked
            # for it elsewhere, or an idle worker may steal it
            if home is not None:
                options = {"workers": [home], "allow_other_workers": True}
            call = self._travelling(unit)
        self._tell(events.BigChunkRequested, visits)
        # earlier visits are needed earlier; crops (priority 10) before any read
        unit.future = self.client.submit(*call, key=unit.key, priority=-visits[0].number, **options)
        self.tally.reads += 1
        self._arrivals.expect(unit)

    def _travelling(self, unit: Unit) -> tuple[Any, ...]:
        """The call that reads a unit in another process."""
        jobs, delivered = zip(*(job.localised(self.client) for job in unit.jobs), strict=True)
        if all(values == (None, None) for values in delivered):
            return read_for_others, jobs
        return read_for_others, jobs, [list(values) for values in delivered]

    def _count(self, unit: Unit) -> None:
        self.tally.pixels_read += unit.pixels

    def _arrived(self, unit: Unit) -> None:
        self._tell(events.BigChunkReady, unit.visits, seconds=time.monotonic() - unit.asked)

    def _tell(
        self, kind: Callable[..., events.Event], visits: Iterable[Visit], **more: float
    ) -> None:
        if events.listening():
            for visit in visits:
                self.tally.tell(kind, self._factory.place(visit), **more)

    def is_ready(self, visit: int) -> bool:
        """Whether a visit's pixels (or its failure) are there."""
        return self._units[visit] in self._arrivals

    def unit_of(self, visit: int) -> tuple[Unit, int]:
        """A resident visit's unit, and its position in it."""
        unit = self._units[visit]
        return unit, next(i for i, v in enumerate(unit.visits) if v.number == visit)

    def wait(self, visits: Iterable[int]) -> int:
        """Block until one of some resident visits is there; gives its number. Raises as
        `Arrivals.wait` does."""
        units = {self._units[number]: number for number in visits}
        return units[self._arrivals.wait(units)]

    def wait_for(self, future: Any, keys: Iterable[Any]) -> None:
        """Block until a future is done that is made of some tasks; raises as `wait` does."""
        self._arrivals.wait_for(future, keys)

    def describe(self) -> str:
        """What the thread that makes batches waits for, and why; in words, for another thread."""
        held = f"{self.resident_visits} big chunks in memory or being read"
        ranks, wanted = self._ranks, list(self._arrivals.wanted)
        if ranks is not None and ranks.waits:
            return f"{ranks.describe()}; {held}"
        if not wanted:
            return f"a batch is being made, by a collector or tfms that take long; {held}"
        keys, told = wanted, ""
        if isinstance(wanted[0], Unit):
            keys = [unit.key for unit in wanted]
            patient, record, _, region = self._factory.place(wanted[0].visits[0])
            told = (
                f"patient {patient!r}, record {record!r}, big chunk at {region.origin}, shape "
                f"{region.shape} was asked for {time.monotonic() - wanted[0].asked:.0f} s ago: "
            )
        return f"{told}{explain(self.client, keys)}; {held}"

    def cells(self, position: int) -> list[live.Cell]:
        """The visits in memory or being read, when the plan stands at a draw; for any thread."""
        turn, cells = self._turn, []
        left = {} if turn is None else turn.left_at(position)
        oldest = min(left, default=0)
        wanted = {getattr(one, "key", one) for one in list(self._arrivals.wanted)}
        for number, unit in list(self._units.items()):
            waited = live.WAITED if unit.key in wanted else live.ASKED
            state = live.READY if unit in self._arrivals else waited
            # what is read ahead has all of them, what left before waits for other ranks
            cells.append((number, state, left.get(number, -1 if number >= oldest else 0)))
        return cells

    def place(self, visit: int) -> live.Place | None:
        """Where a visit of `cells` lies; None when it has gone meanwhile."""
        unit = self._units.get(visit)
        if unit is None:
            return None
        one = next(v for v in unit.visits if v.number == visit)
        patient, record, _, region = self._factory.place(one)
        return patient, record, region.origin, region.shape, time.monotonic() - unit.asked

    def ranks(self) -> dict[str, Any]:
        """Where the ranks are that share the plan, in plain values; empty without others."""
        return {} if self._ranks is None else self._ranks.now()

    def holders(self, visits: Iterable[int]) -> dict[int, str | None]:
        """Which worker holds each of some resident visits; blocks until all have been read.

        Those that lie on this machine are left out. None where a visit has been lost since: it is
        read again, who knows where. Raises as `wait` does.
        """
        units = {}
        for number in visits:
            self.wait([number])
            unit = self._units[number]
            if unit.mapped is not None or number in unit.elsewhere:
                continue
            units[number] = unit
            if unit.future is not None and unit.future.cancelled():  # after it had come
                raise restarted()
        self._arrivals.find_holders(units.values())
        return {number: unit.holder for number, unit in units.items()}

    def is_here(self, visit: int) -> bool:
        """Whether a visit can be had by `fetch`; for one that has been read."""
        unit = self._units[visit]
        there = (unit.ticket, unit.mapped)
        return any(read is not None for read in there) or visit in unit.elsewhere

    def fetch(self, visit: int) -> Any:
        """What was read for a visit by this machine, by reference. Raises as `wait` does."""
        self.wait([visit])
        unit, member = self.unit_of(visit)
        read: Any = unit.mapped if unit.ticket is None else unit.ticket.result
        result = read if unit.single else read[member]
        if isinstance(result, ReadFailure) and isinstance(result.error, CancelledError):
            # the image is not to blame: nobody but a client that closes cancels a read
            raise lost_connection(result.error)
        return result

    def hand_over(self, visit: int) -> None:
        """Have Dask free what was read for a visit, whose pixels are kept elsewhere from now on; it
        counts as before. Of a unit, once that holds for all of its visits."""
        unit = self._units[visit]
        unit.elsewhere.add(visit)
        if unit.waiting_for <= unit.elsewhere:
            unit.let_go()

    @property
    def resident_bytes(self) -> int:
        """Upper bound of the bytes held or being read."""
        return self._held * self.allotment.block_bytes

    @property
    def resident_visits(self) -> int:
        return len(self._units)

    def interrupt(self) -> None:
        """Wake whoever waits; they get `LoaderClosedError`. Safe from any thread."""
        self._closed = True
        self._arrivals.interrupt()

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self.interrupt()
        waits = False
        for number, unit in list(self._units.items()):
            self._tell(events.BigChunkEvicted, (v for v in unit.visits if v.number == number))
            unit.waiting_for.clear()
            waits = waits or unit not in self._arrivals
            unit.let_go()
        if waits:
            # what waits for these futures is told before the threads that it is told in may end
            with contextlib.suppress(Exception):  # a client that is closed
                self.client.sync(asyncio.sleep, 0.001, callback_timeout=_SOON)
        self._units.clear()
        self._arrivals.clear()
        self._ahead.clear()
        self._queue.clear()
        self._leased.clear()
        self._held = 0
        if self._ranks is not None:
            self._ranks.leave()
            self._ranks = None


def _count_after(turn: Turn, known: int) -> int:
    """Visits of a turn that were admitted after a visit."""
    count = 0
    for visit in reversed(turn.resident):
        if visit.number <= known:
            break
        count += 1
    return count
