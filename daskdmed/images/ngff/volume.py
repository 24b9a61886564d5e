"""The backend of volumes over Zarr: OME-Zarr of any version and plain arrays, local or remote.

Axes are those that the metadata name, in any order: z, y, x, with time and channels. Where a
volume lies in the patient is told by the affine that this library writes for its results, else
by the anatomical orientation of axes (RFC-4) with scale and translation; without these only the
size of its voxels is known.

Not covered: slides (`daskdmed.images.ngff.backend`), transformations other than scale and
translation, writing (`daskdmed.store`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.errors import (
    ChangedImageError,
    CorruptImageError,
    RemoteError,
    UnsupportedImageError,
    UsageError,
    listing,
)
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.ngff.metadata import MALFORMED, Multiscale
from daskdmed.images.ngff.planes import (
    child,
    given_names,
    image_group,
    own_facts,
    read_into,
    with_fill,
)
from daskdmed.images.ngff.storage import (
    Watch,
    fingerprint,
    looks_like_zarr,
    metadata_error,
    open_node,
    open_store,
    stored_chunks,
    zip_root,
)
from daskdmed.images.protocols import Reader, VolumeInfo, VolumeOptions
from daskdmed.images.readers import BaseReader, level_infos
from daskdmed.images.volumes.arrays import (
    Layout,
    check_options,
    check_values,
    layout_by_names,
    layout_by_shape,
)

logger = logging.getLogger("daskdmed.images")
_SPACE = ("z", "y", "x")
_WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
#: arrays and groups of a hierarchy that messages look at
_SEARCHED = 1000


class ZarrVolumeBackend:
    """Opens OME-Zarr volumes and plain Zarr arrays."""

    name = "zarr-volume"
    kind = "volume"
    priority = 20

    def accepts(self, uri: str) -> bool:
        return looks_like_zarr(uri)

    def open(self, uri: str) -> Reader:
        return self.open_volume(uri, VolumeOptions())

    def open_volume(self, uri: str, options: VolumeOptions) -> Reader:
        check_options(uri, options, "series", "dataset", "time")
        store = open_store(uri)
        try:
            return ZarrVolumeReader(uri, store, options)
        except BaseException:
            store.close()
            raise

    def fingerprint(self, uri: str, options: VolumeOptions | None = None) -> str:
        known = fingerprint(uri)
        if options is None or options.dataset is None or zip_root(uri) is not None:
            return known
        place = f"{uri.rstrip('/')}/{options.dataset.strip('/')}"
        return f"{known}-{fingerprint(place)}"


@dataclass(frozen=True, slots=True)
class _Level:
    """An array of the hierarchy and its axes."""

    array: Any
    path: str
    layout: Layout

    def read(self, region: Region, out: Array) -> None:
        self._read(self.layout, region, out)

    def read_some(self, region: Region, channels: tuple[int, ...], out: Array) -> None:
        """The same of some channels: chunks that hold none of them are not read."""

        def read(layout: Layout, values: Array) -> None:
            self._read(layout, region, values)

        self.layout.in_groups(channels, self.array.chunks, read, out)

    def _read(self, layout: Layout, region: Region, out: Array) -> None:
        read_into(self.array, layout.selection(region), layout.seen(out))


class ZarrVolumeReader(BaseReader):
    """An open Zarr volume. Reads from any number of threads."""

    info: VolumeInfo

    def __init__(self, uri: str, store: Any, options: VolumeOptions) -> None:
        super().__init__(uri)
        self._store = store
        self._watch = Watch(uri)
        node = _node(uri, open_node(uri, store), options)
        image = _image(uri, node)
        levels = _levels(uri, node, image, options)
        first = levels[0]
        fill = first.array.metadata.fill_value
        is_told = fill is not None and np.isfinite(fill) and fill != 0
        background = (np.asarray(fill).item(),) * first.layout.shape[3] if is_told else ()
        self._levels = [
            _Level(with_fill(level.array, 0), level.path, level.layout) for level in levels
        ]
        space, voxel_size = _place(uri, node, image, first)
        shapes = [level.layout.shape for level in levels]
        tiles = [level.layout.tile(level.array.chunks) for level in levels]
        self.info = VolumeInfo(
            level_infos(shapes, tiles),
            np.dtype(first.array.dtype).newbyteorder("=").name,
            background,
            vendor="zarr" if image is None else "ome-zarr",
            properties=_properties(first, image),
            space=space,
            voxel_size=voxel_size,
            has_channels=first.layout.has_channels,
            channels=() if image is None else image.infos(shapes[0][-1]),
            is_labels=image is not None and image.is_labels,
        )

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        stored = self._levels[level]
        try:
            stored.read(region, out)
        except (MemoryError, RemoteError, ChangedImageError):
            raise  # of these no chunk is to blame
        except Exception as error:  # codecs and stores raise all sorts
            logger.debug("%s, level %d: %r, reading chunk by chunk", self._uri, level, error)
            self._read_tiles(level, region, out, tile_error, stored.read)
        self._watch.check()

    def _read_channels(
        self,
        level: int,
        region: Region,
        channels: tuple[int, ...],
        out: Array,
        tile_error: OnTileError,
    ) -> None:
        try:
            self._levels[level].read_some(region, channels, out)
        except MemoryError:
            raise
        except Exception as error:  # as above
            logger.debug("%s, level %d: %r, reading all channels", self._uri, level, error)
            super()._read_channels(level, region, channels, out, tile_error)

    def read_associated(self, name: str) -> Array:
        raise self._no_associated(name)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.close()


# -------------------------------------------------------------------- which arrays are meant
def _node(uri: str, root: Any, options: VolumeOptions) -> Any:
    """The array or group that is meant."""
    node = root
    if options.dataset is not None:
        try:
            node = root[options.dataset]
        except (KeyError, FileNotFoundError, TypeError, ValueError):
            raise UsageError(
                f"{uri}: dataset={options.dataset!r} is not there; there are {_listed(root)}"
            ) from None
        except MemoryError:
            raise
        except Exception as error:
            raise metadata_error(uri, f"dataset {options.dataset!r}", error) from error
    if _is_array(node):
        if options.series is not None:
            raise UsageError(f"{uri} is one array, so series={options.series!r} means nothing")
        return node
    try:
        node, _ = image_group(uri, node, options.series or "")
        own_facts(uri, node)
    except MALFORMED as error:
        if isinstance(error, UsageError):  # slides call it an image
            raise UsageError(str(error).replace("image=", "series=")) from None
        raise _malformed(uri, error) from error
    return node


def _image(uri: str, node: Any) -> Multiscale | None:
    """What OME-Zarr says of a group."""
    try:
        return None if _is_array(node) else Multiscale.parse(node.attrs.asdict())
    except MALFORMED as error:
        raise _malformed(uri, error) from error


def _malformed(uri: str, error: Exception) -> CorruptImageError:
    return CorruptImageError.of(
        uri,
        f"the image metadata are malformed ({type(error).__name__}: {error}); "
        f"check them with an OME-Zarr validator",
    )


def _is_array(node: Any) -> bool:
    return not hasattr(node, "members")


def _listed(group: Any) -> str:
    """Arrays below a group, for messages."""
    if _is_array(group):
        return "only one array, at its root"
    found: list[str] = []
    try:
        for number, (path, node) in enumerate(group.members(max_depth=4)):
            if number >= _SEARCHED:
                break
            if _is_array(node):
                found.append(f"{path} {node.shape} {node.dtype}")
    except NotImplementedError:
        return "arrays that the server does not list"
    return listing(sorted(found)) or "none"


def _levels(uri: str, node: Any, image: Multiscale | None, options: VolumeOptions) -> list[_Level]:
    """Arrays with their axes, largest first."""
    if image is None:
        array = node if _is_array(node) else _only_array(uri, node)
        names = given_names(array)
        if {"y", "x"} <= set(names):
            layout = _layout(uri, names, array, options)
        else:
            layout = layout_by_shape(uri, array.shape, options.time)
        check_values(uri, array.shape, array.dtype, stored_chunks(uri, array))
        return [_Level(array, array.path, layout)]
    # the type counts more than the name
    kinds = {"channel": "c", "time": "t"}
    names = [kinds.get(axis.type, axis.name) for axis in image.axes]
    levels = []
    for number, place in enumerate(image.levels):
        array = child(uri, node, place.path, f"the array of level {number}")
        if not _is_array(array) or array.ndim != len(names):
            what = "is no array" if not _is_array(array) else f"has {array.ndim} dimensions"
            raise CorruptImageError.of(
                uri, f"level {number}, {place.path!r}, {what}; the metadata name the axes {names}"
            )
        levels.append(_Level(array, place.path, _layout(uri, names, array, options)))
    levels.sort(key=lambda level: -math.prod(level.layout.shape[:3]))
    for level in levels:
        first = levels[0]
        if (level.layout.shape[3], level.array.dtype) != (
            first.layout.shape[3],
            first.array.dtype,
        ):
            raise CorruptImageError.of(
                uri,
                f"level {level.path!r} has {level.layout.shape[3]} channels of "
                f"{level.array.dtype}, level {first.path!r} {first.layout.shape[3]} of "
                f"{first.array.dtype}",
            )
    for level in levels:
        array = level.array
        check_values(uri, array.shape, array.dtype, stored_chunks(uri, array))
    return levels


def _only_array(uri: str, group: Any) -> Any:
    try:
        arrays = [array for _, array in group.arrays()]
    except NotImplementedError as error:
        raise UnsupportedImageError.of(
            uri,
            "it has no OME-Zarr metadata and its server cannot list it; name an array, dataset=",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # zarr lets through whatever its parsers raise
        raise metadata_error(uri, "one of its arrays", error) from error
    if len(arrays) == 1:
        return arrays[0]
    if not arrays:
        raise UnsupportedImageError.of(
            uri,
            "it is a Zarr group without arrays and without OME-Zarr metadata; name an array, "
            f"dataset=; below it are {_listed(group)}",
        )
    raise UsageError(f"{uri} has {len(arrays)} arrays; say which, dataset=: {_listed(group)}")


def _layout(uri: str, names: Sequence[str], array: Any, options: VolumeOptions) -> Layout:
    """Of named axes; one channel is none."""
    seen = [
        "one channel" if name == "c" and extent == 1 else name
        for name, extent in zip(names, array.shape, strict=True)
    ]
    return layout_by_names(uri, seen, array.shape, options.time)


# -------------------------------------------------------------------- where the volume lies
def _place(
    uri: str, node: Any, image: Multiscale | None, first: _Level
) -> tuple[Space | None, tuple[float, float, float] | None]:
    """The space of the finest level, else the size of its voxels."""
    try:
        extent = first.layout.shape[:3]
        own = node.attrs.asdict().get("daskdmed")
        place = own.get("georeference") if isinstance(own, Mapping) else None
        told = place.get("space") if isinstance(place, Mapping) else None
        if isinstance(told, Mapping):
            space = Space(told["affine"], told["shape"])
            if space.shape == extent:
                return space, None
        if image is None:
            return None, None
        return _told_by_axes(image, first.path, extent)
    except MALFORMED as error:
        raise _malformed(uri, error) from error


def _told_by_axes(
    image: Multiscale, path: str, extent: tuple[int, ...]
) -> tuple[Space | None, tuple[float, float, float] | None]:
    axes = {axis.name: number for number, axis in enumerate(image.axes)}
    spacing = image.spacing(path)
    steps = [spacing[axes[n]] if n in axes else None for n in _SPACE]
    if None in steps:
        return None, None
    z, y, x = (float(s) / 1000 for s in steps if s is not None)
    letters = [image.axes[axes[n]].letter for n in _SPACE]
    worlds = [_WORLD[letter] for letter in letters if letter is not None]
    if sorted(row for row, _ in worlds) != [0, 1, 2]:
        return None, (z, y, x)
    translation = next(level for level in image.levels if level.path == path).translation
    affine = np.eye(4)
    affine[:3] = 0
    for axis, ((row, sign), step) in enumerate(zip(worlds, (z, y, x), strict=True)):
        number = axes[_SPACE[axis]]
        unit = image.axes[number].micrometers or 0.0
        affine[row, axis] = sign * step
        affine[row, 3] = sign * translation[number] * unit / 1000
    return Space(affine, extent), None


def _properties(level: _Level, image: Multiscale | None) -> dict[str, str]:
    found = {"zarr.format": str(level.array.metadata.zarr_format)}
    if image is not None:
        facts = {"ome.version": image.version, "ome.name": image.name}
        found |= {key: value for key, value in facts.items() if value}
    return found
