"""What the batches of a `LightDL` are made from, put together.

An `Assembly` is values only: it makes a plan, a resident set and an engine anew for every
epoch and every start. Not covered: where the loader stands (`daskdmed.loading.progress`), and
how visits are chosen (`daskdmed.loading.planning`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from dask.base import tokenize

from daskdmed.core.errors import GeometryError
from daskdmed.core.randomness import seed_key
from daskdmed.loading.engine import Engine, Sampling
from daskdmed.loading.foreseen import Foresight
from daskdmed.loading.local import LocalEngine
from daskdmed.loading.planning import Planning
from daskdmed.loading.progress import DrawProgress, epoch_seed
from daskdmed.loading.ranks import on_this_machine
from daskdmed.loading.remote import BYTES_PER_TASK, DEPTH, RemoteEngine
from daskdmed.loading.sampling import CropSpec
from daskdmed.persistence.budget import check_workers
from daskdmed.persistence.catalogue import Catalogue, Geometry
from daskdmed.persistence.cluster import Cluster
from daskdmed.persistence.ranks import Ranks
from daskdmed.persistence.reading import RegionChooser
from daskdmed.persistence.resident import ResidentSet
from daskdmed.persistence.tally import Tally
from daskdmed.persistence.units import JobFactory


@dataclass(frozen=True)
class Assembly:
    """Values that batches are a function of."""

    #: bytes of all big chunks
    budget: int
    geometry: Geometry
    planning: Planning
    #: but its key, areas and classes are those of an epoch's plan
    sampling: Sampling
    chooser: RegionChooser | None

    def planned(self, epoch: int) -> Planning:
        """How the visits of an epoch are chosen."""
        return replace(self.planning, seed=epoch_seed(self.planning.seed, epoch))

    def draws(self, epoch: int) -> int | None:
        """Draws of an epoch's plan; None when it is endless, or may end anywhere."""
        if not getattr(self.planning.policy, "each_once", False):
            return None
        plan, _ = self.planned(epoch).plan()
        return sum(len(turn) for turn in plan)

    def engine(
        self, cluster: Cluster, progress: DrawProgress, tally: Tally, ranks: Ranks | None
    ) -> Engine:
        """What makes the batches after those taken; `ranks` are on the same cluster.

        BudgetError: workers have no room for the budget beside what else they need.
        """
        if not cluster.in_process:
            self._check_workers(cluster)
        planning, catalogue = self.planned(progress.epoch), self.planning.catalogue
        plan, classes = planning.plan()
        plan.skip_to(progress.cursor.position)
        key = seed_key(planning.seed)
        areas = planning.areas if planning.restricted else None
        sampling = replace(self.sampling, key=key, areas=areas, classes=classes, base=progress.base)
        foresight = self._foresight(sampling)
        size, around = self.geometry.bigchunk, self.geometry.context
        residents = ResidentSet(
            cluster.client,
            plan,
            JobFactory(catalogue, self.chooser, size, key, around, foresight.drawn),
            planning.allotment.keeping(foresight.most_bytes),
            in_process=cluster.in_process,
            tally=tally,
            ranks=ranks,
        )
        begin = (residents, catalogue, sampling, progress.cursor, progress.keeper(), foresight)
        if cluster.in_process:
            return LocalEngine(*begin)
        return RemoteEngine(*begin, workers=cluster.workers)

    def _foresight(self, sampling: Sampling) -> Foresight:
        planning = self.planning
        catalogue, once = planning.catalogue, getattr(planning.policy, "each_once", False)
        stays = planning.allotment.slots >= sum(catalogue.population.blocks) and not once
        fails = once or sampling.on_error == "skip"
        return Foresight(catalogue, sampling, stays=stays, fails=fails)

    def _check_workers(self, cluster: Cluster) -> None:
        """What workers need beside big chunks: tiles that are decoded, crops that nobody has."""
        planning = self.planning
        crops = planning.allotment.capacity * planning.draws_per_visit * self.sampling.crop.nbytes
        most = DEPTH * BYTES_PER_TASK * cluster.workers
        check_workers(
            self.budget,
            cluster.limits,
            cluster.threads,
            2 * planning.catalogue.tile_bytes,
            min(crops, most) if planning.lattice is None else most,
        )

    def ranks(self, cluster: Cluster, progress: DrawProgress) -> Ranks | None:
        """The other ranks, when there are some."""
        rank, world_size = self.sampling.rank, self.sampling.world_size
        if world_size == 1:
            return None
        shared = {**self.parameters(progress), "rank": None, "epoch": progress.epoch}
        meeting = on_this_machine(world_size) if cluster.of_machine else world_size
        return Ranks(cluster.client, tokenize(shared), rank, world_size, meeting=meeting)

    def _context(self) -> dict[str, Any]:
        context = self.geometry.context
        return {} if context is None else {"context": [*context.around, context.edge]}

    def parameters(self, progress: DrawProgress) -> dict[str, Any]:
        """What batches depend on."""
        planning = self.planning
        entries = planning.catalogue.entries
        return {
            # by name and shape: on another machine the same files have other paths and times
            "dataset": tokenize([e.summary for e in entries]),
            "patients": len(entries),
            "smallchunk_size": list(self.geometry.smallchunk),
            "bigchunk_size": list(self.geometry.bigchunk),
            "batch_size": planning.batch_size,
            "slots": planning.allotment.slots,
            "smallchunks_per_bigchunk": planning.draws_per_visit,
            "seed": planning.seed,
            "rank": self.sampling.rank,
            "world_size": self.sampling.world_size,
            "feedback_lag": progress.lag,
            **planning.catalogue.asked,
            **self._context(),
            **planning.parameters(),
        }


def crop_of(
    catalogue: Catalogue, geometry: Geometry, *, squeeze: bool = False, objects: bool = False
) -> CropSpec:
    """Shape and type of a small chunk."""
    target, channels = catalogue.entries[0].target, catalogue.channels
    if geometry.context is not None:
        channels = (geometry.context.count * math.prod(channels),)
    return CropSpec(
        size=geometry.smallchunk,
        channels=channels,
        dtype=catalogue.dtype,
        target_channels=None if target is None else target.channel_shape,
        target_dtype=None if target is None else target.dtype,
        target_ratio=_common_ratio(catalogue),
        around=geometry.context,
        squeeze=squeeze,
        objects=objects,
    )


def _common_ratio(catalogue: Catalogue) -> tuple[int, ...]:
    """Pixels of the image per pixel of the target; empty when it is one."""
    ratios = {entry.target_ratio: entry for entry in catalogue.entries}
    if len(ratios) > 1:
        named = [f"{e.patient.id}: {r}" for r, e in list(ratios.items())[:3]]
        raise GeometryError(
            f"targets of a batch must agree in resolution, but differ ({', '.join(named)} "
            "pixels of the image per pixel of the target); give target_mpp="
        )
    ratio = next(iter(ratios))
    return () if set(ratio) == {1} else ratio
