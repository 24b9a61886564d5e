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


def extreme(draw: Draw, bits: int) -> int:
    """An unsigned number at some edge of its range, or of those within it."""
    edge = draw.choice([n for n in (7, 8, 15, 16, 31, 32, 63, 64) if n <= bits])
    near = (1 << edge) + draw.choice((-2, -1, 0, 1))
    value = draw.choice((0, 1, 2, 3, near, near, draw.below(1 << min(bits, 62)), draw.below(300)))
    return max(0, value) % (1 << bits)
