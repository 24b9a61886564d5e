"""Batches made by threads, ahead of whoever trains on them, in their order.

Not covered: what is done with them (`daskdmed.compat.medsegpy.modeling.model`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

from daskdmed.core.checks import check_count
from daskdmed.core.errors import UsageError


class Batches:
    """The batches of each epoch of a loader: of a sequence (``len`` and ``[i]``), or of an
    iterator, of which `steps` are taken an epoch.

    `workers` threads make up to `ahead` batches of a sequence in advance; 0: the calling thread
    makes each when it is needed.
    """

    def __init__(
        self, source: Any, steps: int | None = None, *, workers: int = 1, ahead: int = 10
    ) -> None:
        self._source = source
        self.is_sequence = hasattr(source, "__getitem__") and hasattr(source, "__len__")
        if not self.is_sequence and (steps is None or not hasattr(source, "__iter__")):
            raise UsageError(
                "a loader has len(loader) and loader[i], or is an iterator with a number of steps "
                f"per epoch; got {type(source).__name__} and steps={steps!r}"
            )
        self._iterator = None if self.is_sequence else iter(source)
        whole = len(source) if self.is_sequence else int(steps or 0)
        if not whole:
            raise UsageError(
                "the loader has no batches: with drop_last=True it needs at least batch_size "
                "elements"
            )
        self.steps = whole if steps is None else check_count("steps", steps)
        self._workers, self._ahead = check_count("workers", workers, 0), check_count("ahead", ahead)

    def __iter__(self) -> Iterator[Any]:
        """One epoch."""
        if self._iterator is not None:
            return itertools.islice(self._iterator, self.steps)
        # more steps than there are batches go round
        numbers = (i % len(self._source) for i in range(self.steps))
        if not self._workers:
            return (self._source[i] for i in numbers)
        return self._made(numbers)

    def _made(self, numbers: Iterator[int]) -> Iterator[Any]:
        pool = ThreadPoolExecutor(self._workers, "daskdmed-batches")
        waiting: deque[Future[Any]] = deque()
        try:
            while True:
                more = itertools.islice(numbers, self._ahead - len(waiting))
                waiting.extend(pool.submit(self._source.__getitem__, i) for i in more)
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def end_epoch(self) -> None:
        """Tell a sequence that it is over."""
        if self.is_sequence and hasattr(self._source, "on_epoch_end"):
            self._source.on_epoch_end()


def epoch(batches: Batches) -> closing[Any]:
    """The batches of one epoch; threads end with the ``with``."""
    found: Any = iter(batches)
    return closing(found if hasattr(found, "close") else (one for one in found))
