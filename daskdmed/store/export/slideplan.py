"""What the conversion of a slide writes: levels, chunks, shards, and the blocks of work.

Pure arithmetic on a slide's facts; nothing here reads or writes. The plan depends on the
slide and the arguments alone, never on the machine, so that a run resumed elsewhere finds
the same blocks.

Not covered: doing it (`daskdmed.store.export.slides`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from daskdmed.core.errors import GeometryError, ResolutionError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import OnTileError
from daskdmed.images.ngff.metadata import LevelPlace
from daskdmed.store.ngff.pyramid import level_factors

if TYPE_CHECKING:
    from daskdmed.images.slide import Slide
    from daskdmed.images.view import SlideView

Pyramid = Literal["auto", "copy", "build", "none"]
_PYRAMIDS: tuple[Pyramid, ...] = ("auto", "copy", "build", "none")
Extent = int | Sequence[int] | None
#: levels are built until no axis is longer
SMALLEST_LEVEL = 1024
#: pixels along an axis, and bytes, that a shard aims at
_SIDE, _BYTES = 4096, 64 * 2**20
#: pixels along an axis that a block of work has at least, of smaller shards or chunks
_BLOCK_SIDE = 1024
#: a block may take this much more to begin and end on whole storage tiles
_STRETCH = 4
#: storage tiles that make good chunks
_TILES = range(64, 1025)
_DEFAULT_CHUNK = 256
#: smaller chunks drown in their index; larger blocks, held by every thread, in memory
_SMALLEST_CHUNK, _LARGEST_BLOCK = 16, 2**31


@dataclass(frozen=True)
class PlannedLevel:
    """One level of the store that is written, (channels, height, width).

    `chunks` is what is decoded at once, `shards` what is one object (None when chunks are), `block`
    (height, width) of a block of work: whole shards. A level without `view` is built from the one
    before, `factor` times smaller.
    """

    place: LevelPlace
    shape: tuple[int, int, int]
    chunks: tuple[int, int, int]
    shards: tuple[int, int, int] | None
    block: tuple[int, int]
    view: SlideView | None
    factor: int = 1

    @property
    def blocks(self) -> int:
        return Region.of(self.shape[1:]).cells(self.block).size

    def regions(self) -> Iterator[Region]:
        """The blocks (c, y, x), in C order."""
        return Region.of(self.shape).tiles((self.shape[0], *self.block))

    def to_json(self) -> dict[str, Any]:
        """What the store's bytes depend on."""
        return {
            "shape": list(self.shape),
            "chunks": list(self.chunks),
            "shards": None if self.shards is None else list(self.shards),
            "block": list(self.block),
            "from": "built" if self.view is None else self.view.token,
        }


def plan_levels(
    slide: Slide,
    level: int | None,
    mpp: float | tuple[float, float] | None,
    pyramid: Pyramid,
    chunks: Extent,
    shards: Extent | bool,
    sharded: bool,
    tile_error: OnTileError,
) -> list[PlannedLevel]:
    """The levels to be written, largest first; arguments as of `daskdmed.store.slide_to_ome_zarr`,
    and whether the format has shards."""
    if pyramid not in _PYRAMIDS:
        raise UsageError(f"pyramid must be one of {_PYRAMIDS}, got {pyramid!r}")
    if level is not None and mpp is not None:
        raise ResolutionError("level and mpp exclude each other; give one")
    if mpp is not None and pyramid == "copy":
        raise UsageError(
            f"mpp={mpp} lies between the slide's levels, which cannot be copied then; "
            "pyramid='auto' or 'build' builds coarser ones"
        )
    if shards and not sharded:
        raise UsageError(
            "OME-Zarr 0.4 is Zarr v2, which has no shards; take version='0.5', or leave shards away"
        )
    if mpp is not None:
        views = [slide.view(mpp=mpp, tile_error=tile_error)]
    else:
        first = slide.view(level=level or 0, tile_error=tile_error).level
        copied = range(first, slide.level_count)
        if pyramid in ("build", "none"):
            copied = range(first, first + 1)
        views = [slide.view(level=number, tile_error=tile_error) for number in copied]
    if shards is None or isinstance(shards, bool):
        own, sharded = None, sharded and shards is not False
    else:
        own = _pair(shards, "shards")
    # stains are read one by one, colours together
    together = slide.levels[0].shape[-1] if slide.info.is_rgb else 1
    asked = _Asked(_pair(chunks, "chunks"), own, sharded, together)
    levels = [_copied(number, view, asked, slide) for number, view in enumerate(views)]
    if pyramid in ("auto", "build"):
        factors = level_factors(levels[-1].shape[1:], 2, SMALLEST_LEVEL)
        for _ in factors:
            levels.append(_built(len(levels), levels[-1], asked, views[0].dtype.itemsize))
    return levels


@dataclass(frozen=True)
class _Asked:
    """Chunks and shards as the user wants them, None for what is good; and how many channels lie in
    a chunk."""

    chunks: tuple[int, int] | None
    shards: tuple[int, int] | None
    sharded: bool
    together: int


def _copied(number: int, view: SlideView, asked: _Asked, slide: Slide) -> PlannedLevel:
    down = view.downsample
    x, y = slide.mpp or (1.0, 1.0)
    place = LevelPlace(
        str(number),
        (1.0, down[0] * y, down[1] * x),
        (0.0, (down[0] - 1) / 2 * y, (down[1] - 1) / 2 * x),
    )
    height, width, channels = view.shape
    tile = (view.tile_shape[0], view.tile_shape[1])
    return _level(place, (channels, height, width), asked, tile, view.dtype.itemsize, view)


def _built(number: int, before: PlannedLevel, asked: _Asked, itemsize: int) -> PlannedLevel:
    place = before.place.coarser(str(number), (1, 2, 2))
    channels, height, width = before.shape
    shape = (channels, -(-height // 2), -(-width // 2))
    tile = (before.chunks[1], before.chunks[2])
    return _level(place, shape, asked, tile, itemsize, None, factor=2)


def _level(
    place: LevelPlace,
    shape: tuple[int, int, int],
    asked: _Asked,
    tile: tuple[int, int],
    itemsize: int,
    view: SlideView | None,
    factor: int = 1,
) -> PlannedLevel:
    """Choose chunk, shard and block, each a multiple of the one before, on the tile grid."""
    extents = shape[1:]
    per_pixel = shape[0] * itemsize
    side = max(min(_SIDE, math.isqrt(_BYTES // per_pixel)), 1)
    chunk = asked.chunks or tuple(t if t in _TILES else _DEFAULT_CHUNK for t in tile)
    chunk = tuple(min(c, max(n, 1)) for c, n in zip(chunk, extents, strict=True))
    # a tile as wide as the image (strips) is best read in one piece, a few rows of them
    wide = tile[1] > side and extents[1] > side
    strip = (max(_BYTES // (extents[1] * per_pixel), 1), extents[1])
    target = strip if wide else (side, side)
    shard = None
    unit = chunk
    if asked.sharded:
        if asked.shards is not None:
            shard = _checked_shard(asked.shards, chunk, extents)
        else:
            goal = (target[0], side)
            shard = tuple(
                _towards(c, math.lcm(c, t), g, n)
                for c, t, g, n in zip(chunk, tile, goal, extents, strict=True)
            )
        unit = shard
        shard = None if shard == chunk and asked.together == shape[0] else shard
    _check_sizes(chunk, unit, extents, per_pixel)
    least = strip if wide else (min(side, _BLOCK_SIDE),) * 2
    block = tuple(
        _towards(u, math.lcm(u, t), g, n)
        for u, t, g, n in zip(unit, tile, least, extents, strict=True)
    )
    return PlannedLevel(
        place=place,
        shape=shape,
        chunks=(asked.together, chunk[0], chunk[1]),
        shards=None if shard is None else (shape[0], shard[0], shard[1]),
        block=(block[0], block[1]),
        view=view,
        factor=factor,
    )


def _check_sizes(
    chunk: Sequence[int], unit: Sequence[int], extents: Sequence[int], per_pixel: int
) -> None:
    """Sizes that would exhaust memory are refused before anything is read."""
    if any(c < min(_SMALLEST_CHUNK, n) for c, n in zip(chunk, extents, strict=True)):
        raise GeometryError(
            f"chunks of {tuple(chunk)} pixels are too small to be read one by one; give at "
            f"least {_SMALLEST_CHUNK}"
        )
    held = math.prod(min(u, n) for u, n in zip(unit, extents, strict=True)) * per_pixel
    if held > _LARGEST_BLOCK:
        raise GeometryError(
            f"objects of {tuple(unit)} pixels take {held / 2**30:.1f} GiB in each thread, more "
            f"than {_LARGEST_BLOCK / 2**30:.0f} GiB; give smaller shards or chunks"
        )


def _towards(unit: int, aligned: int, goal: int, extent: int) -> int:
    """A multiple of `unit` near `goal`, of `aligned` too when that is not much larger. One that
    covers the whole extent needs no alignment, and is no larger than needed."""
    covering = -(-extent // unit) * unit
    if extent <= goal:
        return covering
    step = aligned if aligned <= goal * _STRETCH else unit
    return min(max(goal // step, 1) * step, covering)


def _checked_shard(
    shard: tuple[int, int], chunk: tuple[int, ...], extents: Sequence[int]
) -> tuple[int, ...]:
    found = []
    for s, c, n in zip(shard, chunk, extents, strict=True):
        if c < n and s % c:
            fits = tuple(-(-a // b) * b for a, b in zip(shard, chunk, strict=True))
            raise GeometryError(
                f"shards={shard} must be whole multiples of the chunks {chunk}; {fits} would be"
            )
        found.append(min(-(-s // c) * c, -(-n // c) * c))
    return tuple(found)


def _pair(value: Extent, name: str) -> tuple[int, int] | None:
    """(y, x) from one number or two."""
    if value is None:
        return None
    try:
        pair = (value, value) if isinstance(value, int) else tuple(value)
        numbers = [operator.index(v) for v in pair]
    except TypeError:
        numbers = []
    if len(numbers) != 2 or min(numbers) < 1 or isinstance(value, bool):
        raise UsageError(
            f"{name} must be a positive whole number of pixels, or two (y, x), got {value!r}"
        )
    return numbers[0], numbers[1]
