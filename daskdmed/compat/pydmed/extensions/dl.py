"""PyDmed's ``pydmed.extensions.dl``: a dataloader in which labels come equally often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from daskdmed.compat.pydmed.lightdl import LightDL
from daskdmed.compat.pydmed.utils.data import Patient
from daskdmed.core.types import Array
from daskdmed.persistence.policy import Situation

__all__ = ["LabelBalancedDL"]


class LabelBalancedDL(LightDL):
    """A `LightDL` whose big chunks belong to every label equally often.

    `func_getlabel_of_patient` gives the label of a patient; the rest are arguments of `LightDL`.
    Counted are all visits so far, so that a label of which nobody is in memory comes back.
    """

    def __init__(
        self, func_getlabel_of_patient: Callable[[Patient], Hashable], *args: Any, **kwargs: Any
    ) -> None:
        self.func_getlabel_of_patient = func_getlabel_of_patient
        super().__init__(*args, **kwargs)
        self._labels = {
            name: func_getlabel_of_patient(patient) for name, patient in self._patients.items()
        }

    def _choose(self, situation: Situation, free: Array, rng: np.random.Generator) -> int:
        labels = [self._labels[name] for name in situation.patients]
        visits: Counter[Hashable] = Counter()
        for label, count in zip(labels, situation.counts.tolist(), strict=True):
            visits[label] += count
        fewest = min(visits[labels[i]] for i in free)
        behind = [i for i in free.tolist() if visits[labels[i]] == fewest]
        chosen = labels[behind[int(rng.integers(len(behind)))]]
        return super()._choose(situation, np.array([i for i in behind if labels[i] == chosen]), rng)
