"""Reading a block strip by strip, so that its memory is that of a strip.

A block of windows spans up to 200 megabytes, and may be large without more being held at once.
Rows of windows that a mask leaves out are not read, nor storage tiles under no window that it
keeps. What two strips share is copied, so that each storage tile of the block is decoded once.

Not covered: which windows make a block (`daskdmed.tiling.blocks`), cutting pixels into
windows (`daskdmed.tiling.extract`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from daskdmed.core import buffers, lending
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.images.parts import read_parts
from daskdmed.tiling.extract import Allocate, Convert, Windows, kept_boxes, read_block
from daskdmed.tiling.grid import WindowBlock, WindowGrid

#: bytes of pixels that a strip aims at: of smaller ones more is copied from one to the next
STRIP_BYTES = 24 << 20


#: flat positions of windows in a block
Where: TypeAlias = slice | Array
#: how windows become batches, see `manner_of`
Manner = Literal["views", "phases", "copies"]


@dataclass(frozen=True)
class Strip:
    """Some rows of windows of a block; `first` is the flat position in it of the first window.
    `memory` holds the pixels where they can be lent."""

    first: int
    windows: Windows
    memory: lending.Memory | None = None

    @property
    def count(self) -> int:
        """Windows that are kept."""
        keep = self.windows.keep
        return self.windows.block.count if keep is None else int(np.count_nonzero(keep))


def read_strips(
    view: ImageView,
    block: WindowBlock,
    grid: WindowGrid,
    keep: Array | None = None,
    *,
    lend: bool = False,
    strip_bytes: int = STRIP_BYTES,
) -> Iterator[Strip]:
    """The windows of a block, in order, each once; with `lend` in memory that can be lent, if there
    is some.

    Images that are not read by storage tiles (arrays, resampled slides) give one strip.
    """
    if not view.cheap_to_cut or grid.ndim < 2:
        yield Strip(0, Windows(read_block(view, block, grid, keep), block, grid, keep))
        return
    per_row = math.prod(block.shape[1:])
    rows = _Rows(view, block, grid, keep, strip_bytes, lend)
    for begin, stop in _groups(block, keep, rows):
        part = grid.box(
            (block.start[0] + begin, *block.start[1:]), (stop - begin, *block.shape[1:])
        )
        pixels, memory = rows.read(block.origins[0][begin], part)
        kept = None if keep is None else keep[begin:stop]
        yield Strip(begin * per_row, Windows(pixels, part, grid, kept), memory)
        del pixels, memory  # so that the next strip can use them


def _groups(block: WindowBlock, keep: Array | None, rows: _Rows) -> Iterator[tuple[int, int]]:
    """Half-open ranges of rows of windows; rows without any kept window are in none."""
    count = block.shape[0]
    full = np.ones((count, 1), bool) if keep is None else keep.reshape(count, -1)
    needed: list[bool] = [bool(row.any()) for row in full]
    begin = 0
    while begin < count:
        if not needed[begin]:
            begin += 1
            continue
        stop, limit = begin + 1, rows.limit(begin)
        while stop < count and needed[stop] and rows.end(stop) <= limit:
            stop += 1
        yield begin, stop
        begin = stop


class _Rows:
    """Pixel rows of a block, read from top to bottom. Positions are relative to the block."""

    def __init__(
        self,
        view: ImageView,
        block: WindowBlock,
        grid: WindowGrid,
        keep: Array | None,
        strip_bytes: int,
        lend: bool,
    ) -> None:
        self._view, self._lend = view, lend
        # of the whole block: the rest of a strip is also there for the next one
        self._boxes = kept_boxes(view, block, grid, keep)
        self._origins = block.origins[0]
        self._kernel = block.extent[0] - block.origins[0][-1]
        self._top, self._tile = block.region.origin[0], view.tile_shape[0]
        self._inside = block.region.shape[0]
        self._corner = block.region.origin[1:]
        self._channels = tuple(view.channel_shape)
        line = math.prod((*block.extent[1:], *self._channels)) * view.dtype.itemsize
        self._target = max(strip_bytes // max(line, 1), 1)
        self._period = _period(block, self._kernel, self._top, self._tile)
        if self._period > 2 * self._target:
            self._period = 0
        self._pixels: Array | None = None
        self._begin = self._stop = 0

    def end(self, row: int) -> int:
        """Where a row of windows ends."""
        return self._origins[row] + self._kernel

    def limit(self, row: int) -> int:
        """Where a strip that begins with this row may end, on a storage tile."""
        if self._period:
            # where windows and tiles end together, no pixel is shared by two strips
            whole = max(self._target // self._period, 1)
            return (self._origins[row] // self._period + whole) * self._period
        least = max(self._origins[row] + self._target, self.end(row))
        # a strip that ends within a tile would decode it for nothing
        return max(self._aligned(least, down=True), self._aligned(self.end(row), down=False))

    def _aligned(self, position: int, *, down: bool) -> int:
        at = self._top + position
        return (at // self._tile if down else -(-at // self._tile)) * self._tile - self._top

    def read(self, begin: int, part: WindowBlock) -> tuple[Array, lending.Memory | None]:
        """Pixels of a strip, (*extent[, c]): the rest of the last one and new rows."""
        end = begin + part.extent[0]
        stop = min(max(self._aligned(end, down=False), self._stop), self._inside)
        height = max(end, stop) - begin
        if self._stop <= begin:
            self._pixels = None
        shape = (height, *part.extent[1:], *self._channels)
        memory = lending.memory(shape, self._view.dtype) if self._lend else None
        pixels = buffers.empty(shape, self._view.dtype) if memory is None else memory.array
        have = max(min(self._stop, stop), begin)
        if self._pixels is not None and self._stop > begin:
            pixels[: have - begin] = self._pixels[begin - self._begin : have - self._begin]
        if begin + height > have:
            region = Region(
                (self._top + have, *self._corner), (begin + height - have, *part.extent[1:])
            )
            target = pixels[have - begin :]
            if self._boxes is None:
                self._view.read_padded(region, out=target)
            else:
                read_parts(self._view, region, self._boxes, out=target)
        self._pixels, self._begin, self._stop = pixels, begin, stop
        return pixels[: part.extent[0]], memory


def _period(block: WindowBlock, kernel: int, top: int, tile: int) -> int:
    """Pixel rows after which rows of windows and of tiles begin together again; 0 for never."""
    origins = block.origins[0]
    if len(origins) < 2 or top % tile:
        return 0
    stride = origins[1] - origins[0]
    regular = all(b - a == stride for a, b in itertools.pairwise(origins))
    return math.lcm(stride, tile) if regular and stride >= kernel else 0


def manner_of(
    block: WindowBlock, grid: WindowGrid, total: int, batch_size: int, *, in_place: bool
) -> Manner:
    """How the windows of a block, `total` of which are kept, become batches.

    `in_place`: strided views of the pixels will do. They are then given where no two windows share
    a pixel; and by phases where they do, if a row of the block has enough such windows that
    batches are no less than a quarter of what was asked for. A model may write into all of them.
    """
    if not in_place or not block.regular:
        return "copies"
    if not grid.overlapping:
        return "copies" if grid.edge == "shift" else "views"
    longest = -(-block.shape[-1] // grid.phases[-1])
    return "phases" if total == block.count and 4 * longest >= batch_size else "copies"


def batches(
    manner: Manner,
    strips: Iterable[Strip],
    total: int,
    batch_size: Callable[[], int],
    allocate: Allocate,
    convert: Convert,
) -> Iterator[tuple[Where, Array]]:
    """Windows of the strips of one block in batches: (flat positions in the block, windows)."""
    if manner == "views":
        return views(strips, batch_size)
    if manner == "phases":
        return phases(strips, batch_size)
    return copies(strips, total, batch_size, allocate, convert)


def views(strips: Iterable[Strip], batch_size: Callable[[], int]) -> Iterator[tuple[Where, Array]]:
    """Batches without copying: (flat positions in the block, windows)."""
    for strip in strips:
        for where, batch in strip.windows.views(batch_size()):
            yield _moved(where, strip.first), batch
            del batch
        del strip


def phases(strips: Iterable[Strip], batch_size: Callable[[], int]) -> Iterator[tuple[Where, Array]]:
    """Batches of windows that share no pixel, of pixels that others see in their own way: what is
    written into a batch harms no other. (flat positions in the block, windows)."""
    lends = True
    for strip in strips:
        for phase in itertools.product(*map(range, strip.windows.grid.phases)):
            memory = strip.memory if lends else None
            own = strip.windows.on_pixels_of_their_own(memory)
            for where, batch in own.apart(phase, batch_size()):
                yield _moved(where, strip.first), batch
                del batch
            del own
            # whoever wrote once will do so again, and what is kept may be written into later
            lends = lends and (memory is None or memory.is_intact())
        del strip


def _moved(where: slice, by: int) -> slice:
    return slice(where.start + by, where.stop + by, where.step)


def copies(
    strips: Iterable[Strip],
    total: int,
    batch_size: Callable[[], int],
    allocate: Allocate,
    convert: Convert,
) -> Iterator[tuple[Where, Array]]:
    """Full batches across strips (the last may be smaller), each window copied once.

    A strip's memory may be used again when the next is asked for. `total` is what all strips
    keep; `batch_size` is asked before each batch.
    """
    where: list[Array] = []
    batch, filled, given = None, 0, 0
    for strip in strips:
        for lead, begin, stop in strip.windows.runs(batch_size()):
            while begin < stop:
                if batch is None:
                    batch = allocate(min(batch_size(), total - given))
                n = min(stop - begin, len(batch) - filled)
                convert(batch[filled : filled + n], strip.windows.row(lead, begin, begin + n))
                at = _moved(strip.windows.positions(lead, begin, begin + n), strip.first)
                where.append(np.arange(at.start, at.stop))
                begin, filled = begin + n, filled + n
                if filled == len(batch):
                    yield np.concatenate(where), batch
                    given += filled
                    where, batch, filled = [], None, 0
        del strip
