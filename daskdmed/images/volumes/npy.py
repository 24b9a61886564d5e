"""NumPy's own files: (z, y, x[, c]) arrays, mapped into memory and read where they are asked for.

Not covered: .npz archives, pickled objects.
"""

from __future__ import annotations

import os
import tokenize
from typing import Any

import numpy as np

from daskdmed.core.errors import CorruptImageError
from daskdmed.core.places import is_remote
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.protocols import Reader, VolumeInfo, VolumeOptions
from daskdmed.images.readers import BaseReader
from daskdmed.images.source import explain_os_error, fingerprint
from daskdmed.images.volumes.arrays import Layout, check_options, check_values, layout_by_shape

#: what NumPy raises where a header says nonsense, which it takes for a Python expression
MALFORMED = (
    *(ValueError, TypeError, KeyError, EOFError, SyntaxError, tokenize.TokenError),
    *(OverflowError, MemoryError, RecursionError),
)


class NpyBackend:
    """Opens .npy files of numbers."""

    name = "npy"
    kind = "volume"
    priority = 30

    def accepts(self, uri: str) -> bool:
        return not is_remote(uri) and uri.lower().endswith(".npy") and os.path.isfile(uri)

    def open(self, uri: str) -> Reader:
        return self.open_volume(uri, VolumeOptions())

    def open_volume(self, uri: str, options: VolumeOptions) -> Reader:
        check_options(uri, options, "time")
        return NpyReader(uri, options)

    def fingerprint(self, uri: str, options: VolumeOptions | None = None) -> str:
        return fingerprint(uri)


class NpyReader(BaseReader):
    """A mapped file. Reads from any number of threads."""

    info: VolumeInfo

    def __init__(self, uri: str, options: VolumeOptions) -> None:
        super().__init__(uri)
        stored = mapped(uri)
        check_values(uri, stored.shape, stored.dtype)
        self._layout = layout_by_shape(uri, stored.shape, options.time)
        self._stored = stored
        self.info = self._layout.info(uri, stored.dtype, vendor="npy")

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        self._layout.seen(out)[...] = self._stored[self._layout.selection(region)]

    def _read_channels(
        self,
        level: int,
        region: Region,
        channels: tuple[int, ...],
        out: Array,
        tile_error: OnTileError,
    ) -> None:
        def read(layout: Layout, values: Array) -> None:
            layout.seen(values)[...] = self._stored[layout.selection(region)]

        self._layout.in_groups(channels, None, read, out)

    def read_associated(self, name: str) -> Array:
        raise self._no_associated(name)

    def close(self) -> None:
        self._closed = True
        self._stored = np.empty(0)


def mapped(uri: str) -> Any:
    """The array of a .npy file, mapped into memory."""
    try:
        return np.load(uri, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise explain_os_error(error, uri) from error
    except MALFORMED as error:
        raise CorruptImageError.of(
            uri, f"it cannot be mapped as NumPy's format: {error}; save it again by numpy.save"
        ) from error
