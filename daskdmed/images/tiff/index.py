"""Parse a TIFF file once into plain arrays.

tifffile reads the directories and knows how vendors arrange pyramids; what is kept is
NumPy arrays of tile offsets and one decoder per level, so that nothing of tifffile (which
is not thread-safe) lives on.

Not covered: vendor metadata (`daskdmed.images.tiff.vendors`) and decoding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import tifffile

from daskdmed.core.errors import (
    CorruptImageError,
    DaskdmedError,
    ImageError,
    UnsupportedImageError,
)
from daskdmed.images.protocols import ChannelInfo, SlideOptions
from daskdmed.images.readers import Planes, say_choice
from daskdmed.images.refusals import FinalError
from daskdmed.images.source import Source
from daskdmed.images.tiff import channels as describing
from daskdmed.images.tiff import ifd, leica, metadata, stack, vendors
from daskdmed.images.tiff.codecs import PageFormat, has_alpha, make_decoder
from daskdmed.images.tiff.decode import Canvas, LevelPlan
from daskdmed.images.tiff.metadata import Metadata
from daskdmed.images.tiff.tables import LONG, SEEN, Numbers, PassingOver, Stretch, TileTable

_log = logging.getLogger("daskdmed.images")
_DIRECTORIES = "daskdmed_directories"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PageIndex:
    """Tiles of one directory, and what of its tags matters."""

    width: int
    height: int
    tile: tuple[int, int]
    grid: tuple[int, int]
    offsets: Numbers
    counts: Numbers
    format: PageFormat
    short_tiles: bool


@dataclass(slots=True)
class TiffIndex:
    """All that is kept of a TIFF file."""

    levels: list[LevelPlan | Canvas]
    dtype: np.dtype[np.generic]
    background: tuple[int, ...]
    metadata: Metadata
    associated: dict[str, LevelPlan] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    planes: Planes = field(default_factory=Planes)
    channels: tuple[ChannelInfo, ...] = ()
    is_labels: bool = False
    #: offset and size of the colour profile
    profile: tuple[int, int] | None = None


def parse(source: Source, options: SlideOptions) -> TiffIndex:
    """Read the structure of a TIFF file; a broken one is found before memory is spent on it."""
    return with_pages(source, lambda tif: _parse(tif, source, options))


def with_pages(source: Source, use: Callable[[Any], _T]) -> _T:
    """What is made of a file as tifffile has it; a broken one is found before memory is spent.

    Long lists of tiles are passed over, unless tifffile computes something from them.
    """
    with source.scanning():
        directories = {one.offset: one for one in ifd.walk(source)}
        try:
            with _opened(source, directories) as tif:
                return use(tif)
        except _ComputedError:
            for one in directories.values():
                one.lists.clear()
            with _opened(source, directories) as tif:
                return use(tif)


class _ComputedError(Exception):
    """Where tiles lie was computed from lists that were passed over."""


@contextmanager
def _opened(source: Source, directories: dict[int, ifd.IFD]) -> Iterator[Any]:
    handle = source.open_file()
    lists = [one for directory in directories.values() for one in directory.lists.values()]
    if lists:
        handle = PassingOver(handle, lists)
    try:
        with tifffile.TiffFile(handle, name=source.uri.rsplit("/", 1)[-1]) as tif:
            # what pages say of themselves: tifffile takes the first page's word for all of a series
            setattr(tif, _DIRECTORIES, directories)
            yield tif
    except (DaskdmedError, _ComputedError):
        raise
    except (MemoryError, RecursionError, Exception) as exc:
        raise CorruptImageError.of(
            source.uri,
            f"the TIFF structure cannot be parsed: {type(exc).__name__}: {exc}; "
            "the copy may be incomplete, fetch it again from where it came",
        ) from exc
    finally:
        handle.close()


def _parse(tif: Any, source: Source, options: SlideOptions) -> TiffIndex:
    series = vendors.all_series(tif)
    if not series:
        raise UnsupportedImageError.of(source.uri, "the TIFF file holds no image")
    scans = vendors.scans(series)
    main = vendors.main_series(source.uri, scans, metadata.ome_spacing(tif), options.image)
    vendors.check_readable(tif, main, source.uri)
    more = vendors.more_levels(main, series)
    planes = stack.choose(main, options.plane, source)
    stages = _ordered([_planes(level, source, planes.at) for level in (*main.levels, *more)])
    channels = sum(given_channels(p.format) for p in stages[0])
    dtype = np.dtype(stages[0][0].format.dtype)
    background = vendors.background(tif, channels, dtype, stages[0][0].format.photometric)
    levels: list[LevelPlan] = []
    for number, parts in enumerate(stages):
        plan = make_plan(parts, number, background, source)
        if number and (plan.shape[2] != levels[0].shape[2] or plan.dtype != levels[0].dtype):
            _log.info("%s: level %d has other channels and is left out", source.uri, number)
            continue
        if main.kind == "svs" and levels:
            plan = replace(plan, finer=levels[-1])
        levels.append(plan)
    about = metadata.describe(tif, main)
    final: list[LevelPlan | Canvas] = [replace(p, level=i) for i, p in enumerate(levels)]
    others = [s for s in scans if s is not main and not any(lv in more for lv in s.levels)]
    if main.kind == "scn":
        final = _compose(tif, main, levels, about, source, planes)
    elif not options.image:
        say_choice(source.uri, vendors.name_of(main), [vendors.name_of(s) for s in others])
    names = tuple(vendors.name_of(s) for s in scans) if others else ()
    index = TiffIndex(
        final,
        dtype,
        background,
        about,
        images=names,
        planes=planes,
        channels=describing.describe(tif, main, channels),
        is_labels=describing.holds_labels(main),
        profile=describing.profile_place(main),
    )
    for name, page in vendors.associated_pages(tif, main, series).items():
        _add_associated(index, name, page, source)
    return index


def _compose(
    tif: Any,
    main: Any,
    levels: list[LevelPlan],
    about: Metadata,
    source: Source,
    planes: Planes,
) -> list[LevelPlan | Canvas]:
    """Place the scanned areas of a Leica slide in the frame of the whole slide."""
    canvas = leica.slide_layout(tif, main, source.uri)
    about.properties.update(canvas.properties)
    areas: list[list[LevelPlan]] = []
    for area in canvas.areas:
        own = levels
        if area.series is not main:
            stages = _ordered([_planes(one, source, planes.at) for one in area.series.levels])
            own = [
                make_plan(s, i, (255,) * levels[0].shape[2], source) for i, s in enumerate(stages)
            ]
        areas.append(own)
    composed: list[LevelPlan | Canvas] = []
    for number, plan in enumerate(levels):
        scale = levels[0].shape[1] / plan.shape[1], levels[0].shape[0] / plan.shape[0]
        height, width = canvas.size_at(scale)
        parts = tuple(
            (area.origin_at(scale), replace(own[number], level=number))
            for area, own in zip(canvas.areas, areas, strict=True)
        )
        if len(parts) == 1 and parts[0][0] == (0, 0) and plan.shape[:2] == (height, width):
            composed.append(replace(plan, level=number))
        else:
            shape = (height, width, plan.shape[2])
            composed.append(Canvas(number, shape, plan.tile, plan.dtype, parts))
    return composed


def _add_associated(index: TiffIndex, name: str, page: Any, source: Source) -> None:
    try:
        planes = page_planes(page, source)
        white = (255,) * max(3, given_channels(planes[0].format))
        index.associated[name] = make_plan(planes, -1, white, source)
    except (ImageError, ValueError) as exc:
        # a label that cannot be read is no reason to refuse the slide
        _log.warning("%s: associated image %r is left out: %s", source.uri, name, exc)


def _ordered(stages: list[list[PageIndex]]) -> list[list[PageIndex]]:
    """Largest first; of two levels of one size the first."""
    seen: set[tuple[int, int]] = set()
    kept = []
    for planes in sorted(stages, key=lambda p: -p[0].width * p[0].height):
        size = planes[0].height, planes[0].width
        if size not in seen:
            seen.add(size)
            kept.append(planes)
    return kept


def _planes(level: Any, source: Source, at: Mapping[str, int]) -> list[PageIndex]:
    """The channels of one plane of a level."""
    pages = stack.pages_of(level, at, source)
    depth = at.get("z", 0) if int(level.keyframe.imagedepth) > 1 else None
    return [plane for page in pages for plane in page_planes(page, source, depth)]


def page_planes(page: Any, source: Source, depth: int | None = None) -> list[PageIndex]:
    """One index per separately stored plane of a page; `depth` is which of the focal planes that
    lie in it (Ventana's, for one) is meant."""
    key = page.keyframe
    _check_page(page, source)
    within = int(key.imagedepth)
    deep = within != 1 and (depth is None or not key.is_tiled)
    if deep or (key.is_tiled and key.tiledepth != 1):
        raise UnsupportedImageError.of(
            source.uri, "the tiff backend does not read volumes stored in one page"
        )
    fmt = page_format(page)
    height, width = int(key.imagelength), int(key.imagewidth)
    if key.is_tiled:
        tile = int(key.tilelength), int(key.tilewidth)
    else:
        tile = max(1, int(key.rowsperstrip)), width
    if getattr(key, "jpegheader", None) is not None:
        tile = int(key.tilelength), int(key.tilewidth)
    # vendors pad: the grid follows the stored size, the extent may be smaller
    stored_h, stored_w = (key.tags.valueof(code) or 0 for code in (257, 256))
    grid = -(-max(height, int(stored_h)) // tile[0]), -(-max(width, int(stored_w)) // tile[1])
    planes = key.samplesperpixel if fmt.planar else 1
    offsets, counts = _lists(page)
    area = grid[0] * grid[1]
    number = planes * within * area
    if not (depth or 0) < within:
        raise CorruptImageError.of(
            source.uri, f"a level has no focal plane {depth}; fetch it again"
        )
    listed = len(page.dataoffsets), len(page.databytecounts)
    if min(listed) < number:
        raise CorruptImageError.of(
            source.uri,
            f"an image of {width} x {height} pixels has {number} tiles of "
            f"{tile[1]} x {tile[0]}, but {listed[0]} offsets and {listed[1]} sizes are "
            "listed; fetch the file again",
        )
    short = not key.is_tiled and getattr(key, "jpegheader", None) is None
    rows = tile[0]
    if short and grid == (1, 1) and (fmt.compression, fmt.predictor, fmt.fillorder) == (1, 1, 1):
        rows = min(rows, ifd.VIRTUAL_ROWS)  # a single strip of raw pixels is read in parts
    nbytes = rows * tile[1] * fmt.samples * max(1, fmt.bits // 8)
    if nbytes > ifd.MAX_SEGMENT_BYTES:
        raise CorruptImageError.of(
            source.uri,
            f"tiles of {tile[1]} x {tile[0]} pixels exceed the limit of "
            f"{ifd.MAX_SEGMENT_BYTES} bytes",
        )
    return [
        PageIndex(
            width, height, tile, grid, _part(offsets, i, area), _part(counts, i, area), fmt, short
        )
        for i in range((depth or 0) * area, number, within * area)
    ]


def _lists(page: Any) -> tuple[Numbers, Numbers]:
    """Offsets and sizes of a page's tiles: those that were passed over are still in the file."""
    directories: dict[int, ifd.IFD] = getattr(page.parent, _DIRECTORIES, {})
    own, every = directories.get(page.offset), directories.values()
    passed_over = own.lists if own else {}

    def numbers(tag: int, values: Sequence[int]) -> Numbers:
        stretch = passed_over.get(tag)
        if stretch and stretch.count == len(values) and _is_as_read(page, tag, values):
            return stretch
        if page.keyframe.is_tiled and len(values) > LONG and any(one.lists for one in every):
            raise _ComputedError
        return np.fromiter(values, np.int64, len(values))

    return numbers(ifd.TILE_OFFSETS, page.dataoffsets), numbers(
        ifd.TILE_COUNTS, page.databytecounts
    )


def _is_as_read(page: Any, tag: int, values: Sequence[int]) -> bool:
    """Whether tifffile has made nothing of a list that was passed over."""
    if hasattr(page, "tags"):
        return values is page.tags.valueof(tag)
    return not any(values[SEEN:])


def _part(numbers: Numbers, first: int, count: int) -> Numbers:
    if isinstance(numbers, Stretch):
        return numbers.part(first, count)
    return numbers[first : first + count]


def page_format(page: Any) -> PageFormat:
    """The tags that decide how a page's tiles are decoded."""
    key = page.keyframe
    bits = key.bitspersample
    return PageFormat(
        compression=int(key.compression),
        photometric=int(key.photometric),
        planar=int(key.planarconfig) == 2 and int(key.samplesperpixel) > 1,
        samples=int(key.samplesperpixel),
        extrasamples=tuple(int(e) for e in key.extrasamples),
        dtype=_dtype_name(key),
        bits=bits if isinstance(bits, int) else 0,
        predictor=int(key.predictor),
        fillorder=int(key.fillorder),
        byteorder=key.parent.byteorder,
        tables=page.jpegtables,
        header=getattr(page, "jpegheader", None),
        writer="svs" if key.parent.is_svs else "ome" if key.parent.is_ome else "",
    )


def _dtype_name(page: Any) -> str:
    """Of the samples that are given; those of one bit become bytes."""
    if page.dtype is None:
        return ""
    return "uint8" if page.bitspersample == 1 else np.dtype(page.dtype).name


def given_channels(fmt: PageFormat) -> int:
    """Channels given out for one page (alpha is blended away)."""
    if fmt.planar:
        return 1
    return fmt.samples - 1 if has_alpha(fmt) and fmt.samples in (2, 4) else fmt.samples


def _check_page(page: Any, source: Source) -> None:
    """Refuse a page that is stored otherwise than the first of its series, as which it would be
    decoded."""
    key = page.keyframe
    directories: dict[int, ifd.IFD] = getattr(page.parent, _DIRECTORIES, {})
    own, first = (directories.get(p.offset) for p in (page, key))
    if page is not key and own and first and own.layout != first.layout:
        raise _differ(source)


def _differ(source: Source) -> FinalError:
    what = "the pages of the image differ in size or encoding; save it with pages that are alike"
    return FinalError.of(source.uri, what)


def make_plan(
    planes: list[PageIndex], level: int, background: tuple[int, ...], source: Source
) -> LevelPlan:
    """Join the planes of a level, which must not differ in extent or format."""
    first = planes[0]
    # one decoder does for all of them
    kinds = {(p.width, p.height, p.tile, replace(p.format, header=None)) for p in planes}
    if len(kinds) > 1:
        raise _differ(source)
    decoder = make_decoder(first.format, background, source.uri)
    dtype = np.dtype(first.format.dtype)
    tile, grid = first.tile, first.grid
    tiles = TileTable([p.offsets for p in planes], [p.counts for p in planes])
    if first.short_tiles and decoder.raw and grid == (1, 1) and tile[0] > ifd.VIRTUAL_ROWS:
        tile, grid = (ifd.VIRTUAL_ROWS, first.width), (-(-first.height // ifd.VIRTUAL_ROWS), 1)
        tiles = _cut_strips(planes, first.width * decoder.stored * dtype.itemsize)
    return LevelPlan(
        level=level,
        shape=(first.height, first.width, decoder.given * len(planes)),
        tile=tile,
        grid=grid,
        tiles=tiles,
        decoder=decoder,
        dtype=dtype,
        short_tiles=first.short_tiles,
    )


def _cut_strips(planes: Sequence[PageIndex], line: int) -> TileTable:
    """Single long uncompressed strips as several shorter ones; `line` is the bytes of a row."""
    height = planes[0].height
    first = np.arange(0, height, ifd.VIRTUAL_ROWS, dtype=np.int64)
    whole = np.minimum(ifd.VIRTUAL_ROWS, height - first) * line
    offsets, counts = [], []
    for plane in planes:
        at, count = (int(np.asarray(numbers)[0]) for numbers in (plane.offsets, plane.counts))
        offsets.append(at + first * line if at > 0 else np.zeros_like(first))
        # a strip that is too short stays too short, which its decoder reports
        parts = np.maximum(1, np.minimum(whole, np.maximum(0, count - first * line)))
        counts.append(parts if count > 0 else np.zeros_like(first))
    return TileTable(offsets, counts)
