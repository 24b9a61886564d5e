"""Which plane of an array of more than (y, x, c) is read: focal planes, time points.

Not covered: the meaning of axes (`daskdmed.images.ngff.metadata`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daskdmed.images.readers import Planes, choose_planes


@dataclass(frozen=True, slots=True)
class Stack:
    """The plane that is read of a stack, and the `extents` of level 0 by the names of axes."""

    planes: Planes
    extents: Mapping[str, int]

    @classmethod
    def of(cls, uri: str, plane: str, array: Any = None, names: Sequence[str] = ()) -> Stack:
        """Of level 0, along all its axes beside (y, x, c); without an array of a single plane."""
        extents = dict(zip(names, getattr(array, "shape", ()), strict=False))
        extents = {name: n for name, n in extents.items() if name not in ("y", "x", "c")}
        return cls(choose_planes(uri, plane, extents, {}), extents)

    def position(self, names: Sequence[str], shape: Sequence[int]) -> tuple[int, ...]:
        """Where it lies along the axes of a level, which may have fewer planes than level 0."""
        axes = zip(names, shape, strict=True)
        return tuple(
            min((2 * self.planes.at.get(name, 0) + 1) * n // (2 * self.extents.get(name, n)), n - 1)
            for name, n in axes
        )
