"""The heatmap of one image as work to do: its store, and the blocks that are left.

Preparing opens the image, asks the model for the shape of its values, and creates or resumes
the store; nothing is computed. Not covered: what a block is (`daskdmed.inference.blocks`), who
computes (`daskdmed.core.work`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from daskdmed.cohort.sources import Image
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.fingerprint import fingerprint
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.core.work import Index
from daskdmed.images.context import ContextEdge, ContextLike, with_context
from daskdmed.inference import blocks as blockwise
from daskdmed.inference.blocks import WindowBlocks
from daskdmed.inference.inputs import mask_over, windows_inside, windows_per_block
from daskdmed.inference.models.shipped import Shipped
from daskdmed.inference.models.values import Layout
from daskdmed.inference.models.window import WindowModel
from daskdmed.inference.resultjob import ResultJob
from daskdmed.store.location import Location
from daskdmed.store.results.georeference import Georeference
from daskdmed.store.results.resumable import ResultSpec
from daskdmed.tiling.grid import Edge, OverlapLike, PerAxis, WindowGrid, spatial_axes

logger = logging.getLogger("daskdmed.inference")


class ModelFacts:
    """What is learnt of a model once: its fingerprint, and its layout per kind of window."""

    def __init__(self, model: WindowModel, placed: WindowModel) -> None:
        self._placed = placed
        self._layouts: dict[tuple[Any, ...], Layout] = {}
        parts: dict[str, Any] = {"model": model.fingerprint}
        # values depend on these; left out when off, as in stores of earlier versions
        if model.autocast:
            parts["autocast"] = str(model.autocast)
        if model.channels_last:
            parts["channels_last"] = True
        self.parameters: Mapping[str, Any] = parts

    def layout(self, view: ImageView, kernel_size: tuple[int, ...], batch_size: int) -> Layout:
        """Shape of the values of a window."""
        kind = (kernel_size, tuple(view.shape[len(kernel_size) :]), str(view.dtype))
        if kind not in self._layouts:
            self._layouts[kind] = self._placed.layout(view, kernel_size, batch_size)
        return self._layouts[kind]


@dataclass(frozen=True)
class Settings:
    """What a call says about every image. See `daskdmed.inference.heatmap.heatmap`."""

    kernel_size: PerAxis
    stride: PerAxis | None = None
    overlap: OverlapLike | None = None
    edge: Edge = "pad"
    batch_size: int = 64
    mask_fraction: float = 0.0
    block_windows: PerAxis | None = None
    context: ContextLike | None = None
    context_edge: ContextEdge = "reflect"

    def __post_init__(self) -> None:
        if int(self.batch_size) != self.batch_size or self.batch_size < 1:
            raise UsageError(f"batch_size must be a whole number >= 1, got {self.batch_size!r}")

    @property
    def ndim(self) -> int:
        """Spatial axes."""
        return spatial_axes(self.kernel_size)

    def prepare(
        self, image: Image, mask: Any, facts: ModelFacts
    ) -> tuple[WindowBlocks, ResultSpec]:
        """Open an image, and lay out its windows and its result."""
        view = with_context(image.view(), self.context, self.context_edge)
        grid = WindowGrid.of(
            view.spatial_shape,
            self.kernel_size,
            stride=self.stride,
            overlap=self.overlap,
            edge=self.edge,
        )
        if not len(grid):
            raise GeometryError(
                f"no window of {grid.kernel_size} pixels lies inside an image of {grid.shape}; "
                "edge='pad' or 'shift' keeps windows over the border, or use a finer level"
            )
        keep = windows_inside(mask_over(mask, image, view), view, grid, self.mask_fraction)
        shape = windows_per_block(grid, view, self.block_windows)
        layout = facts.layout(view, grid.kernel_size, self.batch_size)
        _check_maps(layout, grid)
        blocks = WindowBlocks(view, grid, shape, keep, self.batch_size, layout)
        return blocks, _spec(blocks, image.parameters, facts)


class HeatmapJob(ResultJob):
    """The blocks of one image that are not done yet."""

    def __init__(
        self,
        blocks: WindowBlocks,
        spec: ResultSpec,
        model: Shipped,
        location: Location,
        *,
        resume: bool,
        overwrite: bool,
        travels: bool,
        split: bool,
    ) -> None:
        super().__init__(location, spec, resume=resume, overwrite=overwrite)
        self._blocks, self._model = blocks, model
        self.block_bytes = blocks.block_bytes
        self._travels, self._split = travels, split
        kept = blocks.keep
        self.windows = len(blocks.grid) if kept is None else int(np.count_nonzero(kept))
        self._pending = []
        for index in list(self.store.pending()):
            if blocks.is_empty(index):
                self.store.mark(index)  # the fill value is the result
            else:
                self._pending.append(index)
        self.total, self.finished = self.store.total, self.store.finished
        logger.info("%s: %d of %d blocks to compute", location, len(self._pending), self.total)

    def graph(self) -> tuple[Mapping[Any, Any], Mapping[Any, Index]]:
        """A task per block that reads, computes and writes it."""
        return blockwise.written(
            self._blocks,
            self._model,
            self.store.array,
            self._pending,
            travels=self._travels,
            split=self._split,
        )

    def mark(self, index: Index, result: Any) -> None:
        """A block was written."""
        super().mark(index, result)
        self.finished += 1


def lazy(blocks: WindowBlocks, spec: ResultSpec, model: Shipped) -> da.Array:
    """The heatmap of an image as a lazy array, of which nothing is written."""
    return blockwise.lazy(blocks, model, f"heatmap-{tokenize(spec)}")


def _check_maps(layout: Layout, grid: WindowGrid) -> None:
    """Maps of windows make up one map only where the windows lie side by side."""
    if layout.cells and (grid.stride != grid.kernel_size or grid.edge == "shift"):
        raise UsageError(
            f"the model gives {layout}; they make up a heatmap where windows lie side by side "
            f"(stride == kernel_size, edge 'pad' or 'drop'), not with kernel_size="
            f"{grid.kernel_size}, stride={grid.stride}, edge={grid.edge!r}. "
            "daskdmed.predict blends maps of overlapping windows"
        )


def _spec(blocks: WindowBlocks, asked: Mapping[str, Any], facts: ModelFacts) -> ResultSpec:
    """Everything that the values depend on goes into the parameters; `batch_size` does not."""
    view, grid, layout, cells = blocks.view, blocks.grid, blocks.layout, blocks.cells
    kernel, stride = (
        tuple(_whole(v / c) for v, c in zip(values, cells, strict=True))
        for values in (grid.kernel_size, grid.stride)
    )
    keep: Array | None = blocks.keep
    parameters = {
        "image": view.token,
        "shape": view.shape,
        **asked,
        "kernel_size": grid.kernel_size,
        "stride": grid.stride,
        "edge": grid.edge,
        **facts.parameters,
        "mask": None if keep is None else fingerprint(keep),
        "block_windows": blocks.shape,
        "outputs": layout.outputs,
        **({"cells": layout.cells} if layout.cells else {}),
    }
    counts = tuple(n * c for n, c in zip(grid.counts, cells, strict=True))
    chunk = tuple(n * c for n, c in zip(blocks.shape, cells, strict=True))
    place = Georeference.of(view, kernel, stride, counts)
    return ResultSpec("heatmap", counts, layout.outputs, chunk, place, view.name, parameters)


def _whole(value: float) -> Any:
    """A cell of a map need not be whole pixels; integers stay integers."""
    return int(value) if value == int(value) else value
