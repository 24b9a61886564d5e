"""What backends of plain arrays share: which axes are what, and options that they refuse.

Pure. Not covered: where the bytes come from, and where the voxels lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskdmed.core.errors import UnsupportedImageError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.channels import read_groups
from daskdmed.images.protocols import VolumeInfo, VolumeOptions
from daskdmed.images.readers import level_infos
from daskdmed.images.refusals import check_extents

_NAMES = tuple("tczyx")
#: a last axis of at most so many is taken for channels
MAX_CHANNELS = 4
#: voxels of a row that count as a tile where there are no chunks: more would make blocks of wide
#: volumes larger than asked for, fewer would read the same pages of the file again and again
ROW = 512
#: what a chunk or tile may take in memory; it is decoded whole
MAX_CHUNK_BYTES = 4 * 2**30


def check_options(uri: str, options: VolumeOptions, *known: str) -> None:
    """Refuse options that a backend cannot follow."""
    usual = VolumeOptions()
    for name in ("series", "dataset", "time", "form", "on_gap", "files"):
        value = getattr(options, name)
        if name not in known and value != getattr(usual, name):
            raise UsageError(f"{uri}: {name}={value!r} means nothing for this kind of file")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where z, y, x and channels are among the axes of a stored array.

    `axes` are their positions, None for an axis that is not there and then has extent 1; `at` is
    the index along every stored axis that is none of them.
    """

    stored: tuple[int, ...]
    axes: tuple[int | None, int, int, int | None]
    at: tuple[int, ...]
    #: the first and one past the last channel that are read, None for all
    some: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the volume, (z, y, x, channels)."""
        z, y, x, c = (1 if a is None else self.stored[a] for a in self.axes)
        return z, y, x, c

    @property
    def has_channels(self) -> bool:
        """Whether there is such an axis."""
        return self.axes[3] is not None

    def tile(self, chunks: Sequence[int]) -> tuple[int, int, int]:
        """A chunk along the axes of the stored array, along (z, y, x)."""
        z, y, x = (1 if a is None else min(chunks[a], self.stored[a]) for a in self.axes[:3])
        return z, y, x

    @property
    def row(self) -> tuple[int, int, int]:
        """A tile of an array without chunks."""
        last = max(a for a in self.axes[:3] if a is not None)
        z, y, x = (
            min(ROW, n) if a == last else 1
            for a, n in zip(self.axes[:3], self.shape[:3], strict=True)
        )
        return z, y, x

    def selection(self, region: Region) -> tuple[int | slice, ...]:
        """A region (z, y, x) with its channels as an index of the stored array."""
        found: list[int | slice] = list(self.at)
        channels = slice(*(self.some or (0, self.shape[3])))
        for axis, part in zip(self.axes, (*region.slices, channels), strict=True):
            if axis is not None:
                found[axis] = part
        return tuple(found)

    def in_groups(
        self,
        channels: tuple[int, ...],
        chunks: Sequence[int] | None,
        read: Callable[[Layout, Array], None],
        out: Array,
    ) -> None:
        """Read some channels: `read` fills an array with those of a layout; what lies in chunks
        together is read at once."""

        def some(first: int, stop: int, values: Array) -> None:
            read(replace(self, some=(first, stop)), values)

        axis = self.axes[3]
        read_groups(channels, 1 if axis is None or chunks is None else chunks[axis], some, out)

    def seen(self, out: Array) -> Array:
        """An array (z, y, x, channels) as the stored array has its axes: without those that are not
        there, in its order."""
        there = [a for a in self.axes if a is not None]
        view: Array = out[tuple(0 if a is None else slice(None) for a in self.axes)]
        return view.transpose(np.argsort(there))

    def info(
        self, uri: str, dtype: Any, chunks: Sequence[int] | None = None, **facts: Any
    ) -> VolumeInfo:
        """Of a volume of one level in an array with chunks; without them only rows lie together."""
        check_values(uri, self.stored, dtype, chunks)
        tile = self.tile(chunks) if chunks else self.row
        levels = level_infos([self.shape], [tile])
        name = np.dtype(dtype).newbyteorder("=").name
        return VolumeInfo(levels, name, (), has_channels=self.has_channels, **facts)


def check_values(uri: str, shape: Sequence[int], dtype: Any, chunks: Any = None) -> None:
    """Refuse arrays of what is no number, empty ones, and chunks that do not fit into memory."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        raise UnsupportedImageError.of(uri, f"voxels are numbers, this has {dtype}")
    check_extents(uri, shape, chunks or ())
    nbytes = math.prod(chunks or ()) * dtype.itemsize
    if nbytes > MAX_CHUNK_BYTES:
        raise UnsupportedImageError.of(
            uri,
            f"a chunk {tuple(chunks)} takes {nbytes / 2**30:.1f} GiB in memory, more than "
            f"{MAX_CHUNK_BYTES / 2**30:.0f} GiB; write it anew in smaller chunks",
        )


def layout_by_shape(
    uri: str, shape: Sequence[int], time: int | str | None, *, channels_last: bool = False
) -> Layout:
    """Of an array that does not name its axes.

    (y, x) is one slice; of four axes the last are channels where there are few, else the first
    are time points, one of which `time` chooses. `channels_last`: of four they are channels.
    """
    few = len(shape) == 4 and time is None and shape[-1] <= MAX_CHANNELS
    usual = {2: "yx", 3: "zyx", 4: "zyxc" if few or channels_last else "tzyx", 5: "tzyxc"}
    if len(shape) not in usual:
        raise UnsupportedImageError.of(
            uri,
            "a volume is (z, y, x), with time points before or channels behind; not "
            f"{tuple(shape)}",
        )
    return layout_by_names(uri, usual[len(shape)], shape, time)


def layout_by_names(
    uri: str, names: Sequence[str], shape: Sequence[int], time: int | str | None
) -> Layout:
    """Of an array whose axes are named t, c, z, y and x; others have extent 1."""
    where = {name: axis for axis, name in enumerate(names)}
    said = ", ".join(f"{name} {extent}" for name, extent in zip(names, shape, strict=True))
    odd = [n for n, extent in zip(names, shape, strict=True) if n not in _NAMES and extent != 1]
    if len(where) != len(names) or odd or not {"y", "x"} <= set(where):
        raise UnsupportedImageError.of(
            uri,
            f"a volume has axes z, y, x, with time t and channels c, each once; here are {said}; "
            "open it as a Dask array and use Record(array=...)",
        )
    at, channel = [0] * len(shape), where.get("c")
    times = where.get("t")
    points = 1 if times is None else shape[times]
    chosen = time_point(uri, points, said, time)
    if chosen is not None and times is not None:
        at[times] = chosen
    elif chosen is None and times is not None:
        if channel is not None and shape[channel] > 1:
            raise UsageError(
                f"{uri} has {shape[channel]} channels at {points} time points ({said}), so "
                'time="channels" means nothing; say which point: time=0'
            )
        channel = times
    return Layout(tuple(shape), (where.get("z"), where["y"], where["x"], channel), tuple(at))


def time_point(uri: str, points: int, said: str, time: int | str | None) -> int | None:
    """Which of so many time points `time` chooses, None for all as channels; an error where it does
    not say."""
    if time == "channels":
        return None
    if time is None and points > 1:
        raise UsageError(
            f"{uri} has {points} time points ({said}); say which: time=0, or "
            'time="channels" for all as channels'
        )
    if isinstance(time, int) and time >= points:
        raise UsageError(f"{uri}: no time point {time}, there are 0 to {points - 1}")
    return int(time or 0)
