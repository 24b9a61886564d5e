"""The hot path: a region of a level, each storage tile decoded once into the output.

Everything that can be known beforehand is in `LevelPlan`; per tile remain slicing the bytes,
the decoder, and at most one copy. No lock, no file position, no object per tile.

Not covered: how a tile's bytes become pixels (`daskdmed.images.tiff.codecs`), how they are
read (`daskdmed.images.tiff.fetch`), and where they lie (`daskdmed.images.tiff.tables`).
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.resample import resample_region
from daskdmed.images.source import Source
from daskdmed.images.tiff.codecs import Decoder
from daskdmed.images.tiff.fetch import DecodeError, fetch_rows
from daskdmed.images.tiff.jpeg import Many, Part
from daskdmed.images.tiff.many import AT_ONCE, Parts, decode_groups
from daskdmed.images.tiff.tables import TileTable
from daskdmed.images.turbojpeg import WORTH_PART, Stored, Wanted

#: tiles decoded before they are copied to the output together
GROUP = 4
#: bytes over which the output extends from which tiles are decoded to their place at once:
#: libjpeg-turbo writes there past the cache, which pays only when the output would not have stayed
#: in it. Of a part of a larger array the whole width counts: few tiles of many
IN_PLACE = 2 * 2**20
#: scratch arrays up to this size stay with their thread
_KEPT_SCRATCH = 16 * 2**20

#: called with (level, row, column, cause) for a tile that cannot be decoded; returns to
#: have the background painted, or raises
OnFailure = Callable[[int, int, int, Exception], None]
Piece = tuple[int, int, int, int]


@dataclass(slots=True)
class TileCount:
    """Storage tiles decoded in this process while `count_tiles` was active."""

    tiles: int = 0
    by_level: Counter[int] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, level: int, tiles: int) -> None:
        with self._lock:
            self.tiles += tiles
            self.by_level[level] += tiles


_counters: tuple[TileCount, ...] = ()
_counters_lock = threading.Lock()
_local = threading.local()


@contextmanager
def count_tiles() -> Iterator[TileCount]:
    """Count the storage tiles that this process decodes, in all threads. Missing tiles are not
    decoded, so not counted."""
    global _counters
    count = TileCount()
    with _counters_lock:
        _counters = (*_counters, count)
    try:
        yield count
    finally:
        with _counters_lock:
            _counters = tuple(c for c in _counters if c is not count)


def count_decoded(level: int, tiles: int) -> None:
    """Tell those who count."""
    for counter in _counters:
        counter.add(level, tiles)


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """Where the tiles of one level lie and how they are decoded.

    `shape` is (height, width, channels), `tile` (height, width) of a storage tile, `grid` (rows,
    columns) of tiles, which `tiles` has row by row. With `short_tiles` the last row of tiles holds
    only the rows that are left (strips).
    """

    level: int
    shape: tuple[int, int, int]
    tile: tuple[int, int]
    grid: tuple[int, int]
    tiles: TileTable
    decoder: Decoder
    dtype: np.dtype[np.generic]
    short_tiles: bool = False
    #: what tiles without data are rendered from, where such stand for more than background
    finer: LevelPlan | None = None

    def stored_rows(self, row: int) -> int:
        """Pixel rows that the tiles of a tile row hold."""
        if not self.short_tiles:
            return self.tile[0]
        return min(self.tile[0], self.shape[0] - row * self.tile[0])


@dataclass(frozen=True, slots=True)
class Canvas:
    """A level composed of separately scanned areas on a background: ((y, x), plan) of each at its
    place."""

    level: int
    shape: tuple[int, int, int]
    tile: tuple[int, int]
    dtype: np.dtype[np.generic]
    parts: tuple[tuple[tuple[int, int], LevelPlan], ...]
    short_tiles: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """From which file, over what, and who is told of tiles that cannot be decoded."""

    source: Source
    background: Array
    fail: OnFailure


def read_level(plan: LevelPlan | Canvas, job: Reading, region: Region, out: Array) -> None:
    """Fill `out` with a region of a level; see `read_region`."""
    if isinstance(plan, LevelPlan):
        read_region(plan, job, region, out)
        if plan.finer is not None and _has_missing(plan, job.source, region):
            _render_missing(plan, plan.finer, job, region, out)
        return
    out[...] = job.background
    for corner, part in plan.parts:
        inside = Region(corner, part.shape[:2]).intersect(region)
        if inside.size:
            target = out[inside.local_to(region).slices]
            read_region(part, job, inside.shift((-corner[0], -corner[1])), target)


def _has_missing(plan: LevelPlan, source: Source, region: Region) -> bool:
    """Whether a tile of a region is without data."""
    cells = region.cells(plan.tile)
    for plane in range(len(plan.tiles)):
        for numbers in plan.tiles.plane(plane, source):
            if not numbers[: plan.grid[0] * plan.grid[1]].reshape(plan.grid)[cells.slices].all():
                return True
    return False


def _render_missing(
    plan: LevelPlan, finer: LevelPlan, job: Reading, region: Region, out: Array
) -> None:
    """Tiles without data from the finer level, as OpenSlide does it.

    Aperio writes none at the edges of lower levels, where the finer one may have tissue.
    """

    def read(part: Region) -> Array:
        values = np.empty((*part.shape, finer.shape[2]), finer.dtype)
        read_level(finer, job, part, values)
        return values

    extent = finer.shape[:2]
    scale = [n / m for n, m in zip(extent, plan.shape, strict=False)]
    for box in region.tiles(plan.tile):
        row, column = box.cells(plan.tile).origin
        at = row * plan.grid[1] + column
        if not plan.tiles.has(at, job.source):
            target = out[box.local_to(region).slices]
            resample_region(box, scale, extent, finer.tile[0], read, target)


def read_region(plan: LevelPlan, job: Reading, region: Region, out: Array) -> None:
    """Fill `out`, (height, width, channels) of any strides, with a region inside the level.

    Missing tiles and those that `fail` was told of become the background (channels,).
    """
    (top, left), (bottom, right) = region.origin, region.stop
    if bottom <= top or right <= left:
        return
    tile_h, tile_w = plan.tile
    rows = range(top // tile_h, (bottom - 1) // tile_h + 1)
    first, last = left // tile_w, (right - 1) // tile_w
    pieces = _columns(first, last, tile_w, left, right)
    todo: list[_Row] = []
    places: list[tuple[list[int], list[int]]] = []
    for plane in range(len(plan.tiles)):
        table = plan.tiles.plane(plane, job.source)
        given = plan.decoder.given
        channels = slice(plane * given, (plane + 1) * given)
        target = out if given == out.shape[2] else out[:, :, channels]
        in_place = rows_apart(target) and len(target) * target.strides[0] >= IN_PLACE
        for row in rows:
            y0, y1 = max(row * tile_h, top), min((row + 1) * tile_h, bottom)
            stored, band = plan.stored_rows(row), (y0 - row * tile_h, y1 - row * tile_h)
            begin = row * plan.grid[1] + first
            run = slice(begin, begin + len(pieces))
            offsets, counts = table[0][run].tolist(), table[1][run].tolist()
            if plan.decoder.raw:
                _skip_rows(plan, offsets, counts, stored, band)
                stored, band = y1 - y0, (0, y1 - y0)
            ground = job.background[channels]
            lines = y0 - top, y1 - top
            todo.append(
                _Row(plan, row, first, stored, band, ground, job.fail, target, lines, in_place)
            )
            places.append((offsets, counts))
    limit, many = plan_limit(plan), plan.decoder.many
    if many is None or not rows_apart(out):
        for one, parts in zip(todo, fetch_rows(job.source, places, limit), strict=True):
            _read_row(one, parts, pieces, [False] * len(pieces))
        return
    groups = _alike(todo, max(1, AT_ONCE // len(pieces)))
    decode = functools.partial(_decode_many, many, groups, pieces)
    spots = iter(places)
    found = decode_groups(
        job.source, [list(itertools.islice(spots, len(g))) for g in groups], limit, decode
    )
    for group, some in zip(groups, found, strict=True):
        for one, (parts, done) in zip(group, some, strict=True):
            _read_row(one, parts, pieces, done)


def _columns(first: int, last: int, tile_w: int, left: int, right: int) -> list[Piece]:
    """Per tile column: begin and end in the tile, begin and end in the output."""
    pieces = []
    for column in range(first, last + 1):
        x0, x1 = max(column * tile_w, left), min((column + 1) * tile_w, right)
        pieces.append((x0 - column * tile_w, x1 - column * tile_w, x0 - left, x1 - left))
    return pieces


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of tiles that is being read: `band` are its pixel rows that are wanted, `lines` those
    of the `output` where they go (first, one past the last), `in_place` at once."""

    plan: LevelPlan
    row: int
    first: int
    stored: int
    band: tuple[int, int]
    ground: Array
    fail: OnFailure
    output: Array
    lines: tuple[int, int]
    in_place: bool

    @property
    def target(self) -> Array:
        """Where its pixels go."""
        return self.output[slice(*self.lines)]


def _alike(rows: list[_Row], most: int) -> list[list[_Row]]:
    """At most so many rows at a time, of tiles of one height."""
    groups = []
    for _, some in itertools.groupby(rows, lambda one: one.stored):
        while group := list(itertools.islice(some, most)):
            groups.append(group)
    return groups


def _read_row(job: _Row, parts: Parts, pieces: list[Piece], done: list[bool]) -> None:
    """The tiles of a row but for those that are done."""
    if all(done):
        count_decoded(job.plan.level, len(done))
        return
    decoder, target = job.plan.decoder, job.target
    if job.in_place and decoder.convert is None and not any(done):
        done = _decode_in_place(job, parts, pieces, target)
    if decoder.part is not None and decoder.convert is None and not all(done):
        _decode_parts(job, decoder.part, parts, pieces, target, done)
    if all(done):
        decoded = len(pieces)
    elif decoder.grouped and decoder.convert is None and len(pieces) > 1:
        decoded = _decode_grouped(job, parts, pieces, target, done)
    else:
        decoded = _decode_singly(job, parts, pieces, target)
    count_decoded(job.plan.level, decoded)


def _decode_singly(job: _Row, parts: Parts, pieces: list[Piece], target: Array) -> int:
    """Tile by tile; the number of tiles decoded."""
    decoder, tile_w, (ty0, ty1) = job.plan.decoder, job.plan.tile[1], job.band
    direct = decoder.direct and decoder.convert is None and ty1 - ty0 == job.stored
    scratch = scratch_tiles((1, job.stored, tile_w, decoder.stored), job.plan.dtype)[0]
    decoded = 0
    for index, (data, (tx0, tx1, x0, x1)) in enumerate(zip(parts, pieces, strict=True)):
        destination = target[:, x0:x1]
        if data is None:
            destination[...] = job.ground
            continue
        decoded += 1
        whole = direct and tx1 - tx0 == tile_w and destination.flags.c_contiguous
        space = destination if whole else scratch
        try:
            if isinstance(data, Exception):
                raise data
            tile = decoder.decode(data, space)
            if tile is destination:
                continue
            if decoder.convert is not None:
                tile = decoder.convert(tile)
            check_extent(job.plan, tile, ty1, tx1, job.stored)
        except Exception as exc:
            job.fail(job.plan.level, job.row, job.first + index, exc)
            destination[...] = job.ground
            continue
        destination[...] = tile[ty0:ty1, tx0:tx1]
    return decoded


def rows_apart(out: Array) -> bool:
    """Whether only the distance between rows is free, as TurboJPEG wants it."""
    return (
        out.flags.writeable
        and out.dtype == np.uint8
        and out.shape[-1] == 3
        and out.strides[-2:] == (3, 1)
        and out.strides[-3] >= 3 * out.shape[-2]
    )


def _decode_many(
    many: Many, groups: list[list[_Row]], pieces: list[Piece], number: int, tiles: Parts | Stored
) -> list[bool]:
    """All tiles of a group of rows in one call, each as far as it is wanted; which were decoded."""
    group = groups[number]
    job, begin = group[0], group[0].lines[0]
    pitch = job.output.strides[0]
    places = tuple((one.band, (one.lines[0] - begin) * pitch) for one in group)
    shape = (1, job.stored, job.plan.tile[1], job.plan.decoder.stored)
    scratch = scratch_tiles(shape, job.plan.dtype)[0]
    wanted = _wanted_of(tuple(pieces), places)
    return many(tiles, wanted, scratch, job.output[begin:], job.in_place)


@functools.lru_cache(maxsize=64)
def _wanted_of(
    pieces: tuple[Piece, ...], places: tuple[tuple[tuple[int, int], int], ...]
) -> Wanted:
    """What is wanted of some rows of tiles, each of which goes so many bytes behind the first; the
    same for most rows of a region."""
    bands = np.repeat(np.array([(*band, at) for band, at in places], np.int64), len(pieces), axis=0)
    top, bottom, begin = bands.T
    left, right, x, _ = np.tile(np.array(pieces, np.int64), (len(places), 1)).T
    return Wanted(
        np.stack([top, bottom, left, right], axis=1).astype(np.int32),
        np.arange(1, len(top) + 1, dtype=np.int32),
        np.stack([begin + 3 * x, top, left, bottom, right], axis=1),
    )


def _decode_in_place(job: _Row, parts: Parts, pieces: list[Piece], target: Array) -> list[bool]:
    """Tiles that are wanted whole to their places; which of all tiles were decoded."""
    paint, tile_w = job.plan.decoder.paint, job.plan.tile[1]
    if paint is None or job.band != (0, job.stored):
        return [False] * len(pieces)
    corner, pitch = target.__array_interface__["data"][0], target.strides[0]
    return [
        isinstance(data, bytes)
        and x1 - x0 == tile_w
        and paint(data, corner + 3 * x0, pitch, job.stored, tile_w)
        for data, (_, _, x0, x1) in zip(parts, pieces, strict=True)
    ]


def _decode_parts(
    job: _Row, part: Part, parts: Parts, pieces: list[Piece], target: Array, done: list[bool]
) -> None:
    """Tiles of which enough is not wanted, as far as that; notes which were `done`."""
    tile_w, rows = job.plan.tile[1], job.band[1] - job.band[0]
    widest = WORTH_PART * job.stored * tile_w / max(rows, 1)
    scratch: Array | None = None
    for index, (data, (tx0, tx1, x0, x1)) in enumerate(zip(parts, pieces, strict=True)):
        if tx1 - tx0 > widest or done[index] or not isinstance(data, bytes):
            continue
        if scratch is None:
            scratch = scratch_tiles(
                (1, job.stored, tile_w, job.plan.decoder.stored), job.plan.dtype
            )[0]
        found = part(data, scratch, job.band, (tx0, tx1))
        if found is not None:
            target[:, x0:x1] = found
            done[index] = True


def _decode_grouped(
    job: _Row, parts: Parts, pieces: list[Piece], target: Array, done: list[bool]
) -> int:
    """Some tiles at a time, then one copy with long runs of memory for all of them; those that are
    done already are only counted."""
    decode, tile_w, (ty0, ty1) = job.plan.decoder.decode, job.plan.tile[1], job.band
    slots = scratch_tiles((GROUP, job.stored, tile_w, job.plan.decoder.stored), job.plan.dtype)
    rows, channels = ty1 - ty0, slots.shape[3]
    decoded = sum(done)
    for begin in range(0, len(pieces), GROUP):
        group, skip = pieces[begin : begin + GROUP], done[begin : begin + GROUP]
        if all(skip):
            continue
        for index, (_, tx1, _, _) in enumerate(group, begin):
            if done[index]:
                continue
            data, slot = parts[index], slots[index - begin]
            if data is None:
                slot[...] = job.ground
                continue
            decoded += 1
            try:
                if isinstance(data, Exception):
                    raise data
                tile = decode(data, slot)
                if tile is not slot:
                    check_extent(job.plan, tile, ty1, tx1, job.stored)
                    slot[: tile.shape[0], : tile.shape[1]] = tile
            except Exception as exc:
                job.fail(job.plan.level, job.row, job.first + index, exc)
                slot[...] = job.ground
        x0, x1 = group[0][2], group[-1][3]
        if x1 - x0 == len(group) * tile_w and not any(skip):
            # splitting an axis always gives a view, whatever the strides of `target`
            wide = target[:, x0:x1].reshape(rows, len(group), tile_w, channels)
            np.copyto(wide, slots[: len(group), ty0:ty1].transpose(1, 0, 2, 3))
        else:
            for slot, (tx0, tx1, x0, x1), painted in zip(slots, group, skip, strict=False):
                if not painted:
                    target[:, x0:x1] = slot[ty0:ty1, tx0:tx1]
    return decoded


def check_extent(plan: LevelPlan, tile: Array, rows: int, columns: int, stored: int) -> None:
    """DecodeError for a tile of other samples, or that lacks pixels which are needed of it."""
    if tile.shape[2] != plan.decoder.given:
        raise DecodeError(
            f"the tile decodes to {tile.shape[2]} samples, expected {plan.decoder.given}"
        )
    if tile.shape[0] < rows or tile.shape[1] < columns:
        raise DecodeError(
            f"the tile decodes to {tile.shape[1]} x {tile.shape[0]} pixels, "
            f"expected {plan.tile[1]} x {stored}"
        )


def plan_limit(plan: LevelPlan) -> int:
    """Most bytes that one encoded tile can sensibly have."""
    plain = plan.tile[0] * plan.tile[1] * plan.decoder.stored * plan.dtype.itemsize
    return 4 * plain + 65536


def _skip_rows(
    plan: LevelPlan, offsets: list[int], counts: list[int], stored: int, band: tuple[int, int]
) -> None:
    """Narrow uncompressed tiles to the pixel rows that are needed."""
    line = plan.tile[1] * plan.decoder.stored * plan.dtype.itemsize
    for i, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        if offset and count >= stored * line:
            offsets[i] = offset + band[0] * line
            counts[i] = (band[1] - band[0]) * line
        elif offset and count:
            # too short: left to the decoder to refuse, whatever rows are asked for
            counts[i] = 1


def scratch_tiles(shape: tuple[int, int, int, int], dtype: np.dtype[np.generic]) -> Array:
    """Scratch tiles of the calling thread: (tiles, rows, width, samples)."""
    kept: dict[object, Array] | None = getattr(_local, "scratch", None)
    if kept is None:
        kept = _local.scratch = {}
    key = (shape, dtype.char)
    found = kept.get(key)
    if found is None:
        found = _misaligned(shape, dtype)
        if found.nbytes <= _KEPT_SCRATCH:
            if len(kept) >= 4:
                kept.clear()
            kept[key] = found
    return found


def _misaligned(shape: tuple[int, int, int, int], dtype: np.dtype[np.generic]) -> Array:
    """An array that begins 8 bytes behind a cache line: libjpeg-turbo writes past the cache when
    rows are aligned to 16 or 32 bytes, after which clearing and copying the tile costs more than
    half of the decoding again."""
    count = shape[0] * shape[1] * shape[2] * shape[3] * dtype.itemsize
    memory = np.empty(count + 128, np.uint8)
    start = (-memory.ctypes.data) % 64 + 8
    return memory[start : start + count].view(dtype).reshape(shape)
