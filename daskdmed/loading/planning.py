"""From what users ask for to a plan: tissue, classes, quotas, policy.

`Planning` is what a loader keeps of its sampling arguments; it makes the plan anew for every
start, because a plan is an iterator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dask.base import tokenize
from toolz import unique  # type: ignore[import-untyped]

from daskdmed.core.errors import UsageError
from daskdmed.loading.lattice import Lattice
from daskdmed.loading.quotas import Quota, strata_of
from daskdmed.persistence.budget import Allotment
from daskdmed.persistence.catalogue import Catalogue
from daskdmed.persistence.labelmaps import Classes
from daskdmed.persistence.plan import RotationPlan
from daskdmed.persistence.policy import Policy
from daskdmed.persistence.strata import StratifiedPlan
from daskdmed.persistence.where import AreaSource, Wish

#: masks of so many records are made ahead of the plan
_AHEAD = 10_000


@dataclass(frozen=True)
class Planning:
    """How visits are chosen."""

    catalogue: Catalogue
    allotment: Allotment
    wish: Wish
    areas: AreaSource
    quotas: tuple[Quota, ...]
    #: classes that what quotas leave is drawn from; empty for all places
    labels: Classes
    policy: Policy
    batch_size: int
    draws_per_visit: int
    seed: int
    #: gives each position of a grid once, in the place of draws
    lattice: Lattice | None = None

    def __post_init__(self) -> None:
        if not 0 < self.wish.least <= 1:
            raise UsageError(f"min_tissue is a fraction in (0, 1], got {self.wish.least}")

    @property
    def restricted(self) -> bool:
        """Whether there are places where no small chunk may lie."""
        return self.wish.masked or bool(self.labels) or any(q.classes for q in self.quotas)

    def plan(self) -> tuple[RotationPlan | StratifiedPlan, tuple[Classes, ...]]:
        """A new plan, and the classes that each of its strata draws from."""
        if self.wish.masked:
            self.areas.prefetch(self._order())
        options: dict[str, Any] = {
            "slots": self.allotment.slots,
            "draws_per_visit": self.draws_per_visit,
            "seed": self.seed,
            "policy": self.policy,
        }
        population = self.catalogue.population
        lattice, chosen = self.lattice, self.areas.choice(self.labels)
        if lattice is not None:
            chosen = {"weights": lattice.weights, "draws": lattice.draws}
        if not self.quotas:
            return RotationPlan(population, **options, **chosen), (self.labels,)
        strata, classes = strata_of(
            self.quotas, self.catalogue, self.areas, self.batch_size, self.labels
        )
        plan = StratifiedPlan(population, strata, batch_size=self.batch_size, **options)
        return plan, tuple(classes)

    def _order(self) -> Iterator[int]:
        """Records in about the order in which they will be admitted."""
        ahead = RotationPlan(
            self.catalogue.population,
            slots=self.allotment.slots,
            draws_per_visit=1,
            seed=self.seed,
            policy=self.policy,
        )
        turns = itertools.islice(ahead, min(_AHEAD, len(self.catalogue.entries)))
        return iter(unique(visit.record for turn in turns for visit in turn.resident))

    def _named(self, quota: Quota) -> tuple[Any, ...]:
        classes = quota.classes
        named = (quota.share, classes.labels, quota.title)
        return (*named, classes.of, classes.at) if self.areas.maps.meant(classes) else named

    def parameters(self) -> dict[str, Any]:
        """What batches depend on, for ``state_dict``; empty when nothing was asked for."""
        asked: dict[str, Any] = {}
        if self.wish.masked:
            asked["tissue"] = self.wish.tissue if isinstance(self.wish.tissue, str) else "own"
            asked["min_tissue"] = self.wish.least
        if self.labels:
            asked["labels"] = list(self.labels.labels)
            if self.areas.maps.meant(self.labels):
                asked["labels_of"] = self.labels.of
        if self.quotas:
            asked["quotas"] = tokenize([self._named(q) for q in self.quotas])
        if self.lattice is not None:
            asked["each_once"] = self.lattice.parameters
        return asked
