"""NumPy's own files: (z, y, x[, c]) arrays, mapped into memory and read where they are asked for.

Not covered: .npz archives, pickled objects.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError
from daskdmed.core.places import is_remote
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.protocols import Reader, VolumeInfo, VolumeOptions
from daskdmed.images.readers import BaseReader, level_infos
from daskdmed.images.source import explain_os_error, fingerprint
from daskdmed.images.volumes.arrays import check_options, laid_out

_MAGIC = b"\x93NUMPY"


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
        try:
            stored: Any = np.load(uri, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise explain_os_error(error, uri) from error
        except (ValueError, EOFError, SyntaxError, MemoryError, OverflowError) as error:
            raise CorruptImageError.of(
                uri, f"it cannot be mapped as NumPy's format: {error}; save it again by numpy.save"
            ) from error
        if stored.dtype.kind not in "biuf":
            raise UnsupportedImageError.of(uri, f"voxels are numbers, this has {stored.dtype}")
        array, channels = laid_out(uri, stored, options.time)
        self._array = array
        levels = level_infos([array.shape], [array.shape[:3]])
        self.info = VolumeInfo(
            levels, array.dtype.newbyteorder("=").name, (), vendor="npy", has_channels=channels
        )

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        out[...] = self._array[region.slices]

    def read_associated(self, name: str) -> Array:
        raise self._no_associated(name)

    def close(self) -> None:
        self._closed = True
        self._array = np.empty(0)
