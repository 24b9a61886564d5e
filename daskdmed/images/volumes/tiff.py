"""Stacks in TIFF files: pages of one shape, ImageJ's and OME's, with time points and channels.

The pages are those that tifffile arranges; tiles are decoded as those of slides. The size of
voxels is told by OME-XML, or by ImageJ's spacing with the resolution tags; TIFF has no place in
the patient. Axes without a name are z, of two of them the first is time.

Not covered: slides (`daskdmed.images.tiff.backend`), volumes stored in one page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.errors import (
    CorruptImageError,
    DaskdmedError,
    UnsupportedImageError,
    UsageError,
    listing,
)
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.protocols import Reader, VolumeInfo, VolumeOptions
from daskdmed.images.readers import BaseReader, level_infos
from daskdmed.images.source import Source, explain_os_error, fingerprint, open_source
from daskdmed.images.tiff import metadata, vendors
from daskdmed.images.tiff import series as arranging
from daskdmed.images.tiff.backend import looks_like_tiff
from daskdmed.images.tiff.channels import holds_labels
from daskdmed.images.tiff.decode import LevelPlan, Reading, read_level
from daskdmed.images.tiff.index import given_channels, make_plan, page_planes, with_pages
from daskdmed.images.tiff.some import read_some
from daskdmed.images.tiff.stack import axes_of_pages, page_of
from daskdmed.images.volumes.arrays import Layout, check_options, check_values, layout_by_names
from daskdmed.images.volumes.rawfile import RawArray

_NAMES = {"Z": "z", "T": "t", "C": "c", "S": "c", "Y": "y", "X": "x"}
#: tifffile's letters of axes that nobody named
_UNNAMED = "IQ"


class TiffVolumeBackend:
    """Opens multi-page TIFF files as volumes."""

    name = "tiff-volume"
    kind = "volume"
    priority = 40

    def accepts(self, uri: str) -> bool:
        return looks_like_tiff(uri)

    def open(self, uri: str) -> Reader:
        return self.open_volume(uri, VolumeOptions())

    def open_volume(self, uri: str, options: VolumeOptions) -> Reader:
        check_options(uri, options, "series", "time")
        source = open_source(uri)
        try:
            return TiffVolumeReader(uri, source, options)
        except BaseException as error:
            source.close()
            if isinstance(error, DaskdmedError) or not isinstance(error, Exception):
                raise
            raise explain_os_error(error, uri) from error

    def fingerprint(self, uri: str, options: VolumeOptions | None = None) -> str:
        return fingerprint(uri)


@dataclass(frozen=True, slots=True)
class _Level:
    """One level: a plan per plane, or an array that lies in the file in one piece."""

    layout: Layout
    tile: tuple[int, int, int]
    dtype: np.dtype[Any]
    plans: tuple[LevelPlan, ...] = ()
    raw: RawArray | None = None


@dataclass(frozen=True, slots=True)
class _Parsed:
    """What is kept of a file beside its bytes."""

    levels: list[_Level]
    voxel_size: tuple[float, float, float] | None
    kind: str
    is_labels: bool


class TiffVolumeReader(BaseReader):
    """An open stack. Thread-safe; holds a descriptor and plain arrays."""

    info: VolumeInfo

    def __init__(self, uri: str, source: Source, options: VolumeOptions) -> None:
        super().__init__(uri)
        self._source = source

        def parse(tif: Any) -> _Parsed:
            number, series = _chosen(uri, vendors.all_series(tif), options.series)
            vendors.check_readable(tif, series, uri)
            levels = [_level(uri, one, source, options.time) for one in series.levels]
            voxel_size = _voxel_size(tif, series, number)
            kind = str(series.kind or "generic")
            return _Parsed(levels, voxel_size, kind, holds_labels(series))

        parsed = with_pages(source, parse)
        levels = parsed.levels
        levels.sort(key=lambda level: -math.prod(level.layout.shape[:3]))
        first = levels[0]
        same = [
            level
            for level in levels
            if (level.layout.shape[3], level.dtype) == (first.layout.shape[3], first.dtype)
        ]
        self._levels = same
        check_values(uri, first.layout.stored, first.dtype)
        self.info = VolumeInfo(
            level_infos([level.layout.shape for level in same], [level.tile for level in same]),
            first.dtype.newbyteorder("=").name,
            (),
            vendor=f"tiff-{parsed.kind}",
            voxel_size=parsed.voxel_size,
            is_labels=parsed.is_labels,
            has_channels=first.layout.has_channels,
        )

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        stored = self._levels[level]
        if stored.raw is not None:
            layout = stored.layout
            stored.raw.read(layout.selection(region), layout.seen(out))
            return
        plane = Region(region.origin[1:], region.shape[1:])
        for number, z in enumerate(range(region.origin[0], region.stop[0])):
            read_level(stored.plans[z], self._job(level, z, tile_error), plane, out[number])

    def _read_channels(
        self,
        level: int,
        region: Region,
        channels: tuple[int, ...],
        out: Array,
        tile_error: OnTileError,
    ) -> None:
        stored = self._levels[level]
        if (raw := stored.raw) is not None:

            def read(layout: Layout, values: Array) -> None:
                raw.read(layout.selection(region), layout.seen(values))

            stored.layout.in_groups(channels, None, read, out)
            return
        plane = Region(region.origin[1:], region.shape[1:])
        for number, z in enumerate(range(region.origin[0], region.stop[0])):
            job = self._job(level, z, tile_error)
            read_some(stored.plans[z], channels, job, plane, out[number])

    def _job(self, level: int, z: int, tile_error: OnTileError) -> Reading:
        def fail(_: int, row: int, column: int, cause: Exception) -> None:
            self._failures(level, (z, row, column), cause, tile_error)

        return Reading(self._source, self.info.background_value, fail)

    def read_associated(self, name: str) -> Array:
        raise self._no_associated(name)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._source.close()


def _chosen(uri: str, series: Sequence[Any], wanted: str | None) -> tuple[int, Any]:
    """The stack that is meant, by number or name, or the only one."""
    if not series:
        raise UnsupportedImageError.of(uri, "the TIFF file holds no image")
    names = [vendors.name_of(one) for one in series]
    shown = listing(
        [
            f"{i} {n!r} {arranging.shown(one)}"
            for i, (n, one) in enumerate(zip(names, series, strict=True))
        ]
    )
    if wanted is None:
        if len(series) > 1:
            raise UsageError(
                f"{uri} holds {len(series)} images, which do not fit into one stack: {shown}; say "
                "which, series=0, or open a slide by open_slide"
            )
        return 0, series[0]
    found = [i for i, name in enumerate(names) if wanted in (name, str(i))]
    if not found:
        raise UsageError(f"{uri} has no series={wanted!r}; there are {shown}")
    return found[0], series[found[0]]


def _roles(uri: str, letters: str, extents: Sequence[int]) -> list[str]:
    """Names of axes, z where nobody named them; those of extent 1 are left nameless."""
    long = [i for i, extent in enumerate(extents) if extent > 1]
    unnamed = [i for i in long if letters[i] in _UNNAMED]
    named = {_NAMES.get(letters[i]) for i in long}
    free = [name for name in ("z", "t") if name not in named]
    if len(unnamed) > len(free):
        raise UnsupportedImageError.of(
            uri,
            f"axes {letters} of {tuple(extents)}: not all of them have a name; save it with"
            " axes named, as OME-TIFF",
        )
    given = dict(zip(reversed(unnamed), free, strict=False))
    return [
        given[i] if i in given else _NAMES.get(letters[i], letters[i]) if i in long else f"one {i}"
        for i in range(len(letters))
    ]


def _level(uri: str, level: Any, source: Source, time: int | str | None) -> _Level:
    letters, extents = axes_of_pages(level)
    if math.prod(extents) > len(level._pages) or _is_plain(level):
        return _in_one_piece(uri, level, source, time)
    names = _roles(uri, letters, extents)
    numbers = np.arange(math.prod(extents)).reshape(extents)
    first = page_planes(page_of(level, 0, source), source)
    height, width = first[0].height, first[0].width
    parts = sum(given_channels(plane.format) for plane in first)
    stored = (*extents, height, width, *((parts,) if parts > 1 else ()))
    layout = layout_by_names(uri, [*names, "y", "x", *(("c",) if parts > 1 else ())], stored, time)
    z_axis, _, _, c_axis = layout.axes
    plans = []
    for z in range(layout.shape[0]):
        at: list[int | slice] = list(layout.at[: len(extents)])
        if z_axis is not None:
            at[z_axis] = z
        if c_axis is not None and c_axis < len(extents):
            at[c_axis] = slice(None)
        pages = [page_of(level, int(n), source) for n in np.ravel(numbers[tuple(at)])]
        planes = [plane for page in pages for plane in page_planes(page, source)]
        plans.append(make_plan(planes, 0, (0,) * layout.shape[3], source))
        if plans[-1].shape != (height, width, layout.shape[3]):
            raise UnsupportedImageError.of(
                uri, f"its pages differ in size: {plans[-1].shape} and {(height, width)}"
            )
    return _Level(layout, (1, *plans[0].tile), plans[0].dtype, plans=tuple(plans))


def _is_plain(level: Any) -> bool:
    """Whether values lie in the file as they are, one plane behind the other."""
    keyframe = level.keyframe
    # alpha is blended away, and white may be 0
    shown = int(keyframe.photometric) in (1, 2) and keyframe.samplesperpixel in (1, 3)
    return shown and _is_raw(level)


def _is_raw(level: Any) -> bool:
    keyframe = level.keyframe
    whole = keyframe.bitspersample == 8 * level.dtype.itemsize
    return whole and keyframe.fillorder == keyframe.predictor == 1 and level.dataoffset is not None


def _in_one_piece(uri: str, level: Any, source: Source, time: int | str | None) -> _Level:
    """Planes behind one directory, as ImageJ writes them."""
    if not _is_raw(level):
        raise UnsupportedImageError.of(
            uri,
            f"{arranging.shown(level)} are behind {len(level._pages)} directories; save it with "
            "one directory per plane",
        )
    letters, shape = arranging.axes(level), arranging.extents(level)
    names, plane = _roles(uri, letters, shape), {"Y": "y", "X": "x"}
    names = [plane.get(letter, name) for letter, name in zip(letters, names, strict=True)]
    layout = layout_by_names(uri, names, shape, time)
    dtype = np.dtype(level.dtype).newbyteorder(level.keyframe.parent.byteorder)
    if not 0 < level.dataoffset < source.size:
        raise CorruptImageError.of(
            uri, f"its voxels begin at byte {level.dataoffset} of {source.size}; fetch it again"
        )
    raw = RawArray(source, level.dataoffset, shape, dtype)
    return _Level(layout, layout.row, dtype, raw=raw)


# -------------------------------------------------------------------- how large voxels are
def _voxel_size(tif: Any, series: Any, number: int) -> tuple[float, float, float] | None:
    """Millimeters along (z, y, x), None where one of them is not told."""
    steps: list[float | None] = []
    if tif.is_ome:
        pixels = _pixels(tif, series, number)
        if pixels is not None:
            steps = [metadata.physical_size(pixels.attrib, axis) for axis in "ZYX"]
    else:
        about = tif.imagej_metadata or {}
        unit = about.get("unit")
        z = metadata.size_of(about.get("spacing"), unit)
        steps = [z, *(metadata.size_from_tags(series.keyframe, axis, unit) for axis in "YX")]
    found = [abs(s) / 1000 for s in steps if s]
    return (found[0], found[1], found[2]) if len(found) == 3 else None


def _pixels(tif: Any, series: Any, number: int) -> Any | None:
    """The element of OME-XML that describes a series: of its number, or of its size."""
    root = vendors.xml_root(tif.ome_metadata or "")
    every = [] if root is None else list(vendors.named(root, "Pixels"))
    keyframe = series.keyframe
    size = str(keyframe.imagewidth), str(keyframe.imagelength)
    fits = [p for p in every if (p.attrib.get("SizeX"), p.attrib.get("SizeY")) == size]
    if number < len(every) and every[number] in fits:
        return every[number]
    return fits[0] if len(fits) == 1 else None
