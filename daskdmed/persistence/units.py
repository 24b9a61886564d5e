"""What one read task brings, and how it is called: visits of the plan made into jobs.

Not covered: when it is read (`daskdmed.persistence.resident`), and how
(`daskdmed.persistence.reading`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dask.base import tokenize

from daskdmed.images.context import Context
from daskdmed.persistence.catalogue import Catalogue
from daskdmed.persistence.cluster import BIG_CHUNK
from daskdmed.persistence.drawn import Drawn
from daskdmed.persistence.plan import Visit
from daskdmed.persistence.reading import Job, LoadContext, Loaded, RegionChooser, Ticket
from daskdmed.persistence.tally import Place

if TYPE_CHECKING:
    from distributed import Future


@dataclass(eq=False)
class Unit:
    """What one read task brings: one big chunk, or a few small ones, in order of admission.

    `key` also names the content. `future` is None before it was submitted and after it was let go;
    `ticket` keeps the jobs where workers of this process find them; `mapped` is what another
    process of this machine has read, by reference; `holder` is the worker that holds it, as far as
    known, see `ResidentSet.holders`; `elsewhere` are visits whose pixels are kept somewhere else,
    see `ResidentSet.hand_over`.
    """

    visits: tuple[Visit, ...]
    key: tuple[Any, ...]
    jobs: tuple[Job, ...]
    future: Future | None = None
    ticket: Ticket | None = None
    mapped: Loaded | None = None
    holder: str | None = None
    asked: float = field(default_factory=time.monotonic)
    waiting_for: set[int] = field(default_factory=set)
    elsewhere: set[int] = field(default_factory=set)

    @property
    def pixels(self) -> int:
        """Of its big chunks that are read; what lies around whole ones is not counted."""
        return sum(job.pixels for job in self.jobs)

    @property
    def single(self) -> bool:
        """Whether the task's result is the one job's result itself."""
        return len(self.jobs) == 1

    def let_go(self) -> None:
        """Have Dask free the block; at once, though callbacks may hold the future too."""
        future, self.future, self.ticket, self.mapped = self.future, None, None, None
        if future is not None:
            with contextlib.suppress(RuntimeError):  # the client's event loop has ended
                future.release()


class JobFactory:
    """Makes the read jobs and the key of a unit.

    `chooser` is the user's big-chunk loader, `around` what is read around big chunks. `foresee`
    says what will be drawn of a visit, None where nobody knows: then all of it is read. The key
    says what is held: loaders whose draws need other storage tiles do not share the big chunk,
    those of one plan do.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        chooser: RegionChooser | None,
        bigchunk_size: tuple[int, ...],
        key: int,
        around: Context | None = None,
        foresee: Callable[[Visit], Drawn | None] | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._around = around
        self._chooser = chooser
        self._bigchunk_size = bigchunk_size
        self._key = key
        self._foresee = foresee
        self._chooser_token = None if chooser is None else tokenize(chooser, key)[:12]

    def unit(self, visits: tuple[Visit, ...]) -> Unit:
        jobs = tuple(self._job(v) for v in visits)
        named = [self._name(*both) for both in zip(visits, jobs, strict=True)]
        key = (BIG_CHUNK, *(named[0] if len(named) == 1 else [tokenize(*named)]))
        return Unit(visits, key, jobs, waiting_for={v.number for v in visits})

    def place(self, visit: Visit) -> Place:
        """What events say of a visit."""
        entry = self._catalogue.entries[visit.record]
        region = entry.grid.region(visit.block)
        return str(entry.patient.id), entry.record, visit.number, region

    def _name(self, visit: Visit, job: Job) -> tuple[Any, ...]:
        entry = self._catalogue.entries[visit.record]
        target = "" if entry.target is None else f"+{entry.target.token}"
        content = f"{entry.patient.id}/{entry.record}-{entry.view.token}{target}"
        if self._around is not None:
            content += f"~{self._around.edge}{'x'.join(map(str, self._around.around))}"
        if self._chooser is not None:
            return (content, self._chooser_token, visit.number)
        held = f"/{job.digest}" if job.digest else ""
        return (content, *job.region.origin, "x".join(map(str, job.region.shape)) + held)

    def _job(self, visit: Visit) -> Job:
        entry = self._catalogue.entries[visit.record]
        region = entry.grid.region(visit.block)
        if self._chooser is None:
            ratio, around = entry.target_ratio, self._around
            job = Job(entry.view, entry.target, region, target_ratio=ratio, around=around)
            return job if self._foresee is None else job.drawn(self._foresee(visit))
        view = entry.view
        context = LoadContext(
            patient=str(entry.patient.id),
            record=entry.record,
            labels=dict(entry.patient.labels),
            region=region,
            shape=view.spatial_shape,
            bigchunk_size=self._bigchunk_size,
            downsample=view.downsample,
            mpp=view.mpp,
            visit=visit.number,
            nth=visit.nth,
        )
        place = (self._key, visit.number)
        chosen = (context, self._chooser, place, entry.target_ratio, self._around)
        return Job(view, entry.target, region, *chosen)
