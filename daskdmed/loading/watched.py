"""A loader as those see it who show it: plain values, asked for at any moment by other threads.

Not covered: what becomes of them (`daskdmed.monitor`), and counting (`daskdmed.loading.stats`).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from daskdmed.core import live

if TYPE_CHECKING:
    from daskdmed.loading.loader import Loader

#: failures that are told of, the newest
_FAILURES = 20


class WatchedLoader:
    """Answers for a loader as long as it lives; `daskdmed.core.live.Watched`."""

    def __init__(self, loader: Loader[Any]) -> None:
        self.name = loader.name
        self._loader = weakref.ref(loader)

    def now(self) -> dict[str, Any]:
        """Counters as of its `stats`, and what describes it; empty when it is closed."""
        loader = self._loader()
        if loader is None or loader._closed:
            return {}
        rank, world_size = loader._share
        failures = loader._failures()
        return {
            "kind": "loader",
            "of": type(loader).__name__,
            "rank": rank,
            "world_size": world_size,
            "batch_size": loader.batch_size,
            "paused": loader._feed is not None and loader._feed.paused,
            "counters": {**loader._counters(), "failed": len(failures)},
            "failures": [str(failure) for failure in failures[-_FAILURES:]],
            **loader._shown(),
        }

    def cells(self) -> list[live.Cell]:
        loader = self._loader()
        return [] if loader is None or loader._closed else loader._cells()

    def place(self, visit: int) -> live.Place | None:
        loader = self._loader()
        return None if loader is None else loader._place(visit)
