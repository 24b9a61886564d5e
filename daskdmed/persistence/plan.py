"""The rotation: which visits are resident when, and which visit each draw comes from.

Pure and seeded: no Dask, no I/O, no clock. A plan is a sequence of *turns*. In each turn
the oldest resident visit uses up its draws and leaves, every other gives its share, and
one new visit is admitted before the next turn. A visit that leaves ``i`` turns from now
gives ``remaining / (i + 1)`` draws now. That one rule staggers the visits, from a cold
start (all admitted at once) as in the steady state, with every visit giving exactly its
number of draws, mostly ``draws_per_visit`` for all.

Not covered: where in a big chunk a draw is cropped (`daskdmed.loading.collectors`), and
futures (`daskdmed.persistence.resident`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from daskdmed.core.errors import NoTissueError, UsageError
from daskdmed.core.randomness import Purpose, generator, seed_key
from daskdmed.core.types import Array
from daskdmed.persistence.areas import GOLDEN, spread
from daskdmed.persistence.policy import Policy, Situation

#: visits that the very first draws come from; the others join while these are drawn from
FIRST_VISITS = 8


@dataclass(frozen=True, slots=True)
class Visit:
    """One stay of one big chunk in memory.

    `number`: position in the order of admission; with the seed it keys the visit's random numbers.
    `block`: flat index in the record's block grid. `nth`: how many visits the record had before.
    `stratum`: which share of the batches it is drawn for, see `daskdmed.persistence.strata`.
    """

    number: int
    record: int
    block: int
    nth: int
    stratum: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One step of the rotation: `visits[i]` is the visit of draw ``start + i`` of the whole plan.

    `draws[i]`: how many draws that visit had given before. `resident` is oldest first; those
    `leaving` have given all their draws when the turn ends. `left[i]`: how many draws
    ``resident[i]`` has left when the turn begins.
    """

    number: int
    start: int
    resident: tuple[Visit, ...]
    leaving: tuple[Visit, ...]
    visits: Array
    draws: Array
    left: Array

    def __len__(self) -> int:
        return int(self.visits.size)

    def left_at(self, position: int) -> dict[int, int]:
        """Draws that each resident visit has left when the plan stands at a draw of the turn."""
        numbers = np.array([visit.number for visit in self.resident], np.int64)
        given = self.visits[: max(position - self.start, 0)]
        order = np.argsort(numbers, kind="stable")
        at = order[np.searchsorted(numbers[order], given)]
        left = self.left - np.bincount(at, minlength=numbers.size)
        return dict(zip(numbers.tolist(), left.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Population:
    """What is drawn from: facts per record, in the order of the dataset.

    Parameters
    ----------
    blocks : tuple of int
        Big chunks per record.
    patients : tuple of str
        Patient id per record.
    labels : tuple of mapping
        Patient labels per record.
    """

    blocks: tuple[int, ...]
    patients: tuple[str, ...] = ()
    labels: tuple[Mapping[str, Any], ...] = ()


#: weight of each big chunk of a record, None for equal ones
Weights: TypeAlias = Callable[[int], "Array | None"]
#: whether a visit of a big chunk of a record takes place
Accepts: TypeAlias = Callable[[int, int, np.random.Generator], bool]
#: how many draws a visit of a big chunk of a record gives
Draws: TypeAlias = Callable[[int, int], int]


class RotationPlan:
    """Turns of the rotation, as an iterator that never looks outside itself.

    `weights` gives the weight of each big chunk of a record (by its number), which are then visited
    in proportion to it; it is asked when the record is first admitted, and a record of zeros is not
    admitted. `accepts` (record, big chunk, generator) says whether a visit takes place that is due
    by `weights`: with weights that are bounds, and yes with the probability of what there really is
    in proportion to its bound, visits are in proportion to what there is. Policies with
    ``each_once`` do not ask. `draws` says how many draws a visit gives in the place of
    `draws_per_visit`, at least one. Plans of one seed that differ in `stream` are unrelated.
    NoTissueError, while iterating: no record has anything to draw from.
    """

    def __init__(
        self,
        population: Population,
        *,
        slots: int,
        draws_per_visit: int,
        seed: int,
        policy: Policy,
        weights: Weights | None = None,
        accepts: Accepts | None = None,
        draws: Draws | None = None,
        stream: int = 0,
    ) -> None:
        if not population.blocks:
            raise UsageError("there is nothing to draw from: the dataset has no usable records")
        if slots < 1 or draws_per_visit < 1:
            raise UsageError(
                f"slots and smallchunks_per_bigchunk must be at least 1, got {slots} and "
                f"{draws_per_visit}"
            )
        self.population = population
        self.slots = min(slots, sum(population.blocks))
        self.draws_per_visit = draws_per_visit
        self._policy = policy
        self._weights = weights
        self._draws = draws
        self._once = bool(getattr(policy, "each_once", False))
        self._accepts = None if self._once else accepts
        # stream 0 is the seed itself
        self._key = seed_key(seed) ^ (stream * 0x9E3779B97F4A7C15 % 2**64)
        self._blocks = np.array(population.blocks, np.int64)
        self._counts = np.zeros(len(population.blocks), np.int64)
        self._due = np.zeros(len(population.blocks), np.int64)
        self._last = np.full(len(population.blocks), -1, np.int64)
        self._laps: dict[int, tuple[int, Array]] = {}
        self._resident: list[Visit] = []
        #: of each of them number, record, draws that are left, and draws that it gives in all;
        #: replaced, never written to, because turns and policies see parts of it
        self._table = np.zeros((4, 0), np.int64)
        self._exhausted = False
        self._admitted = 0
        self._turn = 0
        self._position = 0
        self._blocks.flags.writeable = False

    # -- admission ------------------------------------------------------------------

    def _admit(self) -> Visit | None:
        if self._exhausted:
            return None
        for _ in range(2 * self._blocks.size + 1):
            record = self._choose()
            if record is None:
                self._exhausted = True
                return None
            weights = None if self._weights is None else self._weights(record)
            if weights is not None:
                self._note_blocks(record, int(np.count_nonzero(weights)))
            if self._blocks[record]:
                return self._visit(record, weights)
        raise NoTissueError(
            f"the policy {type(self._policy).__name__} keeps admitting records that have nothing "
            "to draw from; Situation.blocks is 0 for them"
        )

    def _note_blocks(self, record: int, usable: int) -> None:
        """Correct how many big chunks of a record have anything to draw from."""
        if usable == self._blocks[record]:
            return
        blocks = self._blocks.copy()
        blocks[record] = usable
        blocks.flags.writeable = False
        self._blocks = blocks
        if not blocks.any():
            raise NoTissueError(
                f"none of the {blocks.size} records has a place for a small chunk: lower "
                "min_tissue or choose another tissue method (see daskdmed.tissue_mask), check that "
                "classes of labels= and quotas= are spelt as in the annotations"
            )

    def _choose(self) -> int | None:
        counts = self._counts.copy()  # policies may keep what they see
        counts.flags.writeable = False
        ages = self._admitted - self._last
        ages.flags.writeable = False
        situation = Situation(
            visit=self._admitted,
            counts=counts,
            blocks=self._blocks,
            ages=ages,
            resident=self._table[1],
            patients=self.population.patients,
            labels=self.population.labels,
        )
        choice = self._policy.admit(situation, generator(self._key, Purpose.ADMIT, self._admitted))
        if choice is None:
            return None
        record = int(choice)
        if not 0 <= record < self._blocks.size:
            raise UsageError(
                f"policy {type(self._policy).__name__} admitted record {record}, but there are "
                f"records 0 to {self._blocks.size - 1}"
            )
        return record

    def _visit(self, record: int, weights: Array | None) -> Visit:
        nth = int(self._counts[record])
        visit = Visit(self._admitted, record, self._block(record, weights), nth)
        self._counts[record] += 1
        self._last[record] = self._admitted
        self._admitted += 1
        return visit

    def _block(self, record: int, weights: Array | None) -> int:
        """Big chunk of a record's next visit.

        They are due in random order, each once per lap, or as often as its weight says.
        """
        length = int(self._blocks[record])
        while True:
            lap, at = divmod(int(self._due[record]), length)
            self._due[record] += 1
            block = int(self._lap(record, lap, length, weights)[at])
            if self._accepts is None:
                return block
            if self._accepts(record, block, generator(self._key, Purpose.ACCEPT, record, lap, at)):
                return block

    def _lap(self, record: int, lap: int, length: int, weights: Array | None) -> Array:
        known = self._laps.get(record)
        if known is None or known[0] != lap:
            rng = generator(self._key, Purpose.BLOCKS, record, lap)
            if weights is None:
                order = rng.permutation(length)
            elif self._once:
                order = rng.permutation(np.flatnonzero(weights))
            else:
                phase = generator(self._key, Purpose.SHIFT, record).random()
                order = spread(weights, (phase + lap * GOLDEN) % 1.0, rng)
            known = self._laps[record] = (lap, order)
        return known[1]

    def _fill(self) -> None:
        while len(self._resident) < self.slots:
            visit = self._admit()
            if visit is None:
                return
            self._resident.append(visit)
            count = self.draws_per_visit
            if self._draws is not None:
                count = self._draws(visit.record, visit.block)
            row = np.array([[visit.number], [visit.record], [count], [count]])
            self._table = _fixed(np.concatenate([self._table, row], axis=1))

    # -- turns ----------------------------------------------------------------------

    def __iter__(self) -> Iterator[Turn]:
        return self

    def __next__(self) -> Turn:
        shares, rng = self._step()
        resident = tuple(self._resident)
        # admitted in order, so that numbers are sorted; in arrays because there may be many
        numbers, _, remaining, whole = self._table
        order = self._order(shares, rng)
        givers = shares.nonzero()[0]
        counts = shares[givers]
        draws = (whole - remaining)[givers].repeat(counts) + _within(counts)
        # a visit's own draws stay in order however the turn is shuffled
        owners = givers.repeat(counts)[order]
        by_owner = owners.argsort(kind="stable")
        ordered = np.empty_like(draws)
        ordered[by_owner] = draws
        turn = Turn(
            number=self._turn,
            start=self._position,
            resident=resident,
            leaving=resident[:1],
            visits=numbers[owners],
            draws=ordered,
            left=remaining,
        )
        self._finish(shares)
        return turn

    def skip_to(self, position: int) -> None:
        """Advance by whole turns: the next turn is the one that holds the draw of that number."""
        while True:
            before = self._snapshot()
            try:
                shares, _ = self._step()
            except StopIteration:
                return
            if self._position + int(shares.sum()) > position:
                self._restore(before)
                return
            self._finish(shares)

    @property
    def position(self) -> int:
        return self._position

    def _step(self) -> tuple[Array, np.random.Generator]:
        """Admit what is due and share out the draws of this turn."""
        self._fill()
        if not self._resident:
            raise StopIteration
        rng = generator(self._key, Purpose.TURN, self._turn)
        remaining = self._table[2]
        due = remaining / np.arange(1, remaining.size + 1)
        shares = np.floor(due + rng.random(due.size)).astype(np.int64)
        # only the oldest may leave, so that one visit leaves at a time
        shares = np.minimum(shares, remaining - 1)
        shares[0] = remaining[0]
        return shares, rng

    def _order(self, shares: Array, rng: np.random.Generator) -> Array:
        """Random order of the draws; in the first turn late visits are drawn from late."""
        when = rng.random(int(shares.sum()))
        if self._turn == 0:
            late = np.arange(shares.size) - min(FIRST_VISITS, shares.size) + 1
            opens = np.clip(late, 0, None) / shares.size
            when = np.repeat(opens, shares) + when * (1 - np.repeat(opens, shares))
        order: Array = when.argsort(kind="stable")
        return order

    def _finish(self, shares: Array) -> None:
        """The oldest visit has given all its draws, the others theirs of this turn."""
        self._resident = self._resident[1:]
        table = self._table[:, 1:].copy()
        table[2] -= shares[1:]
        self._table = _fixed(table)
        self._position += int(shares.sum())
        self._turn += 1

    def _snapshot(self) -> tuple[Any, ...]:
        return (
            list(self._resident),
            self._table,
            self._counts.copy(),
            self._due.copy(),
            self._last.copy(),
            self._admitted,
            self._exhausted,
        )

    def _restore(self, saved: tuple[Any, ...]) -> None:
        self._resident, self._table = saved[:2]
        self._counts, self._due, self._last, self._admitted, self._exhausted = saved[2:]


def _fixed(array: Array) -> Array:
    array.flags.writeable = False
    return array


def _within(shares: Array) -> Array:
    """0, 1, ..., n - 1 for each share of n, one after the other."""
    ends = shares.cumsum()
    within: Array = np.arange(int(ends[-1])) - (ends - shares).repeat(shares)
    return within
