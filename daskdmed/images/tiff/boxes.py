"""Boxes of one size anywhere in a level: each storage tile that they touch is decoded once, no
further than they need, and what it has of each box is copied there.

For few boxes in a wide region, where rectangles of tiles would be read one by one into memory that
nobody looks at. Not covered: levels that are composed of others, planes that are stored one by one,
strips, and tiles of which a part can be read (`can_read_boxes` says no), and everything else that
`daskdmed.images.tiff.decode` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from daskdmed.core.types import Array
from daskdmed.images.tiff.decode import (
    Canvas,
    LevelPlan,
    Reading,
    check_extent,
    count_decoded,
    plan_limit,
    rows_apart,
    scratch_tiles,
)
from daskdmed.images.tiff.many import AT_ONCE, Parts, decode_groups
from daskdmed.images.turbojpeg import WORTH_PART, Stored, Wanted

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Touched:
    """Tiles that boxes touch, and which part of which box each of them holds.

    `tiles`, (n, 7): number in the level, rows and columns of it that are needed (first, one past
    the last), first and one past the last of its pieces. `pieces`, (m, 7): box, first row and
    column in it, first row and column in the tile, one past the last of both.
    """

    tiles: _Ints
    pieces: _Ints

    def wanted(self, some: slice, strides: tuple[int, ...]) -> Wanted:
        """What is wanted of some of the tiles; `strides` are those of the boxes."""
        tiles = self.tiles[some]
        begin, end = int(tiles[0, 5]), int(tiles[-1, 6])
        pieces = self.pieces[begin:end]
        where = np.empty((len(pieces), 5), np.int64)
        where[:, 0] = pieces[:, :3] @ np.array(strides[:3])
        where[:, 1:] = pieces[:, 3:]
        return Wanted(
            tiles[:, 1:5].astype(np.int32, order="C"), (tiles[:, 6] - begin).astype(np.int32), where
        )


def can_read_boxes(plan: LevelPlan | Canvas) -> TypeGuard[LevelPlan]:
    """Whether `read_boxes` reads this level."""
    return (
        isinstance(plan, LevelPlan)
        and plan.finer is None
        and len(plan.tiles) == 1
        and not plan.decoder.raw
        and not plan.short_tiles
    )


def read_boxes(plan: LevelPlan, job: Reading, first: _Ints, out: Array) -> None:
    """Fill `out`, (boxes, height, width, channels), with boxes at their `first` pixels (boxes, 2),
    all of them inside the level.

    Missing tiles and those that `job.fail` was told of become the background.
    """
    touched = _touched(plan, first, out.shape[1:3])
    offsets, counts = plan.tiles.plane(0, job.source)
    numbers = touched.tiles[:, 0]
    groups = [slice(at, at + AT_ONCE) for at in range(0, len(numbers), AT_ONCE)]
    rows = [[(offsets[numbers[g]].tolist(), counts[numbers[g]].tolist())] for g in groups]
    scratch = scratch_tiles((1, *plan.tile, plan.decoder.stored), plan.dtype)[0]
    many = plan.decoder.many if rows_apart(out) else None

    def decode(number: int, tiles: Parts | Stored) -> list[bool]:
        if many is None:
            return [False] * len(tiles)
        return many(tiles, touched.wanted(groups[number], out.strides), scratch, out, False)

    found = decode_groups(job.source, rows, plan_limit(plan), decode)
    for group, ((parts, done),) in zip(groups, found, strict=True):
        if not all(done):
            _one_by_one(plan, job, touched, group.start, parts, done, scratch, out)
        there = sum(d or part is not None for part, d in zip(parts, done, strict=True))
        count_decoded(plan.level, there)


def _one_by_one(
    plan: LevelPlan, job: Reading, touched: _Touched, begin: int, parts: Parts, done: list[bool],
    scratch: Array, out: Array,
) -> None:  # fmt: skip
    """Tiles from `begin` on that are not `done`, with what is to be said of them."""
    for at, (data, is_done) in enumerate(zip(parts, done, strict=True), begin):
        if is_done:
            continue
        tile = touched.tiles[at].tolist()
        values, top, left = None, 0, 0
        if data is not None:
            try:
                if isinstance(data, Exception):
                    raise data
                values, top, left = _decoded(plan, data, tile[1:5], scratch)
            except Exception as error:
                job.fail(plan.level, tile[0] // plan.grid[1], tile[0] % plan.grid[1], error)
        for box, y, x, y0, x0, y1, x1 in touched.pieces[tile[5] : tile[6]].tolist():
            place = out[box, y : y + y1 - y0, x : x + x1 - x0]
            if values is None:
                place[...] = job.background
            else:
                place[...] = values[y0 - top : y1 - top, x0 - left : x1 - left]


def _decoded(
    plan: LevelPlan, data: bytes, needed: Sequence[int], scratch: Array
) -> tuple[Array, int, int]:
    """Pixels of a tile, and which row and column of it they begin with."""
    top, bottom, left, right = needed
    decoder = plan.decoder
    few = (bottom - top) * (right - left) <= WORTH_PART * plan.tile[0] * plan.tile[1]
    if few and decoder.part is not None and decoder.convert is None:
        part = decoder.part(data, scratch, (top, bottom), (left, right))
        if part is not None:
            return part, top, left
    tile = decoder.decode(data, scratch)
    if decoder.convert is not None:
        tile = decoder.convert(tile)
    check_extent(plan, tile, bottom, right, plan.tile[0])
    return tile, 0, 0


def _touched(plan: LevelPlan, first: _Ints, size: Sequence[int]) -> _Touched:
    along = []
    for axis, (extent, tile) in enumerate(zip(size, plan.tile, strict=True)):
        begins = first[:, axis, None]
        cells = begins // tile + np.arange((extent + tile - 2) // tile + 1)
        low, high = (
            np.maximum(cells * tile, begins),
            np.minimum((cells + 1) * tile, begins + extent),
        )
        along.append(np.stack((cells, low - begins, low - cells * tile, high - cells * tile)))
    (_, _, y0, y1), (_, _, x0, x1) = along
    box, i, j = ((y0 < y1)[:, :, None] & (x0 < x1)[:, None, :]).nonzero()
    # in one go: NumPy lets go of the GIL for each
    (rows, down, y0, y1), (columns, across, x0, x1) = along[0][:, box, i], along[1][:, box, j]
    number = rows * plan.grid[1] + columns
    order = number.argsort(kind="stable")
    pieces = np.stack([box, down, across, y0, x0, y1, x1], axis=1)[order]
    number = number[order]
    begins = np.flatnonzero(np.diff(number, prepend=-1))
    top, left = np.minimum.reduceat(pieces[:, 3:5], begins).T
    bottom, right = np.maximum.reduceat(pieces[:, 5:7], begins).T
    stops = np.append(begins[1:], len(number))
    tiles = np.stack([number[begins], top, bottom, left, right, begins, stops], axis=1)
    return _Touched(tiles, pieces)
