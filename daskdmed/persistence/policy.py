"""Who is admitted next: the replaceable part of the plan.

A policy is a pure function of what has been planned so far and of an explicit generator;
it sees counts and labels, never pixels, futures or clocks, so that plans are reproducible
and a policy is tested without any cluster. Eviction is not its business: a visit leaves
after its draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.told import Told
from daskdmed.core.types import Array


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
        Big chunks per record, 0 for records found to have nothing to draw from. Read only.
    ages : ndarray of int64, shape (records,)
        Visits planned since each record was last admitted; `visit` + 1 for those that never
        were. Read only.
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
    ages: Array
    resident: Array
    patients: Sequence[str]
    labels: Sequence[Mapping[str, Any]]


@runtime_checkable
class Policy(Protocol):
    """Chooses the record whose big chunk is admitted next.

    An attribute ``each_once = True`` asks for laps in which every big chunk that has anything
    to draw from comes exactly once, instead of in proportion to its tissue.
    """

    def admit(self, situation: Situation, rng: np.random.Generator) -> int | None:
        """Index of a record, or None to admit nothing more (the plan then ends).

        Must depend on its arguments alone.
        """
        ...


PolicyLike: TypeAlias = Policy | Callable[[Situation, np.random.Generator], int | None]


class LeastVisitedFirst(Told):
    """Every record once per cycle before any repeats, in random order within the cycle.

    PyDmed's rule (weight 1 / (1 + times scheduled), never-scheduled first) without
    replacement.
    """

    def admit(self, situation: Situation, rng: np.random.Generator) -> int:
        usable = np.flatnonzero(situation.blocks)
        counts = situation.counts[usable]
        candidates = usable[counts == counts.min()]
        return int(candidates[rng.integers(candidates.size)])


class Sequential(Told):
    """All big chunks of the first record, then of the second..., `laps` times over.

    A finite plan: the loader stops when every big chunk has been visited `laps` times. Big
    chunks without tissue (or without the classes asked for) are left out.
    """

    each_once = True

    def __init__(self, laps: int = 1) -> None:
        self.laps = laps

    def admit(self, situation: Situation, rng: np.random.Generator) -> int | None:
        wanting = np.flatnonzero(situation.counts < situation.blocks * self.laps)
        return int(wanting[0]) if wanting.size else None


class OnePass(Told):
    """Every big chunk of every record exactly once per pass, in random order; then the end.

    Parameters
    ----------
    passes : int
        How often.
    """

    each_once = True

    def __init__(self, passes: int = 1) -> None:
        if passes < 1:
            raise UsageError(f"passes must be at least 1, got {passes}")
        self.passes = passes

    def admit(self, situation: Situation, rng: np.random.Generator) -> int | None:
        """A record, with probability proportional to the big chunks it still has to give."""
        left = np.maximum(situation.blocks * self.passes - situation.counts, 0)
        total = int(left.sum())
        if not total:
            return None
        return int(np.searchsorted(np.cumsum(left), rng.integers(total), side="right"))


class EachOnce(OnePass):
    """Each slice, or each position of a grid, exactly once per pass, in random order.

    Big chunks are read as by `OnePass`, and stay until each of their positions was given; those
    of several big chunks come mixed. So a file is decoded about once, not once for each slice,
    and an epoch is as in other data loaders: ``for x, patients, smallchunks in loader`` gives
    all of it, ``len(loader)`` is known, the next loop has another order.

    Parameters
    ----------
    stride : int or sequence of int
        Distance between positions along each spatial axis, array order, or one number for all:
        ``EachOnce((1, 224, 224))`` with ``smallchunk_size=(1, 224, 224)`` is every slice.
    passes : int, default 1
        How often.
    edge : {"shift", "drop"}
        Positions over the far border are moved inside, so that every pixel is met, or left out.

    Notes
    -----
    With ``tissue=`` or ``labels=``, only positions where small chunks may lie count.
    ``smallchunks_per_bigchunk`` means nothing here, and `LightDL` refuses what contradicts it:
    quotas, adaptive rotation, loaders and collectors of your own. ``drop_last=False`` gives the
    last batch, though it is smaller.

    Raises
    ------
    UsageError
        A stride that is not positive, or an unknown edge.
    """

    def __init__(
        self,
        stride: int | Sequence[int],
        *,
        passes: int = 1,
        edge: Literal["shift", "drop"] = "shift",
    ) -> None:
        super().__init__(passes)
        steps = np.ravel(np.asarray(stride))
        if not steps.size or steps.dtype.kind not in "iu" or steps.min() < 1:
            raise UsageError(
                f"EachOnce: stride is a positive integer, or one per spatial axis; got {stride!r}"
            )
        if edge not in ("shift", "drop"):
            raise UsageError(f"EachOnce: edge is 'shift' or 'drop', got {edge!r}")
        self.stride = int(steps[0]) if np.ndim(stride) == 0 else tuple(steps.tolist())
        self.edge: Literal["shift", "drop"] = edge


class Weighted(Told):
    """Records with probability proportional to a weight.

    Parameters
    ----------
    weights : mapping or callable
        Patient id -> weight, or a function of the patient's labels. Not negative. Patients
        that a mapping does not name have weight 0.

    Raises
    ------
    UsageError
        A weight is negative or not finite, or none is positive (at the first admission).
    """

    def __init__(self, weights: Mapping[str, float] | Callable[[Mapping[str, Any]], float]) -> None:
        self.weights = weights

    def admit(self, situation: Situation, rng: np.random.Generator) -> int:
        weights = np.where(situation.blocks > 0, self._of(situation), 0.0)
        if not weights.any():
            raise UsageError(
                "Weighted: no patient has a positive weight; patients are "
                f"{', '.join(situation.patients[:5])}..."
            )
        ends = np.cumsum(weights)
        return int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))

    def _of(self, situation: Situation) -> Array:
        given = self.weights
        if isinstance(given, Mapping):
            weights = [float(given.get(p, 0.0)) for p in situation.patients]
        else:
            weights = [float(given(labels)) for labels in situation.labels]
        found = np.array(weights)
        wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
        if wrong.size:
            at = int(wrong[0])
            raise UsageError(
                f"Weighted: patient {situation.patients[at]!r} has weight {found[at]}; weights "
                "are finite and not negative"
            )
        return found


class LabelBalanced(Told):
    """Every value of a label equally often, and within it least visited first.

    What PyDmed's ``LabelBalancedDL`` and ``balance_by_repeat`` were for, without copies of
    patients. For guaranteed numbers in every batch see ``quotas`` of `LightDL`.

    Parameters
    ----------
    label : str
        Name of the label.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def admit(self, situation: Situation, rng: np.random.Generator) -> int:
        usable = np.flatnonzero(situation.blocks)
        values: dict[Any, list[int]] = {}
        for record in usable.tolist():
            labels = situation.labels[record]
            if self.label not in labels:
                raise UsageError(
                    f"LabelBalanced: patient {situation.patients[record]!r} has no label "
                    f"{self.label!r}, only {sorted(map(str, labels))}"
                )
            values.setdefault(labels[self.label], []).append(record)
        visited = {v: int(situation.counts[r].sum()) for v, r in values.items()}
        fewest = min(visited.values())
        behind = [v for v, n in visited.items() if n == fewest]
        records = np.array(values[behind[int(rng.integers(len(behind)))]])
        counts = situation.counts[records]
        candidates = records[counts == counts.min()]
        return int(candidates[rng.integers(candidates.size)])


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
