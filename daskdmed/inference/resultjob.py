"""The result of one image as work to do: its store, the blocks that are left, its end.

Heatmaps and dense predictions derive from it. Not covered: what a block is, and who computes
(`daskdmed.core.work`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from daskdmed.core.errors import ImageError
from daskdmed.core.work import Index, Job
from daskdmed.store.location import Location
from daskdmed.store.results.resumable import ResultSpec, lazy_result, open_result


class ResultJob(Job):
    """What is left of one result.

    `windows` says how many windows it has, `ended` is called when it is complete, and
    `excused` says which errors of a block end this result only.
    """

    unit = "blocks"
    windows = 0

    def __init__(
        self, location: Location, spec: ResultSpec, *, resume: bool, overwrite: bool
    ) -> None:
        self.name, self.image, self.location = spec.kind, spec.image, location
        self._began = time.time()
        self.store, self._place = open_result(location, spec, resume=resume, overwrite=overwrite)
        #: whether nothing was left to do from the beginning
        self.was_done = self.store.finished == self.store.total
        #: whether runs before it had done a part
        self.goes_on = self.store.finished > 0
        self.ended: Callable[[], None] = lambda: None
        self.excused: Callable[[Exception], bool] = lambda error: False

    def gives_up(self, error: BaseException) -> bool:
        """Where pixels cannot be read and the user wants such images left out."""
        return isinstance(error, ImageError) and self.excused(error)

    def mark(self, index: Index, result: Any) -> None:
        """A block was written."""
        self.store.mark(index)

    def flush(self) -> None:
        """Record what is done."""
        self.store.flush()

    def finish(self) -> Any:
        """Put the result in its place: what the caller gets."""
        self.store.flush()
        self._place.sweep(before=self._began)
        if self._place != self.location:
            self.location.replace(self._place)
        result = self.result()
        self.ended()
        return result

    def result(self) -> Any:
        """The result in its place, lazy."""
        return lazy_result(self.location, self.store.spec)

    def state(self) -> str:
        """How far it is, and how to go on."""
        kept = f"{self.store.finished} of {self.store.total} {self.unit} are done"
        if self.location.in_memory:
            return f"{kept}; give out= to keep them when a run stops"
        return f"{kept} and kept in {self.location}; call again with resume=True to go on"
