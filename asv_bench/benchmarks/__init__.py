"""asv benchmarks of daskdmed. One file per topic; the work itself is in ``scenarios.py``.

Sizes and durations come from the environment, see ``inputs.py``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# asv imports this package alone; the modules that scripts share lie beside it
_HERE = str(Path(__file__).resolve().parents[1])
if _HERE not in sys.path:
    sys.path.append(_HERE)


def parameterized(names: Sequence[str], params: Sequence[Sequence[Any]]) -> Callable[[F], F]:
    """Give a benchmark function its asv parameters."""

    def decorate(function: F) -> F:
        function.param_names = list(names)  # type: ignore[attr-defined]
        function.params = [list(p) for p in params]  # type: ignore[attr-defined]
        return function

    return decorate


def requires(module: str) -> None:
    """Skip a benchmark (asv's way: NotImplementedError in setup) without an extra."""
    if importlib.util.find_spec(module) is None:
        raise NotImplementedError(f"{module} is not installed")


class Once:
    """Benchmarks that take seconds: measured once, not warmed up by asv."""

    timeout = 900
    number = 1
    repeat = (1, 3, 20.0)
    warmup_time = 0
