"""What is compiled: loops over small pieces that let go of the interpreter's lock once for many.

The files of C beside this module are built when the package is installed, where there is a
compiler (``hatch_build.py``). Everything works without, and gives the same; where small pieces are
decoded and copied by several threads it then takes up to half as long again, for they wait for the
lock. The environment variable ``DASKDMED_NATIVE`` set to ``off`` keeps it from being built, or
from being used.

- ``tiles.c``: JPEG tiles of which parts are wanted, see `daskdmed.images.turbojpeg`
- ``copies.c``: boxes of pixels to their places, see `copy_all`
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daskdmed.core.types import Array

_log = logging.getLogger("daskdmed.core")
#: environment variable that is "off" where nothing compiled is wanted
VARIABLE = "DASKDMED_NATIVE"
#: their versions are in their names: what was built of earlier ones is not found
_TILES, _COPIES = "daskdmed_tiles_2", "daskdmed_copies_1"


def wanted() -> bool:
    """Whether nobody has said that what is compiled is not to be used."""
    return os.environ.get(VARIABLE, "").lower() not in ("off", "0")


@functools.cache
def library() -> Any:
    """What was built, as `ctypes` has it; None where it was not, or is not wanted."""
    if not wanted():
        return None
    for path in sorted(Path(__file__).parent.glob("_loops.*")):
        try:
            found = ctypes.CDLL(str(path))
            found[_TILES].restype, found[_COPIES].restype = ctypes.c_int, None
        except (OSError, AttributeError) as error:
            _log.debug("%s is of no use here: %s", path, error)
            continue
        return found
    return None


def tiles() -> Any:
    """The function of ``tiles.c``; None where there is none."""
    return None if library() is None else library()[_TILES]


def copy_all(pairs: Sequence[tuple[Array, Array]]) -> None:
    """Copy into each first of two arrays the second, in one call for all that allow it.

    That are arrays of one type and of at most three axes (the last of them, where it is without
    gaps in both, counts with the one before it).
    """
    found, rest = library(), pairs
    if found is not None:
        copies, rest = _as_copies(pairs)
        if copies:
            table = np.array(copies, np.int64)
            found[_COPIES](
                ctypes.c_void_p(table.__array_interface__["data"][0]), ctypes.c_int64(len(table))
            )
    for target, source in rest:
        target[...] = source


def _as_copies(
    pairs: Sequence[tuple[Array, Array]],
) -> tuple[list[tuple[int, ...]], list[tuple[Array, Array]]]:
    """Rows of the table that ``copies.c`` takes, and those that are for NumPy."""
    copies, rest = [], []
    for target, source in pairs:
        form = None
        if target.dtype == source.dtype and target.shape == source.shape:
            form = _form(target.shape, source.strides, target.strides, target.itemsize)
        if form is None or target.dtype.hasobject:
            rest.append((target, source))
            continue
        both = (a.__array_interface__["data"][0] for a in (source, target))
        copies.append((*both, *form))
    return copies, rest


@functools.lru_cache(maxsize=256)
def _form(
    shape: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...], itemsize: int
) -> tuple[int, ...] | None:
    """Planes, rows and bytes of lines, as ``copies.c`` takes them, of arrays with these strides;
    None where they are none."""
    axes, line = len(shape), itemsize
    while axes and source[axes - 1] == target[axes - 1] == line:
        axes -= 1
        line *= shape[axes]
    if axes > 2 or not math.prod(shape):
        return None
    outer = [(1, 0, 0)] * (2 - axes) + list(
        zip(shape[:axes], source[:axes], target[:axes], strict=True)
    )
    return (*outer[0], *outer[1], line)


__all__ = ["VARIABLE", "copy_all", "library", "tiles", "wanted"]
