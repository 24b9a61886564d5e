"""Waiting for what another thread or process does, however long a busy machine takes for it.

The only limit is pytest's own (`timeout` in pyproject.toml), which is there for what hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object]) -> None:
    """Return once it is true."""
    while not condition():
        time.sleep(0.01)
