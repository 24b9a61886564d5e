"""PyDmed's ``pydmed.utils.multiproc``: what of it scripts use. No process is ended here."""

from __future__ import annotations

import queue as queues
from typing import Any


def poplast_from_queue(queue: Any) -> Any:
    """Take all that is in a queue, and give the last of it; None when it is empty."""
    last = None
    while True:
        try:
            last = queue.get_nowait()
        except queues.Empty:
            return last
