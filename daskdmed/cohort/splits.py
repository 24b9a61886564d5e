"""Stratified parts and folds as pure functions of (ids, classes, fractions, seed).

They give index lists: disjoint, complete, the same for the same seed whatever the order of
the input, and drawn per class, so that a patient added to one class moves nobody in
another. Patients are the unit, so all slides of a patient stay together.

Not covered: building datasets from the lists (`daskdmed.cohort.dataset`), and balancing by
sampling weights (the policies of `daskdmed.persistence`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from daskdmed.core.errors import DatasetError

_TOLERANCE = 1e-6


def check_fractions(fractions: Sequence[float]) -> list[float]:
    """Fractions as floats, after checking that they are parts of one whole."""
    values = [float(f) for f in fractions]
    if not values or not all(math.isfinite(f) and f >= 0 for f in values):
        raise DatasetError(f"fractions must be one or more numbers >= 0, got {values}")
    total = math.fsum(values)
    if abs(total - 1) > _TOLERANCE:
        hint = "; divide percentages by 100" if abs(total - 100) < 1 else ""
        raise DatasetError(
            f"fractions must sum to 1, got {values} which sum to {total:g}{hint}; "
            "give a part for patients that are not to be used, instead of leaving them out"
        )
    return [f / total for f in values]


def split_indices(
    ids: Sequence[str], classes: Sequence[Hashable], fractions: Sequence[float], seed: int
) -> list[list[int]]:
    """Deal patients into parts, class by class: ascending positions in `ids` of each part.

    In each class a part holds the floor or the ceiling of its exact share, except that every
    part with a fraction above 0 gets at least one patient of each class with as many patients
    as such parts. Which parts get the leftovers follows what they lack in all classes so far,
    so that many small classes do not all fall into the largest part.
    """
    shares = check_fractions(fractions)
    parts: list[list[int]] = [[] for _ in shares]
    exact, dealt = [0.0] * len(shares), [0] * len(shares)
    for members in _by_class(ids, classes, seed):
        exact = [e + f * len(members) for e, f in zip(exact, shares, strict=True)]
        counts = _counts(len(members), shares, [e - d for e, d in zip(exact, dealt, strict=True)])
        dealt = [d + c for d, c in zip(dealt, counts, strict=True)]
        start = 0
        for part, count in zip(parts, counts, strict=True):
            part.extend(members[start : start + count])
            start += count
    return [sorted(part) for part in parts]


def fold_indices(
    ids: Sequence[str], classes: Sequence[Hashable], k: int, seed: int
) -> list[list[int]]:
    """The validation positions of each of k folds, stratified and of equal size.

    Sizes differ by at most one, in total and within each class.
    """
    if int(k) != k or not 2 <= k <= len(ids):
        raise DatasetError(
            f"k must be an integer from 2 to the number of patients, got k={k} for "
            f"{len(ids)} patients"
        )
    folds: list[list[int]] = [[] for _ in range(int(k))]
    position = 0
    for members in _by_class(ids, classes, seed):
        for member in members:
            folds[position % len(folds)].append(member)
            position += 1
    return [sorted(fold) for fold in folds]


def _by_class(ids: Sequence[str], classes: Sequence[Hashable], seed: int) -> list[list[int]]:
    """Positions per class, each permuted by a generator of its own, in a fixed class order."""
    groups: dict[Hashable, list[int]] = {}
    for position, label in enumerate(classes):
        groups.setdefault(label, []).append(position)
    permuted = []
    for label in sorted(groups, key=_class_name):
        members = sorted(groups[label], key=lambda i: ids[i])
        rng = np.random.default_rng([_entropy(seed), _entropy(_class_name(label))])
        permuted.append([members[i] for i in rng.permutation(len(members))])
    return permuted


def _class_name(label: Any) -> str:
    """Names a class the same in every process; 1, 1.0 and True are one class, as in a dict."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, (int, float)):
        return f"number:{+label!r}"
    return f"{type(label).__name__}:{label!r}"


def _entropy(value: int | str) -> int:
    """A non-negative integer for NumPy's seed sequence, without Python's salted hash."""
    if isinstance(value, int) and value >= 0:
        return value
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "big")


def _counts(size: int, shares: Sequence[float], lacking: Sequence[float]) -> list[int]:
    """How many of a class of `size` go to each part; `lacking`: what parts are owed in all."""
    quotas = [size * f for f in shares]
    # a quota that is an integer but for rounding errors must not lose one
    counts = [math.floor(q + 1e-9) for q in quotas]
    owed = [(-(need - c), i) for i, (need, c) in enumerate(zip(lacking, counts, strict=True))]
    open_parts = [(need, i) for need, i in sorted(owed) if quotas[i] - counts[i] > 1e-9]
    for _, part in open_parts[: size - sum(counts)]:
        counts[part] += 1
    wanted = [i for i, f in enumerate(shares) if f > 0]
    if size >= len(wanted):
        for part in (i for i in wanted if counts[i] == 0):
            donor = max(
                (i for i in wanted if counts[i] > 1), key=lambda i: (counts[i] - quotas[i], -i)
            )
            counts[donor] -= 1
            counts[part] += 1
    return counts
