"""How many windows make an output block.

A block is the unit of work: its pixels are read once, its results written as one chunk.
Pure arithmetic over a `WindowGrid` and the storage tile grid. The choice depends on the
geometry alone, never on the machine, because it becomes the chunk shape of the store, and
a run that is resumed elsewhere must find the same blocks.

Not covered: who computes the blocks (`daskdmed.inference.blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from daskdmed.tiling.grid import WindowGrid

#: pixels along an axis that a block aims at, at least and at most
_SMALLEST, _USUAL, _LARGEST = 1024, 4096, 8192
#: bytes of input that a block may need; each thread holds one block, or strips of it
_MAX_BYTES = 192 * 2**20
#: reads per storage tile that are good enough not to look for larger blocks: of blocks that are
#: held in memory, and of those that are read strip by strip, which cost no more when they are large
_GOOD_RATIO, _GOOD_IN_STRIPS = 1.15, 1.08
#: blocks along the longest axis that the larger ones leave at least, for parallel work
_FEWEST = 3


def tile_reads(grid: WindowGrid, tile_shape: Sequence[int], block_shape: Sequence[int]) -> float:
    """How often a storage tile is read on average, when each block reads its own region.

    Exact: 1.0 means that no tile is read by two blocks. Tiles that no window needs
    (stride larger than kernel, edge policy "drop") count as tiles that are there.
    """
    ratio = 1.0
    for axis, (tile, per_block) in enumerate(zip(tile_shape, block_shape, strict=True)):
        count = grid.counts[axis]
        size, kernel = grid.shape[axis], grid.kernel_size[axis]
        touched = 0
        for a in range(0, count, per_block):
            last = min(a + per_block, count) - 1
            begin = grid.axis_origin(axis, a)
            stop = min(grid.axis_origin(axis, last) + kernel, size)
            touched += -(-stop // tile) - begin // tile
        ratio *= touched / -(-size // tile)
    return ratio


def choose_block(
    grid: WindowGrid,
    tile_shape: Sequence[int],
    *,
    bytes_per_pixel: int = 3,
    in_strips: bool = False,
) -> tuple[int, ...]:
    """Windows per output block along each axis.

    Blocks begin on storage tiles where the geometry allows it: 224-pixel windows side by
    side over 256-pixel tiles meet every 1792 pixels. Otherwise blocks grow until tiles are
    read at most 1.15 times on average, or the memory for one block is used up. Blocks that are
    read `in_strips`, so that a large one takes no more memory than a small one, go on to 1.08 where
    the image leaves enough of them to be computed side by side.
    """
    budget = max(_MAX_BYTES // max(bytes_per_pixel, 1), 1)
    best: tuple[float, tuple[int, ...]] | None = None
    enough = max(grid.shape) // _FEWEST
    for target in _targets(grid):
        block = _fit(grid, tile_shape, target, budget)
        ratio = tile_reads(grid, tile_shape, block)
        if best is None or ratio < best[0] - 1e-9:
            best = ratio, block
        if ratio <= (_GOOD_IN_STRIPS if in_strips and 2 * target <= enough else _GOOD_RATIO):
            break
    assert best is not None
    return best[1]


def _targets(grid: WindowGrid) -> list[int]:
    """Block extents to try, in pixels: small images get small blocks, for parallel work."""
    start = min(max(max(grid.shape) // 6, _SMALLEST), _USUAL)
    targets = []
    while start < _LARGEST:
        targets.append(start)
        start *= 2
    return [*targets, _LARGEST]


def _fit(grid: WindowGrid, tile_shape: Sequence[int], target: int, budget: int) -> tuple[int, ...]:
    """Windows per axis for blocks of about `target` pixels that hold at most `budget`."""
    limit = min(target, max(round(budget ** (1 / grid.ndim)), 1))
    # an axis that is stored in one piece (strips) is best read in one piece
    wide = [min(t, n) > 2 * limit for t, n in zip(tile_shape, grid.shape, strict=True)]
    if any(wide) and not all(wide):
        held = math.prod(n for n, w in zip(grid.shape, wide, strict=True) if w)
        narrow = wide.count(False)
        limit = max(min(limit, round((budget / held) ** (1 / narrow))), 1)
    else:
        wide = [False] * grid.ndim
    return tuple(
        count if whole else min(_windows(kernel, stride, tile, limit), count)
        for count, whole, kernel, stride, tile in zip(
            grid.counts, wide, grid.kernel_size, grid.stride, tile_shape, strict=True
        )
    )


def _windows(kernel: int, stride: int, tile: int, target: int) -> int:
    """Windows of one axis that span about `target` pixels, tile-aligned when possible."""
    step = tile // math.gcd(stride, tile)
    if step * stride <= max(target, kernel) * 3 // 2:
        return max(target // (step * stride), 1) * step
    return max((target - kernel) // stride + 1, 1)
