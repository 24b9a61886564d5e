"""Where a pass over windows stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from daskdmed.core.errors import StateError
from daskdmed.loading.progress import Progress, only_its_own
from daskdmed.loading.sliding.batches import WindowBatch
from daskdmed.loading.sliding.read import WindowFailure


class WindowProgress(Progress):
    """Where a `SlidingWindowDL` stands in a pass of `total` windows."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self._total = total
        #: windows that lie behind, those that failed included
        self.position = 0
        #: windows delivered
        self.windows = 0
        self.failures: list[WindowFailure] = []

    @property
    def fresh(self) -> bool:
        return not self.position and not self.over

    def take(self, batch: WindowBatch) -> None:
        """Note that a batch was taken; one without windows only tells of failures."""
        self.position = batch.position
        self.failures += batch.failures
        self.batches += bool(len(batch.smallchunks))
        self.windows += len(batch.smallchunks)

    def _to_dict(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "batches": self.batches,
            "windows": self.windows,
            "failed": [
                [f.patient, f.record, f.where, f.message, f.windows.tolist()] for f in self.failures
            ],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        position, batches = int(state["position"]), int(state["batches"])
        windows = int(state["windows"])
        failures = [
            WindowFailure(p, r, w, m, np.array(v, np.int64)) for p, r, w, m, v in state["failed"]
        ]
        if not 0 <= position <= self._total:
            raise StateError(f"position {position} is not in a plan of {self._total}")
        self.position, self.batches, self.windows = position, batches, windows
        self.failures = failures

    def _of_another_rank(self, state: Mapping[str, Any], each: int, ranks: int) -> dict[str, Any]:
        if state["failed"]:
            raise only_its_own("that rank left windows out")
        windows = min(int(state["batches"]) * each, self._total)
        return {"position": windows, "windows": windows}
