"""Batches of guaranteed composition: one rotation per share, woven into one plan.

A *stratum* is a part of what is drawn from (patients with a label, a class of annotations)
with its share of every batch. Each has a rotation of its own, with slots of its own, so
that a class that is rare always has big chunks in memory. `StratifiedPlan` weaves their
draws together, batch by batch, and is a plan like any other.

Pure. Not covered: what users write (`daskdmed.loading.quotas`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import BudgetError, UsageError
from daskdmed.core.randomness import Purpose, generator, seed_key
from daskdmed.core.types import Array
from daskdmed.persistence.areas import GOLDEN
from daskdmed.persistence.plan import Accepts, Population, RotationPlan, Turn, Visit, Weights
from daskdmed.persistence.policy import Policy


@dataclass(frozen=True, slots=True)
class Stratum:
    """One share of every batch: small chunks of each, from some records of the population.

    A fraction of a small chunk is given in some batches and not in others, so that the mean is
    right. `weights`, `accepts`: see `RotationPlan`; record numbers are those of the whole
    population.
    """

    name: str
    share: float
    records: tuple[int, ...]
    weights: Weights | None = None
    accepts: Accepts | None = None


class StratifiedPlan:
    """Turns in which every batch holds each stratum's share; shares add up to `batch_size`.

    Slots are divided by share (BudgetError when they do not suffice); a few are kept for visits
    that change in the middle of a turn. The rest is as in `RotationPlan`.
    """

    def __init__(
        self,
        population: Population,
        strata: Sequence[Stratum],
        *,
        batch_size: int,
        slots: int,
        draws_per_visit: int,
        seed: int,
        policy: Policy,
    ) -> None:
        spare = len(strata) + 2 * -(-batch_size // draws_per_visit)
        _check(strata, batch_size, slots, spare)
        self.population = population
        self.draws_per_visit = draws_per_visit
        self.batch_size = batch_size
        self._key = seed_key(seed)
        self._batches_per_turn = max(1, draws_per_visit // batch_size)
        rooms = _divide(slots - spare, [s.share for s in strata])
        self._streams = [
            _Stream(number, stratum, population, room, draws_per_visit, seed, policy)
            for number, (stratum, room) in enumerate(zip(strata, rooms, strict=True))
        ]
        self.slots = sum(stream.slots for stream in self._streams) + spare
        self._shares = np.array([s.share for s in strata])
        self._phase = float(generator(self._key, Purpose.SHARE).random())
        self._resident: list[Visit] = []
        #: draws that each resident visit has left
        self._left: dict[int, int] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._admitted = 0
        self._turn = 0
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def __iter__(self) -> Iterator[Turn]:
        return self

    def __next__(self) -> Turn:
        first = self._turn * self._batches_per_turn
        counts = [self.composition(first + b) for b in range(self._batches_per_turn)]
        needed = np.sum(counts, axis=0)
        taken = []
        for stream, count in zip(self._streams, needed.tolist(), strict=True):
            part = stream.take(count)
            if part is None:
                raise StopIteration
            taken.append(part)
        visits, draws = self._weave(counts, taken, first)
        leaving = self._leaving(visits, draws)
        whole = self.draws_per_visit
        left = np.array([self._left.get(v.number, whole) for v in self._resident], np.int64)
        # a visit's draws are in order: the last one counts
        self._left.update(zip(visits.tolist(), (whole - 1 - draws).tolist(), strict=True))
        turn = Turn(
            number=self._turn,
            start=self._position,
            resident=tuple(self._resident),
            leaving=leaving,
            visits=visits,
            draws=draws,
            left=left,
        )
        gone = {v.number for v in leaving}
        self._numbers = {k: n for k, n in self._numbers.items() if n not in gone}
        self._resident = [v for v in self._resident if v.number not in gone]
        for number in gone:
            del self._left[number]
        self._turn += 1
        self._position += int(visits.size)
        return turn

    def skip_to(self, position: int) -> None:
        """Advance by whole turns, as far as possible without passing a draw."""
        per_turn = self._batches_per_turn * self.batch_size
        while self._position + per_turn <= position:
            if next(self, None) is None:
                return

    def composition(self, batch: int) -> npt.NDArray[np.int64]:
        """Draws of each stratum in a batch; they add up to `batch_size`.

        Whole numbers are kept exactly. Fractions are systematic sampling (Madow 1949) with a
        start that goes round evenly from batch to batch.
        """
        whole = np.floor(self._shares + 1e-9)
        parts = np.clip(self._shares - whole, 0.0, None)
        counts = whole.astype(np.int64)
        extra = self.batch_size - int(counts.sum())
        if extra:
            start = (self._phase + batch * GOLDEN) % 1.0
            ends = np.cumsum(parts) * (extra / parts.sum())
            picked = np.searchsorted(ends, start + np.arange(extra), side="right")
            np.add.at(counts, np.minimum(picked, counts.size - 1), 1)
        return counts

    def _weave(
        self, counts: list[Array], taken: list[tuple[list[Visit], Array, Array]], first: int
    ) -> tuple[Array, Array]:
        """Draws of a turn in order, numbered anew; notes who became resident."""
        owners = np.concatenate([self._order(first + b, c) for b, c in enumerate(counts)])
        places: list[tuple[int, Visit]] = []
        at = [np.flatnonzero(owners == k) for k in range(len(taken))]
        for stratum, (fresh, numbers, _) in enumerate(taken):
            where = {v.number: int(np.argmax(numbers == v.number)) for v in fresh}
            places += [(int(at[stratum][where[v.number]]), v) for v in fresh]
        for _, visit in sorted(places, key=lambda place: place[0]):
            self._numbers[visit.stratum, visit.number] = self._admitted
            self._resident.append(replace(visit, number=self._admitted))
            self._admitted += 1
        visits = np.empty(owners.size, np.int64)
        draws = np.empty(owners.size, np.int64)
        for stratum, (_, numbers, given) in enumerate(taken):
            visits[at[stratum]] = [self._numbers[stratum, n] for n in numbers.tolist()]
            draws[at[stratum]] = given
        return visits, draws

    def _order(self, batch: int, counts: Array) -> Array:
        rng = generator(self._key, Purpose.MIX, batch)
        return rng.permutation(np.repeat(np.arange(counts.size), counts))

    def _leaving(self, visits: Array, draws: Array) -> tuple[Visit, ...]:
        last = set(visits[draws == self.draws_per_visit - 1].tolist())
        return tuple(v for v in self._resident if v.number in last)


class _Stream:
    """The draws of one stratum, taken in any portions."""

    def __init__(
        self,
        number: int,
        stratum: Stratum,
        population: Population,
        slots: int,
        draws_per_visit: int,
        seed: int,
        policy: Policy,
    ) -> None:
        records = stratum.records
        part = Population(
            tuple(population.blocks[r] for r in records),
            tuple(population.patients[r] for r in records) if population.patients else (),
            tuple(population.labels[r] for r in records) if population.labels else (),
        )
        weights, accepts = stratum.weights, stratum.accepts
        self._number = number
        self._records = records
        self._plan = RotationPlan(
            part,
            slots=slots,
            draws_per_visit=draws_per_visit,
            seed=seed,
            policy=policy,
            weights=None if weights is None else lambda r: weights(records[r]),
            accepts=None if accepts is None else lambda r, *rest: accepts(records[r], *rest),
            stream=number + 1,
        )
        self.slots = self._plan.slots
        self._visits: list[Array] = []
        self._draws: list[Array] = []
        self._ready = 0
        self._known: dict[int, Visit] = {}
        self._newest = -1

    def take(self, count: int) -> tuple[list[Visit], Array, Array] | None:
        """The next draws: visits not seen before, visit numbers, draw numbers.

        None when the stratum's plan ends before.
        """
        while self._ready < count:
            turn = next(self._plan, None)
            if turn is None:
                return None
            fresh = [v for v in turn.resident if v.number > self._newest]
            self._known.update((v.number, v) for v in fresh)
            self._newest = turn.resident[-1].number
            self._visits.append(turn.visits)
            self._draws.append(turn.draws)
            self._ready += len(turn)
        visits, draws = (
            np.concatenate(self._visits or [_NONE]),
            np.concatenate(self._draws or [_NONE]),
        )
        self._visits, self._draws = [visits[count:]], [draws[count:]]
        self._ready -= count
        visits, draws = visits[:count], draws[:count]
        begun = [self._globally(self._known.pop(n)) for n in visits[draws == 0].tolist()]
        return begun, visits, draws

    def _globally(self, visit: Visit) -> Visit:
        return replace(visit, record=self._records[visit.record], stratum=self._number)


_NONE = np.zeros(0, np.int64)


def _divide(slots: int, shares: Sequence[float]) -> list[int]:
    """Slots by share, at least one each; never more than there are."""
    total = sum(shares)
    rooms = [max(1, int(slots * share / total)) for share in shares]
    while sum(rooms) > slots:
        rooms[int(np.argmax(rooms))] -= 1
    return rooms


def _check(strata: Sequence[Stratum], batch_size: int, slots: int, spare: int) -> None:
    total = sum(s.share for s in strata)
    if abs(total - batch_size) > 1e-6 * batch_size or any(s.share <= 0 for s in strata):
        shares = ", ".join(f"{s.name}: {s.share:g}" for s in strata)
        raise UsageError(
            f"shares of a batch must be positive and add up to batch_size={batch_size}, got "
            f"{shares} (in all {total:g})"
        )
    for stratum in strata:
        if not stratum.records:
            raise UsageError(
                f"no record belongs to {stratum.name!r}, so that no batch can hold its share of "
                f"{stratum.share:g}; check labels and annotations"
            )
    needed = len(strata) + spare
    if slots < needed:
        raise BudgetError(
            f"{len(strata)} shares need {needed} big chunks in memory at a time, but the budget "
            f"has {slots} slots; raise resident= or make bigchunk_size smaller"
        )
