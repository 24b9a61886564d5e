"""Plan and resident set in, batches out: what all ways of sampling have in common.

Big chunks of this machine are cropped from here, by reference and copied once, straight into
the batch: whether a thread of this process has read them or another process.

The stream of small chunks is the plan's draws in order, less the draws of visits that
ended early (their collector gave up, or their block could not be read and
``on_error="skip"``). Batches are cut from that stream. So a batch depends on the dataset,
the parameters and the seed, and on nothing else.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from dask.system import CPU_COUNT

from daskdmed.cohort.sources import Failure
from daskdmed.core import live
from daskdmed.core.errors import LoaderError
from daskdmed.core.types import Array
from daskdmed.loading.batch import Batch, BatchBuilder, Cursor
from daskdmed.loading.chunks import BigChunk, Provenance
from daskdmed.loading.collectors import CollectorFunction
from daskdmed.loading.copying import Copier
from daskdmed.loading.foreseen import Foresight
from daskdmed.loading.lattice import Lattice
from daskdmed.loading.patientstate import StateKeeper, VisitState
from daskdmed.loading.sampling import CropSpec, VisitFacts, VisitSampler
from daskdmed.loading.spans import Span, cut
from daskdmed.persistence.catalogue import Catalogue
from daskdmed.persistence.labelmaps import Classes
from daskdmed.persistence.plan import Turn, Visit
from daskdmed.persistence.resident import ResidentSet
from daskdmed.persistence.where import AreaSource

logger = logging.getLogger("daskdmed.loading")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters of sampling, the same in both engines.

    `adaptive`: draw more from what is there instead of waiting. `even`: the last batches of a
    finite plan are left out when not every rank gets one. `classes`: those that each stratum draws
    from. `lattice`: gives each position of a grid once. `free_regions`: visits hold other regions
    than the grid's big chunks.
    `composed`: batches hold a share of each stratum, so that a draw that is lost is replaced by one
    of the same stratum. `key`: from the seed of the epoch. `base`: the draw from which on draws are
    dealt like this.
    """

    crop: CropSpec
    batch_size: int
    draws_per_visit: int
    collect: CollectorFunction | None
    adaptive: bool
    on_error: Literal["raise", "skip"]
    rank: int
    world_size: int
    key: int = 0
    base: int = 0
    even: bool = False
    areas: AreaSource | None = None
    classes: tuple[Classes, ...] = (Classes(),)
    lattice: Lattice | None = None
    free_regions: bool = False
    composed: bool = False


class Elsewhere(Protocol):
    """Where pixels of visits can be kept instead of where they were read to."""

    @property
    def name(self) -> str:
        """What people call it."""

    def admit(self, sampler: VisitSampler) -> bool:
        """Take the pixels of a visit over; False: they stay where they are."""

    def evict(self, number: int) -> None:
        """Let go of a visit's pixels, if they are here."""

    def close(self) -> None:
        """Let go of all. Idempotent."""


class Engine(ABC):
    """Makes batches from a resident set, beginning at a cursor."""

    #: no span has more draws than this
    longest_span = 1 << 62

    def __init__(
        self,
        residents: ResidentSet,
        catalogue: Catalogue,
        sampling: Sampling,
        cursor: Cursor,
        states: StateKeeper | None,
        foresight: Foresight,
    ) -> None:
        self.residents = residents
        self._foresight = foresight
        self.states = states
        self.catalogue = catalogue
        self.sampling = sampling
        self._ended: dict[int, int] = dict(cursor.ended)
        self._position = cursor.position
        self._batches = cursor.batches
        self._turn = -1
        self._builder = BatchBuilder(sampling.batch_size, sampling.crop, sampling.key)
        self._elsewhere: Elsewhere | None = None
        self._visits: dict[int, Visit] = {}
        self._provenance: dict[int, Provenance] = {}
        self._facts: dict[int, VisitFacts] = {}
        self._barren = 0
        #: of visits that are cropped from here
        self._samplers: dict[int, tuple[VisitSampler, Provenance]] = {}
        self._copier = Copier(CPU_COUNT)
        #: draws beyond the plan that visits have given
        self._beyond: dict[int, int] = {}
        # only for draws beyond the plan, which no seed reproduces anyway
        self._whim = np.random.default_rng(sampling.key)

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Batches in order; ends when the plan does, with a short one if any is left."""

    def use(self, builder: BatchBuilder, elsewhere: Elsewhere | None = None) -> None:
        """Have batches made by another builder, and big chunks kept elsewhere; before the first."""
        self._builder, self._elsewhere = builder, elsewhere

    @property
    def resident_on(self) -> str:
        """Where big chunks are that are drawn from: "host", or a device."""
        return "host" if self._elsewhere is None else self._elsewhere.name

    def spans(self) -> Iterator[Span]:
        s = self.sampling
        return cut(
            self.residents.turns(),
            longest=self.longest_span,
            deal=s.batch_size,
            rank=s.rank,
            world_size=s.world_size,
            position=self._position,
            base=s.base,
            reaches=self.residents.reaches if s.even and s.world_size > 1 else None,
        )

    def begin_turn(self, turn: Turn) -> None:
        """States of visits that are gone are left behind, those of new ones loaded."""
        if self.states is None or turn.number == self._turn:
            return
        self._turn = turn.number
        entries = self.catalogue.entries
        patients = {
            v.number: str(entries[v.record].patient.id)
            for v in turn.resident
            if v.number not in self._ended
        }
        self.states.begin_turn(turn, patients)

    def visits_of(self, turn: Turn) -> dict[int, Visit]:
        """The turn's visits by number (and maybe newer ones); kept from turn to turn."""
        for visit in reversed(turn.resident):
            if visit.number in self._visits:
                break
            self._visits[visit.number] = visit
        return self._visits

    def facts(self, visit: Visit) -> VisitFacts:
        """What a sampler must know about a visit; made once."""
        facts = self._facts.get(visit.number)
        if facts is None:
            facts = self._facts[visit.number] = self._make_facts(visit)
        return facts

    def _make_facts(self, visit: Visit) -> VisitFacts:
        entry = self.catalogue.entries[visit.record]
        foreseen = self._foresight.of(visit)
        return VisitFacts(
            number=visit.number,
            nth=visit.nth,
            key=self.sampling.key,
            patient=str(entry.patient.id),
            record=entry.record,
            labels=dict(entry.patient.labels),
            region=entry.grid.region(visit.block),
            downsample=entry.view.downsample,
            level=entry.level,
            mpp=entry.view.mpp,
            area=foreseen.area,
            space=entry.view.space,
            held=foreseen.held,
            apart=foreseen.apart,
        )

    def remember(self, visit: Visit, bigchunks: tuple[BigChunk, ...]) -> Provenance:
        """Provenance that all small chunks of a visit share."""
        provenance = self._provenance.get(visit.number)
        if provenance is None:
            patient = self.catalogue.entries[visit.record].patient
            provenance = self._provenance[visit.number] = Provenance(patient, bigchunks)
        return provenance

    def open(self, visit: Visit, state: VisitState | None = None) -> None:
        """Be ready to crop from a visit that is here; waits for it."""
        if visit.number in self._samplers:
            return
        s = self.sampling
        loaded, facts = self.residents.fetch(visit.number), self.facts(visit)
        positions = self._foresight.of(visit).positions
        sampler = VisitSampler(
            loaded, facts, s.crop, s.collect, s.draws_per_visit, state, positions
        )
        if self._elsewhere is not None and self._elsewhere.admit(sampler):
            self.residents.hand_over(visit.number)
        self._samplers[visit.number] = sampler, self.remember(visit, sampler.bigchunks())

    def crop(self, visit: Visit, draw: int) -> bool:
        """Put one draw of a visit that is open into the batch; False: it gives none any more."""
        ended = self._builder.add(*self._samplers[visit.number], draw, self._copier)
        if ended is not None:
            self.end_visit(visit, draw, ended.error)
            return False
        self._barren = 0
        return True

    def crop_all(self, table: Mapping[int, Visit], visits: Array, draws: Array) -> bool:
        """`crop` for so many draws as the batch has room for, of visits that need not be open;
        False: they have to be cropped one by one."""
        numbers = visits.tolist()
        for number in dict.fromkeys(numbers):
            if number in self._ended:
                return False
            self.open(table[number])
        provenances = [self._samplers[number][1] for number in numbers]
        if not self._builder.add_all(provenances, visits, draws):
            return False
        self._barren = 0
        return True

    def next_beyond(self, number: int) -> int:
        """Number of the next draw beyond the plan of a visit, and count it."""
        draw = self._beyond.get(number, self.sampling.draws_per_visit)
        self._beyond[number] = draw + 1
        return draw

    def stand_ins(self, gone: Visit, turn: Turn, position: int) -> list[Visit]:
        """Visits that may give a draw in place of one that ended, in order of preference.

        They are of the same stratum, so that batches keep their composition, and depend on the plan
        alone. LoaderError: there are none.
        """
        others = [
            v for v in turn.resident if v.stratum == gone.stratum and v.number not in self._ended
        ]
        if not others:
            entry = self.catalogue.entries[gone.record]
            raise LoaderError(
                f"patient {str(entry.patient.id)!r}: a big chunk ended early, and no other one in "
                "memory belongs to the same quota, so that the batch cannot hold its share; give "
                "the quota more patients, or raise resident=",
                patient=str(entry.patient.id),
                record=entry.record,
            )
        first = position % len(others)
        return others[first:] + others[:first]

    def spare_draw(self, position: int) -> int:
        """Number of a draw beyond those that the plan gives a visit."""
        planned = self.sampling.draws_per_visit
        return planned + position % planned

    def cursor(self) -> Cursor:
        """State after the draws taken so far."""
        states = None if self.states is None else self.states.snapshot()
        return Cursor(self._position, dict(self._ended), self._batches, states)

    def finish_batch(self) -> Batch:
        """The batch that is complete, or the short last one."""
        self._batches += 1
        return self._builder.finish(self.cursor(), self._copier.start())

    def gave(self) -> None:
        self._barren = 0

    def end_visit(self, visit: Visit, draw: int, error: BaseException | None) -> None:
        """Note that a visit gives no more draws.

        LoaderError: it failed and ``on_error="raise"``; or no visit gives anything any more.
        """
        self._ended[visit.number] = draw
        if self.states is not None:
            self.states.leave(visit.number)
        self._barren += 1
        entry = self.catalogue.entries[visit.record]
        patient = str(entry.patient.id)
        region = entry.grid.region(visit.block)
        where = f"big chunk at {region.origin}, shape {region.shape}"
        if error is not None:
            message = (
                f"patient {patient!r}, record {entry.record!r}, {where}, draw {draw}: "
                f"{type(error).__name__}: {error}"
            )
            if self.sampling.on_error == "raise":
                raise LoaderError(message, patient=patient, record=entry.record) from error
            logger.warning("skipped %s", message)
            self.residents.tally.failures.append(Failure(patient, entry.record, where, str(error)))
        tried = self._barren
        if tried > 2 * self.residents.allotment.slots + 2 * len(self.catalogue.entries):
            failures = self.residents.tally.failures
            reason = failures[-1].message if failures else "the collector returned None"
            raise LoaderError(
                f"{tried} visits in a row gave no small chunk ({reason}); there is nothing to "
                "make a batch from"
            )

    def finish_turn(self, turn: Turn) -> None:
        # no reference to a block is left when the resident set lets go of it
        gone = [visit.number for visit in turn.leaving]
        self._copier.settle(gone)
        self._builder.settle(gone)
        for visit in turn.leaving:
            if self._elsewhere is not None:
                self._elsewhere.evict(visit.number)
            self._samplers.pop(visit.number, None)
            self._beyond.pop(visit.number, None)
        self.residents.finish(turn)
        for visit in turn.leaving:
            self._visits.pop(visit.number, None)
            self._ended.pop(visit.number, None)
            self._provenance.pop(visit.number, None)
            self._facts.pop(visit.number, None)
            self._foresight.forget(visit)

    def cells(self) -> list[live.Cell]:
        """The big chunks in memory or being read; for any thread."""
        return self.residents.cells(self._position)

    def interrupt(self) -> None:
        """Wake the thread that makes batches; it gets `LoaderClosedError`. Safe anywhere."""
        self.residents.interrupt()
        if self.states is not None:
            self.states.interrupt()

    def close(self) -> None:
        self._copier.close()
        self._samplers.clear()
        self._provenance.clear()
        if self._elsewhere is not None:
            self._elsewhere.close()
        if self.sampling.areas is not None:
            self.sampling.areas.close()
        self.residents.close()
