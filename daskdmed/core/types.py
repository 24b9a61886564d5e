"""Names of types that every layer's signatures share.

Not covered: the values themselves, `daskdmed.core.region`, `daskdmed.core.resolution` and
`daskdmed.core.view`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
PathLike: TypeAlias = str | os.PathLike[str]
#: what an image, or a part of one, that cannot be used does: an error, or left out and reported
OnError: TypeAlias = Literal["raise", "skip"]
#: what a storage tile that cannot be decoded becomes: an error, or background and a report
OnTileError: TypeAlias = Literal["raise", "fill"]
LevelLike: TypeAlias = int | Callable[[Any], int]
MppLike: TypeAlias = float | tuple[float, float] | Callable[[Any], float]
PowerLike: TypeAlias = float | Callable[[Any], float]
SpacingLike: TypeAlias = float | Sequence[float | None] | Callable[[Any], Any]
#: a record by its name, or several whose values become channels
RecordLike: TypeAlias = str | Sequence[str]
