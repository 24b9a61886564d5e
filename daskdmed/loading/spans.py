"""The plan's draws, cut into runs that one rank samples in one go. Pure.

Draws are numbered over the whole plan. From a `base` on, draws ``base + b * n`` to
``base + (b + 1) * n`` belong to rank ``b % world_size``; those before it were given by ranks of
another number, or in batches of another size. All ranks walk the same turns. A span never
crosses a turn, so that asking for the next one asks for no big chunk before the last turn's are
let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from daskdmed.core.types import Array
from daskdmed.persistence.plan import Turn


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive draws of one turn, by their numbers in the whole plan; none when the rank has
    none.

    `last`: the turn is over once this span is sampled.
    """

    turn: Turn
    start: int
    stop: int
    last: bool

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def visits(self) -> Array:
        return self.turn.visits[self.start - self.turn.start : self.stop - self.turn.start]

    @property
    def draws(self) -> Array:
        return self.turn.draws[self.start - self.turn.start : self.stop - self.turn.start]


def cut(
    turns: Iterator[Turn],
    *,
    longest: int,
    deal: int,
    rank: int = 0,
    world_size: int = 1,
    position: int = 0,
    base: int = 0,
    reaches: Callable[[int], bool] | None = None,
) -> Iterator[Span]:
    """Cut turns, from the one that holds `position`, into spans of one rank, in order.

    Every turn ends with a span whose `last` is set, if need be an empty one. `longest`: no span has
    more draws. `deal`: draws that go to one rank before the next has its turn, the batch size, the
    first rank beginning at draw `base`, which is at most `position`.
    `reaches`: whether the plan has at least a number of draws; when given, the draws at the end
    that do not suffice for a batch of every rank are nobody's.
    """
    for turn in turns:
        end = turn.start + len(turn)
        at = max(turn.start, position)
        while at < end:
            stop = min(end, at + longest)
            mine = True
            if world_size > 1:
                number = (at - base) // deal
                stop = min(stop, base + (number + 1) * deal)
                whole_round = base + (number // world_size + 1) * deal * world_size
                mine = number % world_size == rank and (reaches is None or reaches(whole_round))
            if mine:
                yield Span(turn, at, stop, stop == end)
            elif stop == end:
                yield Span(turn, end, end, last=True)
            at = stop
