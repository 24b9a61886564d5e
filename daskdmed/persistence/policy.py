"""Who is admitted next: the replaceable part of the plan.

A policy is a pure function of what has been planned so far and of an explicit generator;
it sees counts and labels, never pixels, futures or clocks, so that plans are reproducible
and a policy is tested without any cluster. Eviction is not its business: a visit leaves
after its draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from daskdmed.types import Array


@dataclass(frozen=True, slots=True)
class Situation:
    """What a policy may look at.

    Parameters
    ----------
    visit : int
        Number of the visit to be planned, from 0.
    counts : ndarray of int64, shape (records,)
        Visits planned so far per record. Read only.
    blocks : ndarray of int64, shape (records,)
        Big chunks per record. Read only.
    resident : ndarray of int64
        Records of the visits now resident, oldest first (repeats possible).
    patients : sequence of str
        Patient id per record.
    labels : sequence of mapping
        Labels of the patient per record.
    """

    visit: int
    counts: Array
    blocks: Array
    resident: Array
    patients: Sequence[str]
    labels: Sequence[Mapping[str, Any]]


@runtime_checkable
class Policy(Protocol):
    """Chooses the record whose big chunk is admitted next."""

    def admit(self, situation: Situation, rng: np.random.Generator) -> int | None:
        """Index of a record, or None to admit nothing more (the plan then ends).

        Must depend on its arguments alone.
        """
        ...


PolicyLike: TypeAlias = Policy | Callable[[Situation, np.random.Generator], int | None]


class LeastVisitedFirst:
    """Every record once per cycle before any repeats, in random order within the cycle.

    PyDmed's rule (weight 1 / (1 + times scheduled), never-scheduled first) without
    replacement.
    """

    def admit(self, situation: Situation, rng: np.random.Generator) -> int:
        """One of the records with the fewest visits, at random."""
        counts = situation.counts
        candidates = np.flatnonzero(counts == counts.min())
        return int(candidates[rng.integers(candidates.size)])


class Sequential:
    """All big chunks of the first record, then of the second..., `laps` times over.

    A finite plan: the loader stops when every big chunk has been visited `laps` times.
    """

    def __init__(self, laps: int = 1) -> None:
        self.laps = laps

    def admit(self, situation: Situation, rng: np.random.Generator) -> int | None:
        """First record that still has unvisited big chunks."""
        wanting = np.flatnonzero(situation.counts < situation.blocks * self.laps)
        return int(wanting[0]) if wanting.size else None


class _FunctionPolicy:
    def __init__(self, function: Callable[[Situation, np.random.Generator], int | None]) -> None:
        self._function = function

    def admit(self, situation: Situation, rng: np.random.Generator) -> int | None:
        return self._function(situation, rng)


def as_policy(policy: PolicyLike | None) -> Policy:
    """A policy from None (the default), an object with `admit`, or a function."""
    if policy is None:
        return LeastVisitedFirst()
    if isinstance(policy, Policy):
        return policy
    return _FunctionPolicy(policy)
