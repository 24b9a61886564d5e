"""Chance, as mutations ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draw:
    """Draws from one generator, in plain Python values."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def below(self, stop: int) -> int:
        """A number from 0, below `stop`; 0 where that is 0."""
        return int(self._rng.integers(max(1, stop)))

    def chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        ends = np.cumsum(weights)
        return items[int(np.searchsorted(ends, self._rng.random() * ends[-1], "right"))]

    def bytes(self, count: int) -> bytes:
        return self._rng.bytes(count)
