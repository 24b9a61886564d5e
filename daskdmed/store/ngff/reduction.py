"""Shrinking arrays by whole factors: mean, most frequent or first pixel of each cell.

Not covered: other factors (`daskdmed.images.resample`), levels in stores
(`daskdmed.store.ngff.pyramid`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array

Method = Literal["mean", "nearest", "mode"]
METHODS: tuple[Method, ...] = ("mean", "nearest", "mode")


def reduce_block(block: Array, factors: Sequence[int], method: Method) -> Array:
    """Shrink an array by whole factors per axis, to ceil(n / factor) pixels of the same dtype.

    "mean": of the pixels that are not NaN (NaN where none is; integers are rounded, halves to
    even). "nearest": the first pixel. "mode": the most frequent one, of equally frequent ones the
    smallest.
    """
    if method == "mean":
        return _mean(block, factors)
    if method == "nearest":
        return np.ascontiguousarray(block[tuple(slice(None, None, f) for f in factors)])
    if method == "mode":
        return _mode(block, factors)
    raise UsageError(f"method must be one of {METHODS}, got {method!r}")


def _mean(block: Array, factors: Sequence[int]) -> Array:
    kind = block.dtype.kind
    sums = block.astype(np.float64 if kind == "f" else np.int64)
    counts: Any = 1
    if kind == "f":
        counts = (~np.isnan(sums)).astype(np.int64)
        sums = np.where(counts, sums, 0.0)
    else:
        counts = np.ones((1,) * block.ndim, np.int64)
    for axis, factor in enumerate(factors):
        if factor > 1:
            n = block.shape[axis]
            starts = np.arange(0, n, factor)
            sums = np.add.reduceat(sums, starts, axis=axis)
            if kind != "f":
                per_cell = np.diff([*starts.tolist(), n])
                shape = [1] * block.ndim
                shape[axis] = len(per_cell)
                counts = counts * per_cell.reshape(shape)
            else:
                counts = np.add.reduceat(counts, starts, axis=axis)
    if kind == "f":
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(counts > 0, sums / counts, np.nan).astype(block.dtype)
    rounded: Array = np.rint(sums / counts).astype(block.dtype)
    return rounded


def _mode(block: Array, factors: Sequence[int]) -> Array:
    padding = [(0, -n % f) for n, f in zip(block.shape, factors, strict=True)]
    padded = np.pad(block, padding, mode="edge")
    inside = np.pad(np.ones(block.shape, bool), padding)
    offsets = list(itertools.product(*(range(f) for f in factors)))
    steps = [tuple(slice(o, None, f) for o, f in zip(at, factors, strict=True)) for at in offsets]
    candidates = [padded[s] for s in steps]
    votes = [inside[s] for s in steps]
    best = candidates[0].copy()
    best_count = np.zeros(best.shape, np.int64)
    for one, there in zip(candidates, votes, strict=True):
        count = np.zeros(best.shape, np.int64)
        for other, counts in zip(candidates, votes, strict=True):
            count += (other == one) & counts
        better = there & ((count > best_count) | ((count == best_count) & (one < best)))
        np.copyto(best, one, where=better)
        np.copyto(best_count, count, where=better)
    return best
