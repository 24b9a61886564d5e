"""Where a pass over windows stands, and what it leaves to another number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from daskdmed.loading.progress import Progress, Share, only_its_own
from daskdmed.loading.sliding.batches import WindowBatch
from daskdmed.loading.sliding.plan import LoadPlan, Spans
from daskdmed.loading.sliding.read import WindowFailure


class WindowProgress(Progress):
    """Where a `SlidingWindowDL` stands in the windows of a plan."""

    def __init__(self, plan: LoadPlan) -> None:
        super().__init__()
        #: this rank's part of the pass, or of what was left of it when it was dealt
        self.plan = plan
        #: windows of the plan that lie behind, those that failed included
        self.position = 0
        #: windows delivered
        self.windows = 0
        #: windows that each rank was to deliver since the plan was dealt
        self.asked = 0
        #: batches and position at which batches of the present size began
        self.began = 0, 0
        self.failures: list[WindowFailure] = []

    @property
    def fresh(self) -> bool:
        return not self.position and not self.over and self.plan.left is None

    def take(self, batch: WindowBatch, share: Share) -> None:
        """Note that a batch was taken; one without windows only tells of failures."""
        some = bool(len(batch.smallchunks))
        self.position = batch.position
        for failure in batch.failures:
            self._note(failure)
        self.batches += some
        self.asked += share.batch_size * some
        self.windows += len(batch.smallchunks)

    def _note(self, failure: WindowFailure) -> None:
        """Keep a failure, in one with what batches before told of the same load."""
        last = self.failures[-1] if self.failures else None
        if last is not None and str(last) == str(failure):
            windows = np.concatenate([last.windows, failure.windows])
            self.failures[-1] = replace(failure, windows=windows)
        else:
            self.failures.append(failure)

    def batches_of_pass(self, size: int) -> int:
        """Those of the pass: that were taken in other sizes, and that are left then."""
        taken, position = self.began
        return taken - (position - self.plan.windows) // size

    def _to_dict(self) -> dict[str, Any]:
        return {
            "left": self.plan.left,
            "position": self.position,
            "asked": self.asked,
            "began": list(self.began),
            "batches": self.batches,
            "windows": self.windows,
            "failed": [
                [f.patient, f.record, f.where, f.message, f.windows.tolist()] for f in self.failures
            ],
            "over": self.over,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        left = state["left"]
        plan = self.plan.dealt(*self.plan.share, None if left is None else _spans(left))
        position, batches = int(state["position"]), int(state["batches"])
        windows, asked, over = int(state["windows"]), int(state["asked"]), bool(state["over"])
        taken, beginning = map(int, state["began"])
        failures = [
            WindowFailure(p, r, w, m, np.array(v, np.int64)) for p, r, w, m, v in state["failed"]
        ]
        if not 0 <= beginning <= position <= plan.windows:
            raise ValueError(
                f"position {position}, from {beginning} on, is not in a plan of {plan.windows}"
            )
        self.plan, self.position, self.batches, self.windows = plan, position, batches, windows
        self.asked, self.began, self.over = asked, (taken, beginning), over
        self.failures = failures

    def _deal_anew(self, state: Mapping[str, Any], then: Share, now: Share) -> dict[str, Any]:
        """Ranks keep their parts in other batches; another number of ranks deals what is left."""
        batches = int(state["batches"])
        if (then.rank, then.world_size) == (now.rank, now.world_size):
            return {"began": [batches, int(state["position"])]}
        if state["failed"] and then.world_size > 1:
            raise only_its_own(
                f"rank {then.rank} left windows out, so that it is further than the others",
                then,
                now,
            )
        left = None if state["left"] is None else _spans(state["left"])
        if then.world_size != now.world_size:
            return self._deal_rest(state, left, then, now)
        plan = self.plan.dealt(now.rank, now.world_size, left)
        position = plan.windows if state["over"] else min(int(state["asked"]), plan.windows)
        taken, began = state["began"]
        if then.batch_size != now.batch_size:
            taken, began = batches, position
        return {
            "position": position,
            "windows": plan.behind + position,
            # a rank may have come to its end before
            "began": [taken, min(int(began), position)],
        }

    def _deal_rest(
        self, state: Mapping[str, Any], left: Spans | None, then: Share, now: Share
    ) -> dict[str, Any]:
        asked = int(state["position" if then.world_size == 1 else "asked"])
        rest = self.plan.after_all(asked, then.world_size, left)
        if state["over"] or rest == []:
            plan = self.plan.dealt(now.rank, now.world_size)
            began, position = [0, 0], plan.windows
        else:
            plan = self.plan.dealt(now.rank, now.world_size, rest)
            began, position = [int(state["batches"]), 0], 0
        failed = [] if now.rank else state["failed"]
        lost = sum(len(windows) for *_, windows in failed)
        return {
            "left": plan.left,
            "position": position,
            "asked": 0,
            "began": began,
            "windows": max(0, plan.behind + position - lost),
            "failed": failed,
        }

    @staticmethod
    def _of_version_3(state: Mapping[str, Any], then: Share) -> dict[str, Any]:
        asked = int(state["batches"]) * then.batch_size
        return {"left": None, "asked": asked, "began": [0, 0], "over": False}


def _spans(left: Any) -> Spans:
    return [[int(a), int(b)] for a, b in left]
