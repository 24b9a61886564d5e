"""PyDmed's own names over daskdmed: ``import daskdmed.compat.pydmed as pydmed``.

Modules, classes and signatures are those of PyDmed (MIT licence, commit 3b7f4a7), so that a script
runs with its import lines changed, or unchanged after ``daskdmed.compat.pydmed.install()``. What
they do is done by `daskdmed.LightDL` and `daskdmed.SlidingWindowDL`: big chunks are read by
threads, small chunks cropped where they lie, batches a function of the dataset and a seed. Where
PyDmed had defects (tiles lost, messages to the wrong patient, patients lost by splits, busy
waits), this does what its documentation says.

Not covered: what new code should be written in, see the page "From PyDmed" of the manual.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskdmed.compat._install import Installed

_MODULES = ("extensions", "lightdl", "stat", "streamcollector", "utils")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def install() -> Installed:
    """Have ``import pydmed`` and ``from pydmed.lightdl import ...`` find this package.

    Gives what ends it: ``with install(): ...``, or its ``remove()``.
    """
    from daskdmed.compat._install import install as install_as

    return install_as("pydmed", __name__)
