"""The loaders of this process, looked at without any cluster.

Not covered: those on a cluster, whose clients tell the scheduler (`daskdmed.monitor.feed`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from daskdmed.core import live
from daskdmed.monitor.changes import Changes
from daskdmed.monitor.state import LiveState


class Local:
    """The loaders of this process, looked at when somebody asks."""

    def __init__(self) -> None:
        self.state = LiveState()
        self._changes: dict[str, Changes] = {}
        self._lock = threading.Lock()

    def look(self, loaders: Iterable[live.Watched] | None = None) -> LiveState:
        """How far these are, default all."""
        with self._lock:
            for loader in live.loaders() if loaders is None else loaders:
                if loader.name not in self._changes:
                    self._changes[loader.name] = Changes(loader)
            for name, changes in list(self._changes.items()):
                message = changes.message(whole=("", name) not in self.state.loaders)
                self.state.hear("", message, time.monotonic())
                if message["end"]:
                    del self._changes[name]
            return self.state
