"""The positions of a grid, big chunk by big chunk: what `daskdmed.policies.EachOnce` gives.

Big chunks are cut by places, so that each position lies in exactly one of them, with all its
pixels. Not covered: the order of big chunks (`daskdmed.persistence.plan`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array
from daskdmed.persistence.areas import Chosen
from daskdmed.persistence.catalogue import Entry
from daskdmed.persistence.labelmaps import Classes
from daskdmed.persistence.policy import EachOnce, Policy
from daskdmed.persistence.where import AreaSource
from daskdmed.tiling.grid import WindowGrid, per_axis


class Lattice:
    """The positions where small chunks of `size` lie, of those where `areas` allows them."""

    def __init__(
        self, policy: EachOnce, areas: AreaSource, size: tuple[int, ...], classes: Classes
    ) -> None:
        self._stride = per_axis(policy.stride, len(size), "stride of EachOnce")
        self._edge, self._passes = policy.edge, policy.passes
        self._areas, self._size, self._classes = areas, size, classes
        self._counts: dict[int, npt.NDArray[np.int64]] = {}
        for entry in areas.catalogue.entries:
            if any(s % r for s, r in zip(self._stride, entry.target_ratio, strict=True)):
                raise GeometryError(
                    f"EachOnce: a target with one pixel per {entry.target_ratio} of the image "
                    f"needs a stride of whole pixels of it, got {self._stride}"
                )

    @property
    def parameters(self) -> dict[str, Any]:
        """What batches depend on."""
        return {"stride": list(self._stride), "edge": self._edge, "passes": self._passes}

    def _positions(self, entry: Entry, block: int) -> npt.NDArray[np.int64]:
        """Those inside a big chunk, (n, axes), wherever they may lie."""
        region = entry.grid.region(block)
        shape = tuple(max(n, s) for n, s in zip(entry.view.spatial_shape, self._size, strict=True))
        grid = WindowGrid.of(shape, self._size, stride=self._stride, edge=self._edge)
        axes = []
        for axis, count in enumerate(grid.counts):
            at = np.array([grid.axis_origin(axis, i) for i in range(count)], np.int64)
            at -= at % entry.target_ratio[axis]  # what was moved inside
            last = region.stop[axis] - self._size[axis]
            axes.append(np.unique(at[(at >= region.origin[axis]) & (at <= last)]))
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))

    def _allowed(self, record: int, block: int) -> npt.NDArray[np.int64]:
        entry = self._areas.catalogue.entries[record]
        places = self._positions(entry, block)
        if self._areas.maps.meant(self._classes):
            return places[self._areas.maps.marks(record, self._classes, block).hold(places)]
        area = self._areas.local(record, self._classes, entry.grid.region(block))
        return places if area is None else places[area.allowed(places, self._size)]

    def weights(self, record: int) -> Array:
        """Positions in each big chunk of a record."""
        if record not in self._counts:
            possible = self._areas.weights(record, self._classes)
            found = np.zeros(len(self._areas.catalogue.entries[record].grid), np.int64)
            for block in range(found.size):
                if possible is None or possible[block]:
                    found[block] = len(self._allowed(record, block))
            self._counts[record] = found
        return self._counts[record]

    def draws(self, record: int, block: int) -> int:
        """Positions in one big chunk."""
        return int(self.weights(record)[block])

    def chosen(self, record: int, block: int, rng: np.random.Generator) -> Chosen:
        """Those of a visit, in random order."""
        return Chosen(rng.permutation(self._allowed(record, block)).astype(np.int32))


def lattice_of(
    policy: Policy,
    areas: AreaSource,
    size: tuple[int, ...],
    classes: Classes,
    **contradicting: Any,
) -> Lattice | None:
    """That of a policy, None for those that leave places to chance.

    UsageError: it is given together with arguments, here by name, that it contradicts.
    """
    if not isinstance(policy, EachOnce):
        return None
    given = [name for name, value in contradicting.items() if value]
    if given:
        raise UsageError(
            f"policy=EachOnce(...) says itself which small chunks come: leave {', '.join(given)}= "
            "away, or take policy=OnePass()"
        )
    return Lattice(policy, areas, size, classes)
