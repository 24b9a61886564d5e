"""asv benchmarks of daskdmed. One file per topic; the work itself is in ``scenarios.py``.

Sizes and durations come from the environment, see ``inputs.py``. asv measures each figure, with
each of its parameters, in a process of its own; with ``--launch-method=forkserver`` these are forks
of one that has imported all of this.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import mmap
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: what was measured, pickled: memory that a fork server has in common with all that it forks
_MEASURED = mmap.mmap(-1, 1 << 20)

# asv imports this package alone; the modules that scripts share lie beside it
_HERE = str(Path(__file__).resolve().parents[1])
if _HERE not in sys.path:
    sys.path.append(_HERE)

# at the sizes of CI most benchmarks take less time than importing torch does
for _name in os.environ.get("DASKDMED_BENCH_IMPORT", "").split():
    importlib.import_module(_name)


def once_a_run(measure: F) -> F:
    """Measure once, with the same arguments, for all figures that come of it.

    In a run of asv with a fork server; in each process otherwise.
    """

    @functools.wraps(measure)
    def kept(*args: Any, **options: Any) -> Any:
        what = repr((measure.__module__, measure.__qualname__, args, options))
        _MEASURED.seek(0)
        measured = pickle.load(_MEASURED) if _MEASURED[0] else {}
        if what not in measured:
            measured[what] = measure(*args, **options)
            _MEASURED[:] = pickle.dumps(measured).ljust(len(_MEASURED), b"\0")
        return measured[what]

    return kept  # type: ignore[return-value]


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
