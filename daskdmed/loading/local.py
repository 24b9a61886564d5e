"""Sampling from workers that are threads of this process: every block is here, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from daskdmed.core.types import Array
from daskdmed.loading.batch import Batch
from daskdmed.loading.engine import Engine
from daskdmed.loading.patientstate import VisitState
from daskdmed.loading.spans import Span
from daskdmed.persistence.plan import Turn, Visit


class LocalEngine(Engine):
    """Crops here: places in the calling thread, copies in a few."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._touched: set[int] = set()

    def batches(self) -> Iterator[Batch]:
        for span in self.spans():
            yield from self._sample(span)
            if span.last:
                self.finish_turn(span.turn)
        if len(self._builder):
            yield self.finish_batch()

    def finish_batch(self) -> Batch:
        for number in self._touched:
            self._keep_state(number)
        self._touched.clear()
        return super().finish_batch()

    def _sample(self, span: Span) -> Iterator[Batch]:
        self.begin_turn(span.turn)
        table = self.visits_of(span.turn)
        at_once = self._elsewhere is not None and self.states is None and not self.sampling.adaptive
        at = span.start
        while at < span.stop:
            stop = min(span.stop, at + self._builder.room) if at_once else span.stop
            visits, draws = (
                a[at - span.start : stop - span.start] for a in (span.visits, span.draws)
            )
            if not (at_once and self.crop_all(table, visits, draws)):
                yield from self._one_by_one(at, visits, draws, table, span.turn)
            elif self._builder.full:
                self._position = stop
                yield self.finish_batch()
            at = stop
        self._position = span.stop

    def _one_by_one(
        self, start: int, visits: Array, draws: Array, table: dict[int, Visit], turn: Turn
    ) -> Iterator[Batch]:
        """Of draws from a `start` in the plan."""
        ended, samplers, builder = self._ended, self._samplers, self._builder
        composed, crop = self.sampling.composed, self.crop if self.states is None else self._draw
        rows = zip(visits.tolist(), draws.tolist(), strict=True)
        for position, (number, draw) in enumerate(rows, start):
            if number not in ended:
                if number not in samplers:
                    if self.sampling.adaptive:
                        self._position = position
                        yield from self._fill_in(number, table)
                    self._open(table[number])
                crop(table[number], draw)
            if composed and number in ended:
                self._stand_in(table[number], position, turn)
            if builder.full:
                self._position = position + 1
                yield self.finish_batch()

    def _open(self, visit: Visit) -> None:
        states = self.states
        self.open(visit, None if states is None else VisitState(states.state_of(visit.number)))

    def _draw(self, visit: Visit, draw: int) -> bool:
        sampler, _ = self._samplers[visit.number]
        if self.states is not None and sampler.state is not None:
            self.states.begin_batch(self._batches)
            sampler.state.tell(self.states.read(visit.number))
            self._touched.add(visit.number)
        return self.crop(visit, draw)

    def end_visit(self, visit: Visit, draw: int, error: BaseException | None) -> None:
        self._keep_state(visit.number)
        self._touched.discard(visit.number)
        super().end_visit(visit, draw, error)

    def _stand_in(self, gone: Visit, position: int, turn: Turn) -> None:
        """One draw of another visit in place of one that ended."""
        for other in self.stand_ins(gone, turn, position):
            self._open(other)
            self._draw(other, self.spare_draw(position))
            if other.number not in self._ended:
                return
        self.stand_ins(gone, turn, position)  # raises: all have ended meanwhile

    def _keep_state(self, number: int) -> None:
        """Note a visit's state, as it would come back from another process."""
        sampler, _ = self._samplers[number]
        if self.states is not None and sampler.state is not None:
            self.states.keep(number, sampler.state.packed(sampler.facts.patient))

    def _fill_in(self, number: int, table: dict[int, Visit]) -> Iterator[Batch]:
        """While a big chunk is late, draw from those that are there."""
        while not self.residents.is_ready(number):
            there = [n for n in self._samplers if n in table and n not in self._ended]
            if not there:
                return
            other = there[int(self._whim.integers(len(there)))]
            self._draw(table[other], self.next_beyond(other))
            self.residents.tally.late_draws += 1
            if self._builder.full:
                yield self.finish_batch()

    def finish_turn(self, turn: Turn) -> None:
        for visit in turn.leaving:
            if visit.number in self._touched:
                self._touched.discard(visit.number)
                self._keep_state(visit.number)
        super().finish_turn(turn)
