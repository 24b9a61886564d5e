"""What messages add up to: loaders, their big chunks, and runs. Pure: no Dask, no clock.

Counters are those of ``loader.stats()``, as they were when the message was made; rates are those of
the last seconds. Loaders that share a plan (ranks) share the big chunks, and are one *set*.

Not covered: where messages come from (`daskdmed.monitor.changes`), how it looks
(`daskdmed.monitor.page`, `daskdmed.monitor.picture`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from daskdmed.core.live import ASKED
from daskdmed.monitor.changes import VERSION

#: seconds that rates are measured over
RECENT = 5.0
#: seconds of history that sparklines and the strip show
HISTORY = 120.0
#: lines of the log, and runs that have ended, that are kept
_LINES, _ENDED = 50, 8

#: client and name
Key: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class Cell:
    """A big chunk in memory or being read.

    `seen`: when it was asked for. `slot`: its place in the picture, which it keeps. `held`: by
    loader, what becomes of it and the draws left there; of all of them are `state`, `left` (-1 for
    all) and `whole`, the draws that it gives, or had left when it was first seen. `changed`,
    `became`: numbers of the last change of its set that touched it, and that did more than draw
    from it.
    """

    visit: int
    patient: str
    record: str
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    seen: float
    slot: int
    held: dict[Key, tuple[int, int]] = field(default_factory=dict)
    state: int = ASKED
    left: int = -1
    whole: int = -1
    changed: int = 0
    became: int = 0

    def update(self) -> None:
        """What all loaders together know: who waits for it, else whether it is there."""
        state, left = ASKED, -1
        for there, rest in self.held.values():
            state = max(state, there)
            if rest >= 0 and (left < 0 or rest < left):
                left = rest
        self.state, self.left = state, left
        self.whole = max(self.whole, left)

    @property
    def share(self) -> float:
        """Of its draws that are left, 0 to 1."""
        return 1.0 if self.left < 0 else self.left / max(self.whole, 1)


@dataclass(slots=True)
class Sample:
    """Counters at a moment."""

    time: float
    delivered: float
    waited: float
    pixels: float
    admitted: int
    evicted: int


@dataclass
class _Shown:
    """What loaders and runs have in common."""

    key: Key
    process: str
    now: dict[str, Any] = field(default_factory=dict)
    history: deque[Sample] = field(default_factory=deque)
    seconds: float = 0.0
    #: when a message came last
    heard: float = 0.0

    def silent(self, time: float) -> float:
        """Seconds without a message, when they are more than a busy process needs."""
        return time - self.heard if time - self.heard > RECENT else 0.0

    def keep(self, sample: Sample, seconds: float) -> None:
        """Remember counters; `seconds` is the clock of those who count, which no message delays."""
        history = self.history
        if history and sample.delivered < history[-1].delivered:
            history.clear()  # another pass has begun
        if history:
            then = history[-1].time + seconds - self.seconds
            if history[-1].time < then and abs(then - sample.time) < RECENT:
                sample.time = then
        self.seconds = seconds
        history.append(sample)
        while history[0].time < sample.time - HISTORY:
            history.popleft()

    def recent(self) -> tuple[Sample, Sample] | None:
        """The newest sample, and one some seconds before."""
        if len(self.history) < 2:
            return None
        last = self.history[-1]
        first = last
        for sample in reversed(self.history):
            if sample.time < last.time - RECENT:
                break
            first = sample
        return (first, last) if last.time > first.time else None

    def rate(self, name: str) -> float:
        """Of a counter of samples, per second; of all its time when it is known since now."""
        pair = self.recent()
        if pair is None:
            whole = getattr(self.history[-1], name) if self.history else 0.0
            return float(whole / self.seconds) if self.seconds else 0.0
        first, last = pair
        return float((getattr(last, name) - getattr(first, name)) / (last.time - first.time))


@dataclass
class LoaderState(_Shown):
    """One loader, as it was when it was last heard of."""

    log: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=_LINES))

    @property
    def counters(self) -> dict[str, Any]:
        found: dict[str, Any] = self.now.get("counters", {})
        return found

    @property
    def unit(self) -> str:
        """What it delivers: "patches" or "windows"."""
        return str(self.now.get("unit", "patches"))

    @property
    def rank(self) -> int:
        return int(self.now.get("rank", 0))

    @property
    def ranks(self) -> dict[str, Any]:
        """Where it is among the ranks that share its plan; empty without others."""
        found: dict[str, Any] = self.now.get("ranks", {})
        return found

    @property
    def wait_fraction(self) -> float:
        """Share of all its time that its consumer waited, as `stats` has it."""
        seconds = self.counters.get("seconds") or 0.0
        return min(1.0, self.counters["wait_seconds"] / seconds) if seconds else 0.0

    def hear(self, message: Mapping[str, Any], time: float) -> None:
        """Take in counters, and where the ranks are."""
        self.heard = time
        before, self.now = self.now, dict(message["now"])
        count = self.counters
        self.keep(
            Sample(
                time,
                count.get(self.unit, 0),
                count.get("wait_seconds", 0.0),
                count.get("pixels_read", 0),
                count.get("visits_admitted", 0),
                count.get("visits_evicted", 0),
            ),
            count.get("seconds", 0.0),
        )
        self._tell(before, time)

    def _tell(self, before: Mapping[str, Any], time: float) -> None:
        """Lines of the log for what went wrong since."""
        was = before.get("counters", {})
        late = self.counters.get("late_draws", 0) - was.get("late_draws", 0)
        if late > 0:
            self.log.append((time, f"{late:,} late draws"))
        fresh = self.counters.get("failed", 0) - was.get("failed", 0)
        if fresh > 0:
            self.log.extend((time, text) for text in self.now["failures"][-fresh:])
        waits = self.ranks.get("waits_for", [])
        if waits and waits != before.get("ranks", {}).get("waits_for"):
            self.log.append((time, f"rank {self.rank} waits for {ranks_in_words(waits)}"))
        behind = self.ranks.get("left_behind", [])
        if behind and behind != before.get("ranks", {}).get("left_behind"):
            self.log.append((time, f"rank {self.rank} leaves {ranks_in_words(behind)} behind"))


def ranks_in_words(ranks: Iterable[int]) -> str:
    """ "rank 3", or "ranks 1, 2"."""
    named = [str(rank) for rank in ranks]
    return f"rank{'s' if len(named) > 1 else ''} {', '.join(named)}"


@dataclass
class RunState(_Shown):
    """Some work in blocks."""

    def hear(self, message: Mapping[str, Any], time: float) -> None:
        """Take in how far it is."""
        self.now = dict(message["now"]) or {**self.now, "ended": "forgotten"}
        computed = self.done - self.now.get("before", 0)
        self.keep(Sample(time, computed, 0.0, 0.0, 0, 0), self.now["seconds"])

    @property
    def total(self) -> int:
        return int(self.now.get("total", 0))

    @property
    def done(self) -> int:
        return int(self.now.get("done", 0))

    @property
    def ended(self) -> str:
        """ "done", the error that ended it, or empty while it goes on."""
        return str(self.now.get("ended", ""))

    @property
    def seconds_left(self) -> float | None:
        """At the rate of the run so far; None when nobody knows."""
        computed = self.done - self.now.get("before", 0)
        seconds = self.now.get("seconds", 0.0)
        if self.ended or not computed or not seconds:
            return None
        return float((self.total - self.done) * seconds / computed)


class ResidentSet:
    """Big chunks that some loaders share, each once."""

    def __init__(self) -> None:
        self.loaders: dict[Key, LoaderState] = {}
        self.cells: dict[int, Cell] = {}
        #: cells by their place in the picture
        self.slots: list[Cell | None] = []
        #: how often anything changed
        self.changes = 0
        self._free: list[int] = []

    def hear(self, loader: LoaderState, message: Mapping[str, Any], time: float) -> None:
        """Take in what changed of the big chunks that a loader holds."""
        key = loader.key
        self.loaders[key] = loader
        self.changes += 1
        if message["whole"]:
            self._leave(key)
        for visit in message["gone"]:
            self._let_go(key, visit)
        for visit, patient, record, origin, shape, age in message["new"]:
            if visit not in self.cells:
                place = (patient, record, tuple(origin), tuple(shape))
                slot = self._slot()
                cell = Cell(visit, *place, time - age, slot, whole=loader.now.get("draws", -1))
                self.cells[visit] = self.slots[slot] = cell
        for visit, state, left in message["cells"]:
            cell = self.cells[visit]
            before = cell.held.get(key)
            cell.held[key] = (state, left)
            if before is None or before[0] != state:
                cell.changed = cell.became = self.changes
                cell.update()
            elif before[1] == cell.left or left < cell.left:
                cell.changed = self.changes
                cell.update()
            # else another rank is further, and has said so

    def drop(self, key: Key) -> None:
        """A loader is gone."""
        self.changes += 1
        self._leave(key)
        self.loaders.pop(key, None)

    def _leave(self, key: Key) -> None:
        for visit in [v for v, cell in self.cells.items() if key in cell.held]:
            self._let_go(key, visit)

    def _let_go(self, key: Key, visit: int) -> None:
        cell = self.cells[visit]
        del cell.held[key]
        if cell.held:
            cell.changed = cell.became = self.changes
            cell.update()
            return
        heapq.heappush(self._free, cell.slot)
        self.slots[cell.slot] = None
        del self.cells[visit]

    def _slot(self) -> int:
        """The first free place in the picture."""
        if self._free:
            return heapq.heappop(self._free)
        self.slots.append(None)
        return len(self.slots) - 1

    @property
    def ranks(self) -> list[LoaderState]:
        """Its loaders, in order of rank."""
        return sorted(self.loaders.values(), key=lambda loader: (loader.rank, loader.key))

    @property
    def reuse(self) -> float:
        """Pixels drawn by all, per pixel read once for all."""
        loaders = self.loaders.values()
        drawn = sum(lo.counters.get("pixels_drawn", 0) for lo in loaders)
        read = max((lo.counters.get("pixels_read", 0) for lo in loaders), default=0)
        return drawn / read if read else 0.0

    @property
    def pixels_per_second(self) -> float:
        """Read, once for all."""
        return max((lo.rate("pixels") for lo in self.loaders.values()), default=0.0)


class LiveState:
    """All loaders and runs that are heard of, by client and name."""

    def __init__(self) -> None:
        self.loaders: dict[Key, LoaderState] = {}
        self.runs: dict[Key, RunState] = {}
        #: by plan
        self.sets: dict[Any, ResidentSet] = {}

    def hear(self, client: str, message: Mapping[str, Any], time: float) -> bool:
        """Take in a message; False when what came before is missing, and the whole is needed."""
        if message.get("version") != VERSION:
            return True
        key = (client, message["name"])
        if key in self.runs or message["now"].get("kind") == "run":
            run = self.runs.setdefault(key, RunState(key, message["process"]))
            run.hear(message, time)
            self._drop_ended()
            return True
        if message["end"]:
            self._drop(key)
            return True
        if key not in self.loaders:
            if not message["whole"]:
                return False
            self.loaders[key] = LoaderState(key, message["process"])
        loader = self.loaders[key]
        before = self._plan(loader)
        loader.hear(message, time)
        plan = self._plan(loader)
        if plan != before:
            self._leave(before, key)
            if not message["whole"]:
                return False
        self.sets.setdefault(plan, ResidentSet()).hear(loader, message, time)
        return True

    @staticmethod
    def _plan(loader: LoaderState) -> Any:
        """What loaders share that share big chunks."""
        return loader.ranks.get("plan", loader.key)

    def _leave(self, plan: Any, key: Key) -> None:
        one = self.sets.get(plan)
        if one is not None:
            one.drop(key)
            if not one.loaders:
                del self.sets[plan]

    def _drop(self, key: Key) -> None:
        loader = self.loaders.pop(key, None)
        if loader is not None:
            self._leave(self._plan(loader), key)

    def _drop_ended(self) -> None:
        ended = [key for key, run in self.runs.items() if run.ended]
        for key in ended[:-_ENDED]:
            del self.runs[key]

    def forget(self, client: str) -> None:
        """A client is gone, and what it told of with it."""
        for key in [key for key in self.loaders if key[0] == client]:
            self._drop(key)
        self.runs = {key: run for key, run in self.runs.items() if key[0] != client}

    def snapshot(self, time: float) -> dict[str, Any]:
        """All of it, in plain values, for JSON."""
        return {
            "loaders": [_loader_values(loader) for loader in self.loaders.values()],
            "sets": [_set_values(one, time) for one in self.sets.values()],
            "runs": [_run_values(run) for run in self.runs.values()],
        }


def _loader_values(loader: LoaderState) -> dict[str, Any]:
    return {
        "client": loader.key[0],
        "name": loader.key[1],
        "process": loader.process,
        **loader.now,
        "wait_fraction": loader.wait_fraction,
        "rates": {
            "per_second": loader.rate("delivered"),
            "wait_fraction": min(1.0, loader.rate("waited")),
            "pixels_read_per_second": loader.rate("pixels"),
            "admitted_per_second": loader.rate("admitted"),
            "evicted_per_second": loader.rate("evicted"),
        },
        "log": [text for _, text in loader.log],
    }


def _set_values(one: ResidentSet, time: float) -> dict[str, Any]:
    cells = [
        {
            "visit": cell.visit,
            "patient": cell.patient,
            "record": cell.record,
            "origin": list(cell.origin),
            "shape": list(cell.shape),
            "state": ("asked", "ready", "waited")[cell.state],
            "left": None if cell.left < 0 else cell.left,
            "age": time - cell.seen,
        }
        for cell in one.cells.values()
    ]
    loaders = [lo.key[1] for lo in one.ranks]
    return {"loaders": loaders, "reuse": one.reuse, "cells": cells}


def _run_values(run: RunState) -> dict[str, Any]:
    return {
        "client": run.key[0],
        "name": run.key[1],
        "process": run.process,
        **run.now,
        "blocks_per_second": run.rate("delivered"),
        "seconds_left": run.seconds_left,
    }
