"""What showing loaders costs, in parts of a core: 1 000 big chunks, 8 ranks, twice a second."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

import numpy as np

from daskdmed.core.live import ASKED, READY
from daskdmed.monitor.changes import Changes
from daskdmed.monitor.feed import INTERVAL
from daskdmed.monitor.state import LiveState

#: small chunks a second of all ranks together, draws of a big chunk
SPEED, DRAWS = 8000, 512


class Rotation:
    """Says what a loader says whose big chunks give draws and leave, one after the other."""

    def __init__(self, bigchunks: int, rank: int, ranks: int) -> None:
        self.name = f"LightDL-{rank}"
        self._facts = {"kind": "loader", "rank": rank, "world_size": ranks, "unit": "patches"}
        # staggered, as the plan has them
        self._left = np.arange(1, bigchunks + 1) * DRAWS / bigchunks
        self._first = self._ticks = 0

    def advance(self) -> None:
        """One interval goes by: each gives its part, those that are empty are replaced."""
        self._ticks += 1
        self._left -= SPEED * INTERVAL / self._left.size
        gone = int((self._left <= 0).sum())
        self._first += gone
        self._left = np.concatenate([self._left[gone:], np.full(gone, float(DRAWS))])

    def now(self) -> dict[str, object]:
        names = (
            "batches", "patches", "seconds", "wait_seconds", "pixels_read", "pixels_drawn",
            "visits_admitted", "visits_evicted", "resident_visits", "resident_bytes",
            "budget_bytes", "late_draws", "failed", "batches_ready", "reads",
        )  # fmt: skip
        counters = dict.fromkeys(names, self._ticks)
        ranks = {"plan": "p", "turn": self._first, "waits_for": [], "left_behind": []}
        return {**self._facts, "epoch": 0, "failures": [], "counters": counters, "ranks": ranks}

    def cells(self) -> list[tuple[int, int, int]]:
        left = self._left.astype(int).tolist()
        newest = len(left) - 5
        return [
            (self._first + i, READY if i < newest else ASKED, draws) for i, draws in enumerate(left)
        ]

    def place(self, visit: int) -> tuple[object, ...]:
        return f"patient-{visit % 97}", "wsi", (visit * 4096, 4096), (4096, 4096), 0.0


def share_of_a_core(call: Callable[[], object], every: float = INTERVAL, number: int = 20) -> float:
    """Percent of a core that something takes which is done every so many seconds."""
    took = min(timeit.repeat(call, number=number, repeat=3, timer=time.process_time))
    return took / number / every * 100


class Showing:
    """The processes that train, the scheduler, and a tab that is open, each on its own."""

    params = (100, 1000)
    param_names = ("big chunks",)
    ranks = 8

    def setup(self, bigchunks: int) -> None:
        self.loaders = [Rotation(bigchunks, rank, self.ranks) for rank in range(self.ranks)]
        self.changes = [Changes(loader) for loader in self.loaders]
        self.state, self.time = LiveState(), 0.0
        for _ in range(20):
            self.hear(self.ask())
        self.messages = [self.ask() for _ in range(200)]

    def ask(self) -> list[dict[str, object]]:
        for loader in self.loaders:
            loader.advance()
        return [changes.message() for changes in self.changes]

    def hear(self, messages: list[dict[str, object]]) -> None:
        self.time += INTERVAL
        for number, message in enumerate(messages):
            assert self.state.hear(f"client-{number}", message, self.time)

    def track_process_that_trains(self, bigchunks: int) -> float:
        """One rank says what changed."""
        loader, changes = self.loaders[0], self.changes[0]

        def tick() -> None:
            loader.advance()
            changes.message()

        return share_of_a_core(tick)

    def track_scheduler(self, bigchunks: int) -> float:
        """It hears all ranks."""
        waiting = iter(self.messages)
        return share_of_a_core(lambda: self.hear(next(waiting)))

    def track_scheduler_and_open_tab(self, bigchunks: int) -> float:
        """It hears all ranks and draws the page, what it sends made into bytes."""
        from bokeh.document import Document
        from bokeh.protocol import Protocol

        from daskdmed.monitor.page import UPDATE, Page

        document, events, every = Document(), [], UPDATE / 1000
        page, protocol = Page(self.state), Protocol()
        document.add_root(page.root)
        document.on_change(events.append)
        waiting = iter(self.messages)

        def tick() -> None:
            for _ in range(round(every / INTERVAL)):
                self.hear(next(waiting))
            page.update()
            assert protocol.create("PATCH-DOC", events).content_json
            events.clear()

        tick()
        return share_of_a_core(tick, every)


for name in ("process_that_trains", "scheduler", "scheduler_and_open_tab"):
    getattr(Showing, f"track_{name}").unit = "% of a core"
