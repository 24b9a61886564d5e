"""The arguments of a `LightDL`, checked, and what they come to.

Images are opened, big chunks laid out, places looked up that small chunks may lie at: whatever is
wrong with an argument is said before a pixel is read. Not covered: how batches are made
(`daskdmed.loading.assembly`), and what all loaders are told (`daskdmed.loading.loader`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskdmed.cohort.sources import Request, check_on_error, images_of
from daskdmed.core.checks import check_choice, check_count, check_seed
from daskdmed.loading import torchbridge
from daskdmed.loading.assembly import Assembly, crop_of
from daskdmed.loading.collectors import as_chooser, as_collector
from daskdmed.loading.engine import Sampling
from daskdmed.loading.lattice import lattice_of
from daskdmed.loading.planning import Planning
from daskdmed.loading.quotas import as_quotas, asked_classes
from daskdmed.persistence import catalogue as catalogues
from daskdmed.persistence.asked import check_asked
from daskdmed.persistence.budget import allot, to_bytes
from daskdmed.persistence.catalogue import Geometry, Target
from daskdmed.persistence.policy import EachOnce, as_policy
from daskdmed.persistence.where import AreaSource, Wish


class Arguments:
    """What a user says, by name (`said`), as `LightDL` documents it; each error names its argument.

    `images` are what is drawn from, `catalogue` those that can be used, `areas` where small chunks
    may lie in them; `geometry`, `collect` and the others what the argument of that name became.
    """

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._said = said
        torchbridge.check_collate(said["collate"], target=said["target"], squeeze=said["squeeze"])
        check_choice("rotation", said["rotation"], ("deterministic", "adaptive"))
        check_on_error(said["on_error"])
        self._draws = check_count("smallchunks_per_bigchunk", said["smallchunks_per_bigchunk"])
        self.images = images_of(said["dataset"], self._request())
        self._chooser = as_chooser(said["bigchunk_loader"])
        self._policy = as_policy(said["policy"])
        self.geometry = self._geometry()
        self._quotas, self._labels = as_quotas(said["quotas"], said["labels"], said["annotations"])
        self._budget = to_bytes(said["resident"])
        self.collect = as_collector(said["smallchunk_collector"])
        self._wish = Wish(said["tissue"], said["min_tissue"], said["annotations"])
        self.catalogue = catalogues.build(
            self.images,
            self.geometry,
            target=self._target(),
            maps=self._maps(),
            on_error=said["on_error"],
        )
        self.areas = AreaSource(
            self.catalogue,
            self._wish,
            self.geometry,
            on_error=said["on_error"],
            anywhere=self._chooser is not None,
        )
        check_asked(self.areas, asked_classes(self._quotas, self.catalogue, self._labels))
        self._lattice = lattice_of(
            self._policy,
            self.areas,
            self.geometry.smallchunk,
            self._labels,
            bigchunk_loader=self._chooser,
            smallchunk_collector=self.collect,
            quotas=self._quotas,
            rotation=self._adaptive,
        )

    # ------------------------------------------------------------------ one by one
    @property
    def _adaptive(self) -> bool:
        return bool(self._said["rotation"] == "adaptive")

    def _request(self) -> Request:
        how = (
            "record", "level", "mpp", "power", "spacing", "orientation", "channels", "tile_error",
        )  # fmt: skip
        # axes of space are those of the small chunks, see the catalogue
        return Request(spatial_ndim=None, **{name: self._said[name] for name in how})

    def _geometry(self) -> Geometry:
        said = self._said
        once = isinstance(self._policy, EachOnce)
        in_a_pass = getattr(self._policy, "each_once", False)
        return Geometry.of(
            said["smallchunk_size"],
            said["bigchunk_size"],
            pad=said["pad"],
            # in a pass each pixel lies in one big chunk; else any small chunk can be drawn
            by_places=self._chooser is None and (once or not in_a_pass),
            context=said["context"],
            context_edge=said["context_edge"],
        )

    def _target(self) -> Target | None:
        if self._said["target"] is None:
            return None
        names = ("target", "target_level", "target_mpp", "target_classes", "target_channels")
        return Target(*(self._said[name] for name in names))

    def _maps(self) -> list[str]:
        """Records that are asked where something is."""
        wanted = (self._labels, *(quota.classes for quota in self._quotas))
        return [name for name in (self._wish.map, *(c.of for c in wanted)) if name is not None]

    # ------------------------------------------------------------------ put together
    def assembly(self, batch_size: int, rank: int, world_size: int) -> Assembly:
        """What batches of this size are made from; BudgetError where the budget does not do."""
        said = self._said
        planning = Planning(
            self.catalogue,
            allot(self._budget, self.catalogue.block_bytes),
            self._wish,
            self.areas,
            self._quotas,
            self._labels,
            self._policy,
            batch_size=batch_size,
            draws_per_visit=self._draws,
            seed=check_seed(said["seed"]),
            lattice=self._lattice,
        )
        is_object = said["collate"] is not None
        sampling = Sampling(
            crop=crop_of(self.catalogue, self.geometry, squeeze=said["squeeze"], objects=is_object),
            batch_size=batch_size,
            draws_per_visit=self._draws,
            collect=self.collect,
            adaptive=self._adaptive,
            on_error=said["on_error"],
            rank=rank,
            world_size=world_size,
            even=said["drop_last"],
            free_regions=self._chooser is not None,
            composed=bool(self._quotas),
            lattice=self._lattice,
        )
        return Assembly(self._budget, self.geometry, planning, sampling, self._chooser)
