"""What is new about a loader or a run since it was last asked: small plain messages.

A message holds only what msgpack knows, and of a thousand big chunks those that changed. Not
covered: who gets it (`daskdmed.monitor.feed`), what it adds up to (`daskdmed.monitor.state`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np

from daskdmed.core.live import Watched

#: draws left are told anew when so small a part of them has been given
_STEP = 1 / 24
#: version of the messages; a state that does not know it ignores them
VERSION = 1


class Changes:
    """Asks one loader or run, and remembers what it said."""

    def __init__(self, what: Watched) -> None:
        self._what = what
        self._known: dict[int, tuple[int, int]] = {}
        #: most draws that a visit had left
        self._most = 0
        self._epoch: Any = None
        self._process = f"{socket.gethostname()}:{os.getpid()}"

    def message(self, *, whole: bool = False) -> dict[str, Any]:
        """What changed since the last one; everything when the `whole` is asked for.

        "end" is true when it has been closed, or is over.
        """
        what = self._what
        now = plain(what.now())
        epoch = now.get("epoch")
        whole = whole or epoch != self._epoch  # visits are counted anew
        self._epoch = epoch
        if whole:
            self._known.clear()
        changed, new = [], []
        cells = what.cells() if now else []
        known, left_over = self._known, set(self._known)
        self._most = max(self._most, max((left for _, _, left in cells), default=0))
        step = max(1.0, self._most * _STEP)
        for visit, state, left in cells:
            left_over.discard(visit)
            before = known.get(visit)
            if before is not None and before[0] == state and 0 <= before[1] - left < step:
                continue
            if before is None:
                place = what.place(visit)
                if place is None:
                    continue
                new.append([visit, *plain(place)])
            known[visit] = (state, left)
            changed.append([visit, state, left])
        for visit in left_over:
            del known[visit]
        return {
            "version": VERSION,
            "name": what.name,
            "process": self._process,
            "whole": whole,
            "now": now,
            "new": new,
            "cells": changed,
            "gone": sorted(left_over),
            "end": not now or bool(now.get("ended")),
        }


def plain(value: Any) -> Any:
    """The same of plain Python values: counters may be numpy's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
