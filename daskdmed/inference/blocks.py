"""A heatmap as a Dask array: a block is read, goes through the model, and gives its values.

`lazy` makes that array. `written` is the same with each block written into its chunk, giving
back a flag, so that neither side holds values. Blocks are values of (image, model, index).

Not covered: who computes (`daskdmed.core.work`), what is recorded as done
(`daskdmed.inference.heatmapjob`).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import convert_legacy_graph
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import DataNode, Task, TaskRef

from daskdmed.core.files import write_failure
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.core.work import Index, threads_here
from daskdmed.inference.models.outputs import check_finite, window_name
from daskdmed.inference.models.shipped import Shipped
from daskdmed.inference.models.values import Layout
from daskdmed.inference.models.window import WindowModel
from daskdmed.store.results import inline
from daskdmed.tiling.extract import Windows, read_block
from daskdmed.tiling.grid import WindowBlock, WindowGrid
from daskdmed.tiling.strips import (
    STRIP_BYTES,
    Manner,
    Strip,
    Where,
    batches,
    manner_of,
    read_strips,
)


@dataclass(frozen=True)
class WindowBlocks:
    """Everything that the values of one image depend on, but the model. Picklable."""

    view: ImageView
    grid: WindowGrid
    shape: Index  # windows per block along each axis
    keep: Array | None  # windows that are computed, shape ``grid.counts``; None for all
    batch_size: int  # windows per call of the model
    layout: Layout

    @property
    def cells(self) -> tuple[int, ...]:
        """Cells of the result for one window, along each axis."""
        return self.layout.cells or (1,) * self.grid.ndim

    @property
    def lead(self) -> tuple[int, ...]:
        """(k,), or () for one plain value."""
        return (self.layout.outputs,) if self.layout.outputs else ()

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Of the result, as Dask has them."""
        along = [
            tuple(min(size, count - a) * c for a in range(0, count, size))
            for size, count, c in zip(self.shape, self.grid.counts, self.cells, strict=True)
        ]
        return (*((k,) for k in self.lead), *along)

    @property
    def block_bytes(self) -> int:
        """Bytes that a block takes while it is computed, about: its pixels, a batch of floats."""
        block = self.block((0,) * self.grid.ndim)
        channels = math.prod(self.view.shape[self.grid.ndim :])
        pixels = math.prod(block.extent) * channels * self.view.dtype.itemsize
        if self.view.cheap_to_cut:
            pixels = min(pixels, STRIP_BYTES)
        if self.grid.overlapping:
            pixels *= 2  # windows that share pixels are given out of a copy
        return pixels + self.batch_size * math.prod(self.grid.kernel_size) * channels * 4

    def indexes(self) -> Iterator[Index]:
        """Of all blocks, in C order."""
        return itertools.product(*(range(n) for n in self.grid.block_counts(self.shape)))

    def block(self, index: Index) -> WindowBlock:
        """All windows of a block."""
        return self.grid.block(index, self.shape)

    def kept(self, index: Index) -> Array | None:
        """Which windows of a block are computed; None for all."""
        return None if self.keep is None else self.keep[self.block(index).slices]

    def is_empty(self, index: Index) -> bool:
        """Whether no window of a block is computed."""
        kept = self.kept(index)
        return kept is not None and not kept.any()

    def region(self, index: Index) -> Region:
        """The pixels of a block that have to be read."""
        if self.is_empty(index):
            return self.block(index).region
        return self.grid.around(self.block(index), self.kept(index))[0].region

    def read(self, view: ImageView, index: Index) -> Array:
        """The pixels that a block needs."""
        with self._context(index):
            if self.is_empty(index):
                return np.empty(0, view.dtype)
            inner, _, keep = self.grid.around(self.block(index), self.kept(index))
            return read_block(view, inner, self.grid, keep)

    def values(self, model: Shipped, index: Index, source: ImageView | Array) -> Array:
        """Values of one block, NaN where windows are not kept, channel first."""
        block, kept = self.block(index), self.kept(index)
        width = max(self.layout.outputs, 1)
        result = np.full((block.count, width, *self.layout.cells), np.nan, np.float32)
        if self.is_empty(index):
            return self._arranged(result, block)
        with self._context(index):
            inner, offset, keep = self.grid.around(block, kept)
            total = inner.count if keep is None else int(np.count_nonzero(keep))
            placed = model.get()
            manner = self._manner(inner, total, placed.is_torch)
            strips: Iterable[Strip]
            if isinstance(source, ImageView):
                lend = manner == "phases"
                strips = read_strips(source, inner, self.grid, keep, lend=lend)
            else:
                strips = [Strip(0, Windows(source, inner, self.grid, keep))]
            with placed.ready(threads_here()):
                for where, values in self._stream(placed, manner, strips, total):
                    if inner.shape != block.shape:
                        numbers = np.arange(inner.count)[where]
                        places = np.unravel_index(numbers, inner.shape)
                        shifted = tuple(p + o for p, o in zip(places, offset, strict=True))
                        where = np.ravel_multi_index(shifted, block.shape)
                    result[where] = values.reshape(len(values), *result.shape[1:])
            self._check(result, block, kept)
        return self._arranged(result, block)

    def _manner(self, block: WindowBlock, total: int, is_torch: bool) -> Manner:
        return manner_of(block, self.grid, total, self.batch_size, in_place=not is_torch)

    def _stream(
        self, model: WindowModel, manner: Manner, strips: Iterable[Strip], total: int
    ) -> Iterator[tuple[Where, Array]]:
        """Values of the `total` windows of some strips: (flat positions, values)."""
        form = model.form(self.grid.kernel_size, self.view)

        def size() -> int:
            return model.limit.of(self.batch_size)

        for where, batch in batches(manner, strips, total, size, form.allocate, form.convert):
            values = model.values(batch, self.grid.ndim)
            del batch  # so that its memory can be used for the next
            if values.shape[1:] != self.layout.shape:
                found = Layout.of(values, self.grid.ndim)
                raise ValueError(
                    f"the model gave {found}, where its first output had {self.layout}"
                )
            yield where, values

    def _check(self, result: Array, block: WindowBlock, kept: Array | None) -> None:
        """Refuse values that are not finite, of the windows of a block that were computed."""
        where = np.arange(block.count) if kept is None else np.flatnonzero(kept)

        def named(i: int) -> str:
            places = np.unravel_index(where[i], block.shape)
            window = [int(p) + s for p, s in zip(places, block.start, strict=True)]
            return window_name(window, self.grid.origin(window))

        check_finite(result if kept is None else result[where], named)

    def _arranged(self, result: Array, block: WindowBlock) -> Array:
        """(windows, k, *cells) as the block of the result that it is."""
        ndim, width = self.grid.ndim, result.shape[1]
        result = np.moveaxis(result.reshape(*block.shape, *result.shape[1:]), ndim, 0)
        if self.layout.cells:
            # (k, rows, columns, h, w) -> (k, rows, h, columns, w)
            order = [a for axis in range(ndim) for a in (1 + axis, 1 + ndim + axis)]
            extent = (n * c for n, c in zip(block.shape, self.cells, strict=True))
            result = result.transpose(0, *order).reshape(width, *extent)
        return result if self.layout.outputs else result[0]

    def write(self, target: Any, index: Index, values: Array) -> None:
        """Write one block, which is one chunk."""
        places = tuple(
            slice(s.start * c, s.stop * c)
            for s, c in zip(self.block(index).slices, self.cells, strict=True)
        )
        with self._context(index):
            try:
                inline.write(target, (*(slice(None) for _ in self.lead), *places), values)
            except OSError as error:
                raise write_failure(f"the chunk of block {index}", error) from error

    @contextlib.contextmanager
    def _context(self, index: Index) -> Iterator[None]:
        """Say in which block an error happened."""
        try:
            yield
        except Exception as error:
            block = self.block(index)
            spans = ", ".join(
                f"{a}:{b}" for a, b in zip(block.region.origin, block.region.stop, strict=True)
            )
            last = tuple(s.stop - 1 for s in block.slices)
            error.add_note(f"in windows {block.start} to {last}, pixels [{spans}] (block {index})")
            raise


# ------------------------------------------------------------------------- Dask arrays
class Part:
    """The image, for one block: whole in this process, narrowed to its pixels when it travels."""

    def __init__(self, view: ImageView, region: Region) -> None:
        self.view, self.region = view, region

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self.view.narrowed(self.region), self.region)


def image_parts(view: ImageView, regions: Mapping[Index, Region], name: str) -> da.Array:
    """The image for regions of it, as an array of one element for each index.

    Pixels that are persisted on a cluster are delivered by it.
    """
    layer: dict[Any, Any] = {}
    delivered: list[da.Array] = []
    for index, region in regions.items():
        key = (name, *index)
        if view.remote is None:
            layer[key] = DataNode(key, Part(view, region))
            continue
        pixels = view.delivery(region).rechunk(-1)
        delivered.append(pixels)
        first = TaskRef((pixels.name, *(0,) * pixels.ndim))
        there = DataNode(None, view.detached(region))
        layer[key] = Task(key, _delivered, there, DataNode(None, region), first)
    graph = HighLevelGraph.from_collections(name, layer, dependencies=delivered)
    ends = np.max(list(regions), axis=0) + 1
    chunks = tuple((1,) * int(n) for n in ends)
    return da.Array(graph, name, chunks, meta=np.empty((0,) * len(chunks), object))


def _delivered(view: ImageView, region: Region, values: Array) -> Part:
    return Part(view.attached(values), region)


def lazy(blocks: WindowBlocks, model: Shipped, name: str) -> da.Array:
    """The heatmap as a Dask array of float32, nothing of which is written.

    By what stands before the token in its `name`, ``heatmap-<token>``, Dask's dashboard counts
    blocks. The pixels of an array in memory are sent block by block.
    """
    return _mapped(blocks, model, name, name.rpartition("-")[2], chunks=blocks.chunks, dtype="f4")


def written(
    blocks: WindowBlocks,
    model: Shipped,
    target: Any,
    pending: Iterable[Index],
    *,
    travels: bool,
    split: bool,
) -> tuple[Mapping[Any, Any], Mapping[Any, Index]]:
    """The graph that writes pending blocks of the same: for `daskdmed.core.work.Job`.

    With `travels` blocks may be computed in other processes, as those of `lazy`; with `split`
    pixels are read by tasks of their own.
    """
    run = uuid.uuid4().hex
    flags = _mapped(
        blocks,
        model,
        f"heatmap-{run}",
        run,
        model_key=f"heatmap-model-{model.name}",
        target=delayed(target, name=f"heatmap-target-{run}", traverse=False),
        travels=travels,
        split=split,
        chunks=_ones(blocks),
        dtype=bool,
    )
    keys = {(flags.name, *(0,) * len(blocks.lead), *index): index for index in pending}
    return convert_legacy_graph(dict(flags.dask.cull(set(keys)))), keys


def _mapped(
    blocks: WindowBlocks,
    model: Shipped,
    name: str,
    token: str,
    *,
    model_key: str | None = None,
    target: Any = None,
    travels: bool = True,
    split: bool = False,
    **what: Any,
) -> da.Array:
    """`_values` mapped over the blocks of an image.

    A `model_key` is for models that several arrays share. The pixels of an array that is
    persisted on a cluster are taken from there by Dask.
    """
    sources: list[Any] = []
    lead = (0,) * len(blocks.lead)
    if travels and type(blocks.view).narrowed is not ImageView.narrowed:
        regions = {(*lead, *index): blocks.region(index) for index in blocks.indexes()}
        sources = [image_parts(blocks.view, regions, f"heatmap-image-{token}")]
        everything = Region((0,) * blocks.grid.ndim, blocks.view.spatial_shape)
        blocks = replace(blocks, view=blocks.view.detached(everything))
    # keys of their own, so that they are kept and sent once
    shared = {
        "blocks": delayed(blocks, name=f"heatmap-blocks-{token}", traverse=False),
        "model": delayed(model, name=model_key or f"heatmap-model-{token}", traverse=False),
    }
    if split:
        pixels = da.map_blocks(
            _read,
            *sources,
            blocks=shared["blocks"],
            chunks=_ones(blocks),
            dtype=blocks.view.dtype,
            meta=np.empty((0,) * len(blocks.chunks), blocks.view.dtype),
            name=f"heatmap-read-{token}",
        )
        # as a plain graph, so that it is not fused with what follows
        sources = [da.Array(dict(pixels.dask), pixels.name, pixels.chunks, pixels.dtype)]
    return da.map_blocks(
        _values,
        *sources,
        **shared,
        **({} if target is None else {"target": target}),
        meta=np.empty((*lead, *(0,) * blocks.grid.ndim), what["dtype"]),
        name=name,
        **what,
    )


def _ones(blocks: WindowBlocks) -> tuple[tuple[int, ...], ...]:
    """Chunks of one element for each block."""
    return tuple((1,) * len(c) for c in blocks.chunks)


def _read(part: Part | None = None, *, blocks: WindowBlocks, block_id: Index) -> Array:
    view = blocks.view if part is None else part.view
    return blocks.read(view, block_id[len(blocks.lead) :])


def _values(
    source: Part | Array | None = None,
    *,
    blocks: WindowBlocks,
    model: Shipped,
    target: Any = None,
    block_id: Index,
) -> Array:
    """Values of a block; with a `target` they are written into it, and a flag is given."""
    index = block_id[len(blocks.lead) :]
    part = blocks.view if source is None else source
    values = blocks.values(model, index, part.view if isinstance(part, Part) else part)
    if target is None:
        return values
    blocks.write(target, index, values)
    return np.ones((1,) * values.ndim, bool)
