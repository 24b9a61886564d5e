"""Sampling next to the data: tasks crop where blocks live, crops of many draws travel.

Draws are sent out in chunks, several in flight; each worker gets one task a chunk, for the
draws from the blocks that it holds. Answers are put back into the plan's order here. Of blocks
that worker processes of this machine share nothing is sent: they are cropped from here, when
their turn has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from daskdmed.core.errors import DaskdmedError, LoaderError
from daskdmed.core.types import Array
from daskdmed.loading.answers import Sampled, Wanted, sample
from daskdmed.loading.batch import Batch
from daskdmed.loading.engine import Engine
from daskdmed.loading.patientstate import StateKeeper
from daskdmed.loading.spans import Span
from daskdmed.persistence.cluster import SAMPLING, lost_connection
from daskdmed.persistence.plan import Visit
from daskdmed.persistence.units import Unit

if TYPE_CHECKING:
    from distributed import Future

#: bytes of crops that one task gives: enough to hide the cost of a task, little enough to
#: travel while the next is made
BYTES_PER_TASK = 16 << 20
#: chunks in flight: a sampling task may have to wait until a thread has read its big chunk
DEPTH = 8


@dataclass(slots=True)
class _Chunk:
    """Draws that were sent out together, one future a worker.

    `positions`: number in the whole plan, -1 beyond it. `over`: last spans of turns that are over
    once this chunk is in. `here`: visits that are cropped from here. `futures`: of answers, or what
    makes one here; `rows`: rows of the chunk that each answers. `spans`: where the draws come from;
    empty for draws beyond the plan.
    """

    visits: Array
    draws: Array
    positions: Array
    table: dict[int, Visit]
    over: list[Span]
    here: set[int] = field(default_factory=set)
    futures: list[Future | Callable[[], Sampled]] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


class RemoteEngine(Engine):
    def __init__(self, *args: Any, workers: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.chunk_draws = chunk_draws(self.sampling.crop.nbytes, workers)
        self.longest_span = self.chunk_draws
        self._label = uuid4().hex[:8]
        self._serial = itertools.count()
        #: sent and not yet received, in order
        self._flying: deque[_Chunk] = deque()

    def batches(self) -> Iterator[Batch]:
        if self.states is not None:
            yield from self._in_sequence(self.states)
            return
        spans = self.spans()
        flying = self._flying
        turn_open = False
        exhausted = False
        while True:
            while len(flying) < DEPTH and not exhausted:
                if not turn_open and flying and not self.residents.can_advance():
                    break
                taken, turn_open, exhausted = self._take(spans, turn_open)
                if not taken:
                    break
                if self.sampling.adaptive:
                    yield from self._fill_in(taken, flying)
                # what is under way is taken in while the big chunks of these are read
                while flying and not self._are_there(taken):
                    yield from self._receive(flying.popleft())
                chunk = self._send_spans(taken)
                if chunk.futures or flying:
                    flying.append(chunk)
                else:
                    yield from self._receive(chunk)
            if not flying:
                if exhausted:
                    break
                continue
            yield from self._receive(flying.popleft())
        if len(self._builder):
            yield self.finish_batch()

    def _in_sequence(self, states: StateKeeper) -> Iterator[Batch]:
        """Batches of a stateful collector: what one draw changes, the next may need.

        Draws are sent out in parts that lie within a turn and a batch, one at a time.
        """
        for span in self.spans():
            self.begin_turn(span.turn)
            at = span.start
            while True:
                part = self._part(span, at)
                if self.sampling.adaptive:
                    yield from self._fill_in([part], deque())
                    part = self._part(span, at)
                part, chunk, answers = self._send_part(part, states)
                yield from self._receive(chunk, answers)
                at = part.stop
                if part.last or at >= span.stop:
                    break
        if len(self._builder):
            yield self.finish_batch()

    def _part(self, span: Span, at: int) -> Span:
        """The draws from one on that still fit into the batch."""
        room = self._builder.size - len(self._builder)
        visits = span.visits[at - span.start :]
        ended = np.isin(visits, np.fromiter(self._ended, np.int64, len(self._ended)))
        if self.sampling.composed:
            # every draw gives a row; one that another visit stands in for comes last
            stop = at + min(room, int(np.argmax(ended)) + 1 if ended.any() else room)
        else:
            stop = at + int(np.searchsorted(np.cumsum(~ended), room, side="left")) + 1
        stop = min(stop, span.stop)
        return Span(span.turn, at, stop, span.last and stop == span.stop)

    def _send_part(
        self, part: Span, states: StateKeeper
    ) -> tuple[Span, _Chunk, list[Sampled] | None]:
        """Send a part out; a shorter one when a visit ends in it that another stands in for.

        What stands in changes states too, so that the draws behind it must be made after it.
        """
        if not self.sampling.composed or not len(part):
            return part, self._send_spans([part]), None
        if any(n not in self._ended for n in part.visits.tolist()):
            states.begin_batch(self._batches)
        before = states.snapshot()
        chunk = self._send_spans([part])
        answers = self._gather(chunk.futures)
        ends = {number: value[0] for a in answers for number, value in a.ended.items()}
        rows = zip(chunk.visits.tolist(), chunk.draws.tolist(), strict=True)
        over = [row for row, (n, draw) in enumerate(rows) if n in ends and draw >= ends[n]]
        if not over or over[0] + 1 == len(part):
            return part, chunk, answers
        states.restore(before)
        part = Span(part.turn, part.start, part.start + over[0] + 1, last=False)
        return part, self._send_spans([part]), None

    def _take(self, spans: Iterator[Span], turn_open: bool) -> tuple[list[Span], bool, bool]:
        """Spans for one chunk; no new turn is begun whose blocks the budget cannot hold yet."""
        taken: list[Span] = []
        rows = 0
        while rows < self.chunk_draws:
            if taken and not turn_open and not self.residents.can_advance():
                break
            span = next(spans, None)
            if span is None:
                return taken, False, True
            taken.append(span)
            rows += len(span)
            turn_open = not span.last
        return taken, turn_open, False

    def _are_there(self, spans: list[Span]) -> bool:
        numbers = np.unique(np.concatenate([s.visits for s in spans])).tolist()
        return all(n in self._ended or self.residents.is_ready(n) for n in numbers)

    # -- sending --------------------------------------------------------------------

    def _send_spans(self, spans: list[Span]) -> _Chunk:
        table = {v.number: v for s in spans for v in s.turn.resident}
        visits = np.concatenate([s.visits for s in spans])
        draws = np.concatenate([s.draws for s in spans])
        positions = np.concatenate([np.arange(s.start, s.stop) for s in spans])
        chunk = self._send(visits, draws, positions, table, [s for s in spans if s.last])
        chunk.spans = spans
        return chunk

    def _send(
        self,
        visits: Array,
        draws: Array,
        positions: Array,
        table: dict[int, Visit],
        over: list[Span],
    ) -> _Chunk:
        chunk = _Chunk(visits, draws, positions, table, over)
        if not visits.size:  # turns of which other ranks have every draw
            return chunk
        by_visit = np.argsort(visits, kind="stable")
        numbers, starts = np.unique(visits[by_visit], return_index=True)
        if self.states is not None and any(n not in self._ended for n in numbers.tolist()):
            self.states.begin_batch(self._batches)
        rows_of = dict(zip(numbers.tolist(), np.split(by_visit, starts[1:]), strict=True))
        wanted = [n for n in rows_of if n not in self._ended]
        holders = self.residents.holders(wanted)
        here = [n for n in wanted if n not in holders]
        if self.states is None:
            chunk.here.update(here)
        elif here:  # in sequence, and with their states, as it is done elsewhere
            self._send_to(None, [(n, rows_of[n]) for n in here], chunk, here=True)
        groups: dict[str | int, list[tuple[int, Array]]] = {}
        for number, holder in holders.items():
            # what nobody holds any more is read again at one place or another: sent by itself
            groups.setdefault(holder or number, []).append((number, rows_of[number]))
        for members in groups.values():
            self._send_to(holders[members[0][0]], members, chunk)
        return chunk

    def _send_to(
        self,
        holder: str | None,
        members: list[tuple[int, Array]],
        chunk: _Chunk,
        *,
        here: bool = False,
    ) -> None:
        s, states = self.sampling, self.states
        units: dict[Unit, int] = {}
        wanted = []
        slot = 0
        for number, rows in members:
            unit, member = self.residents.unit_of(number)
            wanted.append(
                Wanted(
                    unit=units.setdefault(unit, len(units)),
                    member=member,
                    single=unit.single,
                    facts=self.facts(chunk.table[number]),
                    draws=tuple(chunk.draws[rows].tolist()),
                    slots=tuple(range(slot, slot + rows.size)),
                    state=None if states is None else states.state_of(number),
                    mail=() if states is None else states.read(number),
                )
            )
            slot += rows.size
        chunk.rows.append(np.concatenate([rows for _, rows in members]))
        how = (wanted, s.crop, s.collect, s.draws_per_visit)
        if here:
            chunk.futures.append(functools.partial(sample, [u.mapped for u in units], *how))
            return
        options: dict[str, Any] = {}
        if holder is not None:
            options = {"workers": [holder], "allow_other_workers": True}
        future = self.residents.client.submit(
            sample,
            [unit.future for unit in units],
            *how,
            key=(SAMPLING, self._label, next(self._serial)),
            priority=10,
            **options,
        )
        chunk.futures.append(future)

    # -- receiving ------------------------------------------------------------------

    def _receive(self, chunk: _Chunk, answers: list[Sampled] | None = None) -> Iterator[Batch]:
        if answers is None:
            answers = self._gather(chunk.futures)
        chunk.futures.clear()
        where = np.zeros((chunk.visits.size, 2), np.int64)
        for part, rows in enumerate(chunk.rows):
            where[rows, 0] = part
            where[rows, 1] = np.arange(rows.size)
        ended = {number: value for a in answers for number, value in a.ended.items()}
        bigchunks = {number: value for a in answers for number, value in a.bigchunks.items()}
        if self.states is not None:
            for number, state in (item for a in answers for item in a.states.items()):
                self.states.keep(number, state)
        rows_of = zip(
            chunk.visits.tolist(),
            chunk.draws.tolist(),
            chunk.positions.tolist(),
            where.tolist(),
            strict=True,
        )
        for number, draw, position, (part, row) in rows_of:
            visit = chunk.table[number]
            if number not in self._ended:
                if number in chunk.here:
                    self.open(visit)
                    self.crop(visit, draw)
                elif number in ended and draw >= ended[number][0]:
                    self.end_visit(visit, *ended[number])
                else:
                    self._commit(visit, draw, answers[part], row, bigchunks)
            if position >= 0:
                self._position = position + 1
                if self.sampling.composed and number in self._ended:
                    yield from self._stand_in(visit, position, chunk)
            if self._builder.full:
                yield self.finish_batch()
        for span in chunk.over:
            self._position = max(self._position, span.stop)
            self.finish_turn(span.turn)

    def _stand_in(self, gone: Visit, position: int, chunk: _Chunk) -> Iterator[Batch]:
        """One draw of another visit in place of one that ended, asked for by itself."""
        turn = next(s.turn for s in chunk.spans if s.start <= position < s.stop)
        for other in self.stand_ins(gone, turn, position):
            draw = np.array([self.spare_draw(position)], np.int64)
            number = np.array([other.number], np.int64)
            alone = self._send(number, draw, np.array([-1]), {other.number: other}, [])
            yield from self._receive(alone)
            if other.number not in self._ended:
                return
        self.stand_ins(gone, turn, position)  # raises: all have ended meanwhile

    def _commit(
        self, visit: Visit, draw: int, answer: Sampled, row: int, bigchunks: dict[int, Any]
    ) -> None:
        out, target_out = self._builder.next_row()
        out[...] = answer.data[row]
        if target_out is not None and answer.targets is not None:
            target_out[...] = answer.targets[row]
        provenance = self.remember(visit, bigchunks[visit.number])
        origin = tuple(answer.origins[row].tolist())
        self._builder.commit(provenance, int(answer.pieces[row]), origin, draw)
        self.gave()

    def _gather(self, parts: list[Future | Callable[[], Sampled]]) -> list[Sampled]:
        futures = [part for part in parts if not callable(part)]
        there = iter(self._gather_futures(futures) if futures else ())
        return [part() if callable(part) else next(there) for part in parts]

    def _gather_futures(self, futures: list[Future]) -> list[Sampled]:
        client = self.residents.client
        try:
            # by the client's loop, so that closing ends the wait, and lost workers are noticed
            gathering = asyncio.run_coroutine_threadsafe(
                client.gather(futures, direct=True, asynchronous=True), client.loop.asyncio_loop
            )
            self.residents.wait_for(gathering, [future.key for future in futures])
            answers: list[Sampled] = gathering.result()
        except DaskdmedError:
            for future in futures:  # what gathers holds them, too
                future.release()
            raise
        except CancelledError as error:  # of the tasks: by a client that closes, or a restart
            raise lost_connection(error) from error
        except Exception as error:
            raise LoaderError(
                f"a sampling task failed on the cluster: {type(error).__name__}: {error}"
            ) from error
        return answers

    # -- adaptive -------------------------------------------------------------------

    def _fill_in(self, spans: list[Span], flying: deque[_Chunk]) -> Iterator[Batch]:
        """While big chunks of the next chunk are late, draw from those that are there."""
        numbers = np.unique(np.concatenate([s.visits for s in spans])).tolist()
        table = {v.number: v for s in spans for v in s.turn.resident}
        while any(n not in self._ended and not self.residents.is_ready(n) for n in numbers):
            if flying:
                yield from self._receive(flying.popleft())
                continue
            there = [n for n in table if n not in self._ended and self.residents.is_ready(n)]
            if not there:
                self.residents.wait(numbers)
                continue
            room = self._builder.size - len(self._builder)
            visits = self._whim.choice(np.array(there), room)
            draws = np.array([self.next_beyond(n) for n in visits.tolist()], np.int64)
            self.residents.tally.late_draws += visits.size
            yield from self._receive(self._send(visits, draws, np.full(visits.size, -1), table, []))

    def close(self) -> None:
        for future in itertools.chain.from_iterable(c.futures for c in self._flying):
            if callable(future):
                continue
            with contextlib.suppress(RuntimeError):  # the client's event loop has ended
                future.release()
        super().close()


def chunk_draws(crop_bytes: int, workers: int) -> int:
    return max(1, BYTES_PER_TASK * workers // crop_bytes)
