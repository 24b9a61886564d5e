"""PyDmed's ``pydmed.utils.minimath``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any


def lcm(list_numbers: Iterable[int]) -> int:
    """The least common multiple of some numbers."""
    return math.lcm(*map(int, list_numbers))


def multimode(list_input: Iterable[Any]) -> Any:
    """The most frequent element; of several the largest."""
    counts = Counter(list_input)
    return max(counts, key=lambda one: (counts[one], one))


def multiminority(list_input: Iterable[Any]) -> Any:
    """The least frequent element of those that are there; of several the smallest."""
    counts = Counter(list_input)
    return min(counts, key=lambda one: (counts[one], one))
