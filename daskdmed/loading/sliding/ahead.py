"""Loads of windows read ahead within the budget, and cut into batches in order.

Not covered: reading (`daskdmed.loading.sliding.read`), cutting
(`daskdmed.loading.sliding.batches`), the thread (`daskdmed.loading.prefetch`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

import numpy as np

from daskdmed.core import events, live
from daskdmed.loading.sliding.batches import WindowBatch, WindowBatcher
from daskdmed.loading.sliding.plan import Load, LoadPlan
from daskdmed.loading.sliding.read import Loaded, LoadReader
from daskdmed.loading.torchbridge import Preparation
from daskdmed.persistence.tally import Tally


class ReadAhead:
    """One pass over the windows, or what is left of it; `budget` in bytes of blocks."""

    def __init__(
        self,
        tally: Tally,
        plan: LoadPlan,
        reader: LoadReader,
        budget: int,
        batch_size: int,
        prepare: Preparation,
        *,
        squeeze: bool = False,
    ) -> None:
        self.reader = reader
        self.held = self.peak = 0
        #: read or being read, in order
        self._flying: deque[tuple[Load, Future[Loaded]]] = deque()
        #: what batches are cut from
        self._cut: Load | None = None
        self._waits_for: Load | None = None
        self._since = 0.0
        self._tally = tally
        self._plan = plan
        self._budget = budget
        self._size = batch_size
        view, grid = plan.images[0].view, plan.images[0].grid
        self._shape = (*grid.kernel_size, *view.shape[grid.ndim :])
        self._dtype = view.dtype
        self._prepare = prepare
        self._squeeze = squeeze

    @property
    def batch_bytes(self) -> int:
        """Bytes of the windows of a batch."""
        return self._size * int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize

    def describe(self) -> str:
        """What is waited for, in words; for another thread than the one that makes batches."""
        held, load = f"{self.held:,} bytes of blocks in memory or being read", self._waits_for
        if load is None:
            return f"a batch is being made, by tfms that take long; {held}"
        image, since = load.image, time.monotonic() - self._since
        return (
            f"patient {str(image.patient.id)!r}, record {image.record!r}, {load} is waited for "
            f"since {since:.0f} s: {self.reader.describe()}; {held}"
        )

    def cells(self) -> list[live.Cell]:
        """The blocks in memory or being read; for any thread."""
        cut, waits_for = self._cut, self._waits_for
        cells = [] if cut is None else [(cut.visit, live.READY, -1)]
        if waits_for is not None:
            cells.append((waits_for.visit, live.WAITED, -1))
        for load, future in self._flying.copy():
            cells.append((load.visit, live.READY if future.done() else live.ASKED, -1))
        return cells

    def place(self, visit: int) -> live.Place | None:
        """Where a block of `cells` lies; None when it has gone meanwhile."""
        loads = [load for load, _ in self._flying.copy()]
        for load in (self._cut, self._waits_for, *loads):
            if load is not None and load.visit == visit:
                region, image = load.block.region, load.image
                return str(image.patient.id), image.record, region.origin, region.shape, 0.0
        return None

    def _submit(self, load: Load) -> Future[Loaded]:
        future, began = self.reader.submit(load), time.monotonic()
        if events.listening():
            self._tell(events.BigChunkRequested, load)

            def ready(read: Future[Loaded]) -> None:
                if not read.cancelled():
                    self._tell(events.BigChunkReady, load, seconds=time.monotonic() - began)

            future.add_done_callback(ready)
        return future

    def _tell(self, kind: Callable[..., events.Event], load: Load, **more: float) -> None:
        if events.listening():
            image = load.image
            place = (str(image.patient.id), image.record, load.visit, load.block.region)
            self._tally.tell(kind, place, **more)

    def batches(self, position: int) -> Generator[tuple[WindowBatch, Any], None, None]:
        """Batches from a position on, each with its tensor."""
        kernel = self._plan.images[0].grid.kernel_size
        dropped = tuple(a for a, k in enumerate(kernel) if k == 1) if self._squeeze else ()
        memory = self._prepare.empty
        batcher = WindowBatcher(self._size, self._shape, self._dtype, dropped, memory)
        number, skip = self._plan.locate(position)
        ahead = self._flying
        while True:
            while number < len(self._plan):
                load = self._plan.load(number)
                if ahead and self.held + load.nbytes > self._budget:
                    break
                ahead.append((load, self._submit(load)))
                self.held += load.nbytes
                self.peak = max(self.peak, self.held)
                number += 1
            if not ahead:
                break
            load, future = ahead.popleft()
            self._since, self._waits_for = time.monotonic(), load
            loaded = future.result()
            self._waits_for, self._cut = None, load
            self._tally.pixels_read += math.prod(load.block.region.shape)
            del future  # it holds the pixels
            for batch in batcher.cut(load, loaded, max(skip, load.done)):
                yield batch, self._prepare.ahead(batch.smallchunks)
                del batch
            del loaded
            self._cut = None
            self.held -= load.nbytes
            self._tell(events.BigChunkEvicted, load)
            skip = 0
        rest = batcher.rest(self._plan.windows)
        if rest is not None:
            yield rest, self._prepare.ahead(rest.smallchunks)
