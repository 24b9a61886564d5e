"""HDF5: one array of a file as a volume, (z, y, x) with time points before or channels behind.

Which axes an array has is told, in this order, by the labels of its dimensions (one letter each
of t, z, y, x, c), by the ``axistags`` of ilastik, and by its shape. MedSegPy's files (``.im``,
``.seg``, and those in which ``seg`` lies beside ``volume``) have their channels last, however many
there are. The size of voxels is the attribute
``element_size_um`` of the array, micrometers along z, y, x, as Fiji and ilastik write it.

Files are opened without locks, so that other processes may have them open too. (HDF5 wants one
way in one process: as long as a volume is open, ``h5py.File`` needs ``locking=False`` too.) h5py
lets one thread in at a time, also across files.

Not covered: places in the patient, which HDF5 has no name for (`Record(..., space=...)`), remote
files, writing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from daskdmed.core.errors import (
    CorruptImageError,
    UnsupportedImageError,
    UsageError,
    listing,
)
from daskdmed.core.extras import extra
from daskdmed.core.places import is_remote
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.protocols import Reader, VolumeInfo, VolumeOptions
from daskdmed.images.readers import BaseReader, check_readable
from daskdmed.images.source import fingerprint
from daskdmed.images.volumes.arrays import (
    Layout,
    check_options,
    layout_by_names,
    layout_by_shape,
)
from daskdmed.images.volumes.heaps import watched

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: where it may stand, behind a block of the user
_PLACES = (0, 512, 1024, 2048)
_SUFFIXES = (".h5", ".hdf5")
_CHANNELS_LAST = (".im", ".seg")
_MEDSEGPY = ("volume", "seg")
#: objects of a file that are looked at when the array is not named
_SEARCHED = 10_000


class Hdf5Backend:
    """Opens arrays of HDF5 files."""

    name = "hdf5"
    kind = "volume"
    priority = 20
    needs: ClassVar = {"h5py": "volumes"}

    def accepts(self, uri: str) -> bool:
        if is_remote(uri) or not os.path.isfile(uri):
            return False
        return uri.lower().endswith(_SUFFIXES) or _has_signature(uri)

    def open(self, uri: str) -> Reader:
        return self.open_volume(uri, VolumeOptions())

    def open_volume(self, uri: str, options: VolumeOptions) -> Reader:
        check_options(uri, options, "dataset", "time")
        check_readable(uri, uri)
        extra("h5py", "volumes", "reading HDF5 files needs")
        try:
            file = open_unlocked(uri)
        except OSError as error:
            if not _has_signature(uri):
                raise UnsupportedImageError.of(uri, "this is no HDF5 file") from error
            raise CorruptImageError.of(
                uri, f"the HDF5 file is damaged ({error}); fetch it again from where it came"
            ) from error
        try:
            return Hdf5Reader(uri, file, options)
        except BaseException:
            file.close()
            raise

    def fingerprint(self, uri: str, options: VolumeOptions | None = None) -> str:
        return fingerprint(uri)


def open_unlocked(path: str) -> Any:
    """A file opened for reading without a lock, or as this process has it open already: it cannot
    be open in both ways."""
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking" not in str(error):
            raise
        return h5py.File(path, "r")


def _has_signature(uri: str) -> bool:
    try:
        with open(uri, "rb") as file:
            head = file.read(_PLACES[-1] + len(_SIGNATURE))
    except OSError:
        return False
    return any(head[at : at + len(_SIGNATURE)] == _SIGNATURE for at in _PLACES)


class Hdf5Reader(BaseReader):
    """An open array. Reads from any number of threads."""

    info: VolumeInfo

    def __init__(self, uri: str, file: Any, options: VolumeOptions) -> None:
        super().__init__(uri)
        self._file = file
        try:
            with watched(uri) as described:
                array = _chosen(uri, described, options.dataset)
                self._layout = _layout(uri, array, options.time)
                name, size = str(array.name), array.attrs.get("element_size_um")
            self._array = file[name]
        except (RuntimeError, KeyError, OSError) as error:
            if isinstance(error, (UsageError, CorruptImageError, UnsupportedImageError)):
                raise
            raise CorruptImageError.of(
                uri, f"the HDF5 file is damaged ({error}); fetch it again from where it came"
            ) from error
        self.info = self._layout.info(
            uri,
            self._array.dtype,
            self._array.chunks,
            vendor="hdf5",
            voxel_size=_voxel_size(size),
            properties={"hdf5.dataset": name},
        )

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        try:
            self._copy(region, out)
        except MemoryError:
            raise
        except Exception:  # filters raise all sorts
            self._read_tiles(level, region, out, tile_error, self._copy)

    def _copy(self, region: Region, out: Array) -> None:
        self._layout.seen(out)[...] = self._array[self._layout.selection(region)]

    def _read_channels(
        self,
        level: int,
        region: Region,
        channels: tuple[int, ...],
        out: Array,
        tile_error: OnTileError,
    ) -> None:
        def read(layout: Layout, values: Array) -> None:
            layout.seen(values)[...] = self._array[layout.selection(region)]

        try:
            self._layout.in_groups(channels, self._array.chunks, read, out)
        except MemoryError:
            raise
        except Exception:  # as above
            super()._read_channels(level, region, channels, out, tile_error)

    def read_associated(self, name: str) -> Array:
        raise self._no_associated(name)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._file.close()


def _chosen(uri: str, file: Any, name: str | None) -> Any:
    """The array that is named, or the only one that can be a volume."""
    import h5py

    if name is not None:
        node = file.get(name)
        if isinstance(node, h5py.Dataset):
            return node
        there = _listed(arrays_in(node if isinstance(node, h5py.Group) else file))
        what = "is a group" if isinstance(node, h5py.Group) else "is not there"
        raise UsageError(f"{uri}: dataset={name!r} {what}; there are {there}")
    arrays = arrays_in(file)
    if len(arrays) == 1:
        return arrays[0]
    if not arrays:
        raise UnsupportedImageError.of(
            uri, "it has no array of numbers with two axes or more, so no volume"
        )
    raise UsageError(f"{uri} has {len(arrays)} arrays; say which, dataset=: {_listed(arrays)}")


def arrays_in(group: Any) -> list[Any]:
    """What could be images below a group; links to other files are not followed."""
    import h5py

    found: list[Any] = []
    seen = 0

    def look(_: str, node: Any) -> bool | None:
        nonlocal seen
        seen += 1
        is_array = isinstance(node, h5py.Dataset) and node.shape is not None
        if is_array and len(node.shape) > 1 and node.dtype.kind in "biuf":
            found.append(node)
        return True if seen >= _SEARCHED else None

    group.visititems(look)
    return found


def _listed(arrays: Sequence[Any]) -> str:
    return listing([f"{a.name} {a.shape} {a.dtype}" for a in arrays]) or "none"


def _layout(uri: str, array: Any, time: int | str | None) -> Layout:
    if array.shape is None:
        raise UnsupportedImageError.of(uri, f"{array.name} is empty")
    names = _labels(array) or _axistags(array)
    if names is not None:
        return layout_by_names(uri, names, array.shape, time)
    last = uri.lower().endswith(_CHANNELS_LAST) or _of_medsegpy(array)
    return layout_by_shape(uri, array.shape, time, channels_last=last)


def _of_medsegpy(array: Any) -> bool:
    """Whether it is the masks of a volume, (y, x, z, classes), or that volume."""
    return set(_MEDSEGPY) <= {*array.parent} and str(array.name).endswith(_MEDSEGPY)


def _labels(array: Any) -> list[str] | None:
    """Names of axes as labels of dimensions, where every one has one that is known.

    Of the attribute that holds them: HDF5's own function for it ends the process where that is
    damaged.
    """
    labels = array.attrs.get("DIMENSION_LABELS")
    if np.shape(labels) != (array.ndim,):
        return None
    names = [(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)) for v in labels]
    names = [name.lower() for name in names]
    return names if {"y", "x"} <= set(names) <= set("tczyx") else None


def _axistags(array: Any) -> list[str] | None:
    """Names of axes as ilastik writes them."""
    try:
        axes = json.loads(array.attrs["axistags"])["axes"]
        names = [str(axis["key"]).lower() for axis in axes]
    except (KeyError, TypeError, ValueError):
        return None
    return names if len(names) == array.ndim else None


def _voxel_size(micrometers: Any) -> tuple[float, float, float] | None:
    """Millimeters along (z, y, x) from micrometers along them."""
    try:
        z, y, x = (float(v) / 1000 for v in np.ravel(micrometers))
    except (TypeError, ValueError):
        return None
    return (z, y, x) if all(0 < v < np.inf for v in (z, y, x)) else None
