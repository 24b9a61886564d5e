"""Which block of windows is loaded when: the pure plan behind `SlidingWindowDL`.

A *load* is a block of neighbouring windows whose pixels are read once. The plan puts the
loads of all images in order, leaves out those without a window to deliver, deals them to
ranks, and numbers every window to be delivered, so that a position is all that has to be
saved; what a pass has left can be dealt anew to another number of ranks. Pure arithmetic, no
I/O; per load it holds a few integers.

Not covered: reading (`daskdmed.loading.sliding.read`), batches
(`daskdmed.loading.sliding.batches`), how large a block is (`daskdmed.tiling.blocks`).
"""

from __future__ import annotations

import copy
import functools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from dask.utils import format_bytes

from daskdmed.cohort.patient import Patient
from daskdmed.core.errors import BudgetError, StateError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.tiling.blocks import choose_block
from daskdmed.tiling.grid import WindowBlock, WindowGrid
from daskdmed.tiling.imagegrid import ImageGrid

Order = Literal["sequential", "interleaved"]
#: windows of all images in the order of the plan, as [first, stop) in ascending order
Spans = list[list[int]]


@dataclass(frozen=True, eq=False)
class ImageWindows:
    """One image, its windows, and which of them are delivered."""

    patient: Patient
    record: str
    view: ImageView
    grid: WindowGrid
    #: windows per load along each axis
    block_windows: tuple[int, ...]
    #: bool, shape ``grid.counts``: False is left out
    keep: Array | None = None
    #: asked for, None when the resolution was given by mpp or power
    level: int | None = 0

    @property
    def count(self) -> int:
        """Windows to deliver."""
        return len(self.grid) if self.keep is None else int(np.count_nonzero(self.keep))

    @property
    def described(self) -> ImageGrid:
        """What tables say of the image."""
        return ImageGrid(
            patient=str(self.patient.id),
            record=self.record,
            grid=self.grid,
            downsample=tuple(float(d) for d in self.view.downsample),
            level=self.level,
            mpp=self.view.mpp,
            source=self.view.uri or "",
            spacing=None if self.view.mpp is not None else self.view.spacing,
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block."""
        return block_bytes(self.grid, self.block_windows, pixel_bytes(self.view))

    def block_counts(self) -> Array:
        """Windows to deliver of each block, in C order of blocks, int64."""
        cuts = [
            np.arange(0, n, b) for n, b in zip(self.grid.counts, self.block_windows, strict=True)
        ]
        if self.keep is None:
            sizes = [np.diff(np.append(c, n)) for c, n in zip(cuts, self.grid.counts, strict=True)]
            return functools.reduce(np.multiply.outer, sizes).reshape(-1).astype(np.int64)
        counts: Array = self.keep.astype(np.int64)
        for axis, cut in enumerate(cuts):
            counts = np.add.reduceat(counts, cut, axis=axis)
        return counts.reshape(-1)

    def block(self, number: int) -> tuple[WindowBlock, Array | None]:
        """The smallest block around the windows to deliver of block `number`, and which."""
        index = np.unravel_index(number, self.grid.block_counts(self.block_windows))
        block = self.grid.block([int(i) for i in index], self.block_windows)
        if self.keep is None:
            return block, None
        inner, _, keep = self.grid.around(block, self.keep[block.slices])
        return inner, keep


def pixel_bytes(view: ImageView) -> int:
    """Bytes of all channels of one pixel."""
    channels = math.prod(view.channel_shape)
    return int(channels * view.dtype.itemsize)


def block_bytes(grid: WindowGrid, block_windows: Sequence[int], bytes_per_pixel: int) -> int:
    """Bytes that the largest block of a partition of the grid needs."""
    extents = [
        (b - 1) * s + k
        for b, s, k in zip(block_windows, grid.stride, grid.kernel_size, strict=True)
    ]
    return math.prod(extents) * bytes_per_pixel


def fit_block(
    grid: WindowGrid, tile_shape: Sequence[int], bytes_per_pixel: int, budget: int
) -> tuple[int, ...]:
    """Windows per load: as for a heatmap, made smaller until two blocks fit the budget."""
    shape = list(choose_block(grid, tile_shape, bytes_per_pixel=bytes_per_pixel))
    while 2 * (needed := block_bytes(grid, shape, bytes_per_pixel)) > budget:
        if max(shape) == 1:
            raise BudgetError(
                f"resident={format_bytes(budget)} cannot hold two blocks of one window of "
                f"{grid.kernel_size} pixels, {format_bytes(needed)} each; ask for "
                f"{2 * needed} bytes or more"
            )
        longest = max(range(grid.ndim), key=lambda a: (shape[a] > 1, shape[a] * grid.stride[a]))
        # blocks that began on storage tiles still do, if halving leaves whole periods
        period = tile_shape[longest] // math.gcd(grid.stride[longest], tile_shape[longest])
        half = shape[longest] // 2
        shape[longest] = half // period * period if half >= period else half
    return tuple(shape)


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """One block to be read."""

    #: in the plan of this rank
    number: int
    image: ImageWindows
    block: WindowBlock
    #: bool, shape ``block.shape``: False is left out
    keep: Array | None
    #: position of its first window in the plan of this rank, were it not delivered before
    first: int
    #: windows to deliver, with those that were before
    count: int
    #: number in the plan of all ranks
    visit: int
    #: windows that were delivered before this plan was dealt
    done: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels, those outside the image included."""
        return math.prod(self.block.extent) * pixel_bytes(self.image.view)

    def __str__(self) -> str:
        spans = ", ".join(
            f"{a}:{b}"
            for a, b in zip(self.block.region.origin, self.block.region.stop, strict=True)
        )
        last = tuple(s.stop - 1 for s in self.block.slices)
        return f"windows {self.block.start} to {last}, pixels [{spans}]"


class LoadPlan:
    """The loads of one rank, in order.

    They are dealt in contiguous runs of about equally many windows; every load belongs to
    exactly one rank.

    Parameters
    ----------
    images, order, at_once
        What is slid over, and in which order.
    rank, world_size : int
        Whose loads these are.
    """

    def __init__(
        self,
        images: Sequence[ImageWindows],
        *,
        order: Order = "sequential",
        at_once: int = 4,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = tuple(images)
        queues = []
        for number, image in enumerate(self.images):
            counts = image.block_counts()
            blocks = np.flatnonzero(counts)
            queues.append(np.stack([np.full(blocks.size, number), blocks, counts[blocks]], axis=-1))
        table = np.concatenate(queues) if queues else np.empty((0, 3), np.int64)
        if order == "interleaved":
            table = table[_by_turns([len(q) for q in queues], at_once)]
        self.total_windows = int(table[:, 2].sum())
        #: per load: image, block, windows, number, number of its first window among all
        self._all = np.column_stack(
            [table, np.arange(len(table)), np.cumsum(table[:, 2]) - table[:, 2]]
        ).astype(np.int64)
        self._deal(rank, world_size, None)

    def _deal(self, rank: int, world_size: int, left: Spans | None) -> None:
        self.share = rank, world_size
        self.left = left
        table, done = self._all, np.zeros(len(self._all), np.int64)
        if left is not None:
            done = table[:, 2] - self._left_of_each(left)
            table, done = table[done < table[:, 2]], done[done < table[:, 2]]
        counts = table[:, 2] - done
        if world_size > 1:
            middles = np.cumsum(counts) - counts / 2
            owner = np.floor(middles * world_size / max(int(counts.sum()), 1))
            table, done, counts = table[owner == rank], done[owner == rank], counts[owner == rank]
        self._table, self._done = table, done
        self._ends = np.cumsum(counts)

    def _left_of_each(self, left: Spans) -> Array:
        """Windows of each load that are left: its last ones."""
        edges = np.array([0, *(at for span in left for at in span)], np.int64)
        if (np.diff(edges) < 0).any() or edges[-1] > self.total_windows:
            raise StateError(
                f"windows {left} that are left are no spans of a plan of {self.total_windows}"
            )
        # windows that are left below each edge
        below = np.concatenate(([0], np.cumsum(np.diff(edges) * (np.arange(edges.size - 1) % 2))))
        first, stop = self._all[:, 4], self._all[:, 4] + self._all[:, 2]
        counts: Array = np.interp(stop, edges, below) - np.interp(first, edges, below)
        return np.rint(counts).astype(np.int64)

    def dealt(self, rank: int, world_size: int, left: Spans | None = None) -> LoadPlan:
        """The loads of another rank; with `left`, of those windows only.

        Of each load the last windows may be left, and no others. StateError: `left` is nothing
        that ranks leave.
        """
        other = copy.copy(self)
        other._deal(rank, world_size, left)
        return other

    @property
    def behind(self) -> int:
        """An equal part of the windows that ranks delivered before these loads were dealt."""
        if self.left is None:
            return 0
        return -((sum(b - a for a, b in self.left) - self.total_windows) // self.share[1])

    def after(self, position: int) -> Spans:
        """What this rank has left from a position on."""
        first, stop = self._table[:, 4] + self._done, self._table[:, 4] + self._table[:, 2]
        first = np.maximum(first, stop - (self._ends - position))
        spans: Spans = []
        for a, b in zip(first.tolist(), stop.tolist(), strict=True):
            if spans and spans[-1][1] == a < b:
                spans[-1][1] = b
            elif a < b:
                spans.append([a, b])
        return spans

    def after_all(self, position: int, world_size: int, left: Spans | None) -> Spans | None:
        """What so many ranks leave when each is at a position of its own part, or at its end.

        None: everything.
        """
        parts = [self.dealt(rank, world_size, left).after(position) for rank in range(world_size)]
        spans: Spans = []
        for a, b in sorted(span for part in parts for span in part):
            if spans and spans[-1][1] == a:
                spans[-1][1] = b
            else:
                spans.append([a, b])
        return None if spans == [[0, self.total_windows]] else spans

    def __len__(self) -> int:
        return len(self._table)

    @property
    def windows(self) -> int:
        """Windows that this rank delivers."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def windows_of(self) -> dict[tuple[str, str], int]:
        """(patient id, record) -> windows that this rank delivers of it."""
        counts = np.bincount(
            self._table[:, 0],
            weights=self._table[:, 2] - self._done,
            minlength=len(self.images),
        )
        return {
            (str(image.patient.id), image.record): int(count)
            for image, count in zip(self.images, counts, strict=True)
        }

    def locate(self, position: int) -> tuple[int, int]:
        """The load that holds a window, by its position, and how many of it come before."""
        number = int(np.searchsorted(self._ends, position, side="right"))
        done = int(self._done[number]) if number < len(self) else 0
        return number, position - (int(self._ends[number - 1]) if number else 0) + done

    def load(self, number: int) -> Load:
        """One load."""
        which, block_number, count, visit, _ = (int(v) for v in self._table[number])
        image = self.images[which]
        block, keep = image.block(block_number)
        first = int(self._ends[number]) - count
        done = int(self._done[number])
        return Load(number, image, block, keep, first, count, visit, done)


def _by_turns(lengths: Sequence[int], at_once: int) -> Array:
    """Positions of rows of concatenated queues, `at_once` queues taking turns."""
    starts = np.concatenate(([0], np.cumsum(lengths)))
    waiting = deque((int(a), int(a) + n) for a, n in zip(starts[:-1], lengths, strict=True) if n)
    active: deque[tuple[int, int]] = deque()
    order = []
    while waiting or active:
        while waiting and len(active) < at_once:
            active.append(waiting.popleft())
        at, stop = active.popleft()
        order.append(at)
        if at + 1 < stop:
            active.append((at + 1, stop))
    return np.array(order, np.int64)


def _incidence(block: WindowBlock, grid: WindowGrid, edges: Sequence[Array]) -> list[Array]:
    """Per axis (windows, cells) bool: which cells between `edges` each window touches."""
    touched = []
    for axis, cuts in enumerate(edges):
        begin = np.asarray(block.origins[axis]) + block.region.origin[axis]
        stop = begin + grid.kernel_size[axis]
        touched.append((begin[:, None] < cuts[None, 1:]) & (stop[:, None] > cuts[None, :-1]))
    return touched


def needed_regions(load: Load) -> list[Region]:
    """The pixels that the windows of a load need, as few boxes of whole storage tiles.

    Tiles that lie under no window to deliver (masked out, or in the gaps of a stride that
    exceeds the kernel) are in none of them, all others in exactly one.
    """
    block, grid, tiles = load.block, load.image.grid, load.image.view.tile_shape
    region = block.region
    edges: list[Array] = []
    for first, stop, tile in zip(region.origin, region.stop, tiles, strict=True):
        inner = np.arange(first // tile * tile + tile, stop, tile)
        edges.append(np.concatenate(([first], inner, [stop])))
    keep = np.ones(block.shape, bool) if load.keep is None else load.keep
    needed: Array = keep.astype(np.int64)
    for touched in _incidence(block, grid, edges):
        # consumes the leading axis (windows) and appends the tiles of that axis
        needed = np.tensordot(needed, touched.astype(np.int64), axes=(0, 0))
    if (needed > 0).all():
        return [region]
    return [
        Region(
            tuple(int(e[a]) for e, a in zip(edges, low, strict=True)),
            tuple(int(e[b] - e[a]) for e, a, b in zip(edges, low, high, strict=True)),
        )
        for low, high in _boxes(needed > 0)
    ]


def _boxes(cells: Array) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """True cells as disjoint boxes (first, stop), grown greedily along the last axis first."""
    left = cells.copy()
    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    while True:
        flat = int(np.argmax(left))
        low = [int(i) for i in np.unravel_index(flat, left.shape)]
        if not left[tuple(low)]:
            return boxes
        high = [i + 1 for i in low]
        for axis in reversed(range(left.ndim)):
            while high[axis] < left.shape[axis]:
                slab = [slice(a, b) for a, b in zip(low, high, strict=True)]
                slab[axis] = slice(high[axis], high[axis] + 1)
                if not left[tuple(slab)].all():
                    break
                high[axis] += 1
        left[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = False
        boxes.append((tuple(low), tuple(high)))


def windows_touching(load: Load, regions: Sequence[Region]) -> Array:
    """Which windows of a load share pixels with some regions; bool, shape ``block.shape``."""
    hit = np.zeros(load.block.shape, bool)
    for region in regions:
        edges: list[Any] = [
            np.array([a, b]) for a, b in zip(region.origin, region.stop, strict=True)
        ]
        touched = _incidence(load.block, load.image.grid, edges)
        part = touched[0][:, 0]
        for other in touched[1:]:
            part = part[..., None] & other[:, 0]
        hit |= part
    return hit
