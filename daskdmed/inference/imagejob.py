"""The heatmap of one image as work to do: its store, the blocks that are left, its end.

Preparing opens the image, asks the model for the shape of its values, and creates or resumes
the store; nothing is computed. Not covered: who computes (`daskdmed.inference.execute`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da

from daskdmed.core.errors import GeometryError, StoreError, UsageError
from daskdmed.core.fingerprint import fingerprint
from daskdmed.core.resolution import Resolution
from daskdmed.core.types import Array, OnTileError
from daskdmed.core.view import ImageView
from daskdmed.inference.inputs import as_view, windows_inside, windows_per_block
from daskdmed.inference.models.values import Layout
from daskdmed.inference.models.window import WindowModel
from daskdmed.inference.run import BlockJob, BlockTask, make_jobs
from daskdmed.store.location import Location
from daskdmed.store.results.georeference import Georeference
from daskdmed.store.results.resumable import ResultSpec, ResultStore, lazy_result, open_result
from daskdmed.tiling.grid import Edge, OverlapLike, PerAxis, WindowGrid, spatial_axes

logger = logging.getLogger("daskdmed.inference")
#: cells per axis of a chunk of the returned Dask array


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
    tile_error: OnTileError = "raise"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if int(self.batch_size) != self.batch_size or self.batch_size < 1:
            raise UsageError(f"batch_size must be a whole number >= 1, got {self.batch_size!r}")

    @property
    def ndim(self) -> int:
        """Spatial axes."""
        return spatial_axes(self.kernel_size)


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


class ImageJob:
    """The blocks of one image that are not done yet. Make it with `ImageJob.prepare`.

    Parameters
    ----------
    location, place : Location
        Where the result shall be, and where it is written until it is complete.
    store : ResultStore
        At `place`.
    task : BlockTask
        What is done with a block.
    keep : ndarray of bool, optional
        Windows that are computed.
    """

    def __init__(
        self,
        location: Location,
        place: Location,
        store: ResultStore,
        task: BlockTask,
        keep: Array | None,
    ) -> None:
        self.location, self.place, self.store, self.task = location, place, store, task
        self._began = time.time()
        self._jobs = []
        for job in make_jobs(task.grid, _block_windows(store.spec, task), store.pending(), keep):
            if job.keep is not None and not job.keep.any():
                store.mark(job.index)  # the fill value is the result
            else:
                self._jobs.append(job)
        self.left = len(self._jobs)
        logger.info("%s: %d of %d blocks to compute", location, self.left, store.total)

    @classmethod
    def prepare(
        cls,
        image: Any,
        resolution: Resolution,
        location: Location,
        mask: Any,
        facts: ModelFacts,
        settings: Settings,
    ) -> ImageJob:
        """Open the image and its store.

        Raises
        ------
        GeometryError, ResolutionError, UsageError
            Arguments that do not fit the image, or a model whose values do not.
        StoreError
            See `daskdmed.store.results.resumable.open_result`.
        ImageError
            The image cannot be opened.
        """
        view = as_view(image, settings.ndim, resolution, settings.tile_error)
        grid = WindowGrid.of(
            view.shape[: view.spatial_ndim],
            settings.kernel_size,
            stride=settings.stride,
            overlap=settings.overlap,
            edge=settings.edge,
        )
        if not len(grid):
            raise GeometryError(
                f"no window of {grid.kernel_size} pixels lies inside an image of {grid.shape}; "
                "edge='pad' or 'shift' keeps windows over the border, or use a finer level"
            )
        keep = windows_inside(mask, view, grid, settings.mask_fraction)
        blocks = windows_per_block(grid, view, settings.block_windows)
        layout = facts.layout(view, grid.kernel_size, settings.batch_size)
        _check_maps(layout, grid)
        spec = _spec(view, grid, blocks, layout, resolution, facts, keep)
        store, place = open_result(
            location, spec, resume=settings.resume, overwrite=settings.overwrite
        )
        task = BlockTask(view, grid, store.array, settings.batch_size, layout.outputs, layout.cells)
        return cls(location, place, store, task, keep)

    def jobs(self) -> Iterator[BlockJob]:
        """The blocks to compute, in C order."""
        yield from self._jobs

    def done(self, index: tuple[int, ...]) -> None:
        """A block was written."""
        self.store.mark(index)
        self.left -= 1

    def flush(self, error: BaseException | None = None) -> None:
        """Record what is done, without hiding the error that ended the run."""
        try:
            self.store.flush()
        except StoreError as failed:
            if error is None:
                raise
            error.add_note(str(failed))

    def finish(self) -> da.Array:
        """Put the result in its place. All blocks must be done.

        Returns
        -------
        dask.array.Array
            The result, lazy.
        """
        self.store.flush()
        self._sweep()
        if self.place != self.location:
            self.location.replace(self.place)
        return lazy_result(self.location, self.store.spec)

    def state(self) -> str:
        """How far it is, and how to go on."""
        store = self.store
        kept = f"{store.finished} of {store.total} blocks are done"
        if self.location.in_memory:
            return f"{kept}; give out= to keep them when a run stops"
        return f"{kept} and kept in {self.location}; call again with resume=True to go on"

    def _sweep(self) -> None:
        """Remove halves of files that killed runs left beside the chunks."""
        folder: Path | None = self.place.path
        if folder is None:
            return
        for file in folder.rglob("*.partial"):
            try:
                if file.stat().st_mtime < self._began:
                    file.unlink()
            except FileNotFoundError:
                continue  # a write that ended just now


def _block_windows(spec: ResultSpec, task: BlockTask) -> tuple[int, ...]:
    cells = task.cells or (1,) * task.grid.ndim
    return tuple(b // c for b, c in zip(spec.block_windows, cells, strict=True))


def _check_maps(layout: Layout, grid: WindowGrid) -> None:
    """Maps of windows make up one map only where the windows lie side by side."""
    if layout.cells and (grid.stride != grid.kernel_size or grid.edge == "shift"):
        raise UsageError(
            f"the model gives {layout}; they make up a heatmap where windows lie side by side "
            f"(stride == kernel_size, edge 'pad' or 'drop'), not with kernel_size="
            f"{grid.kernel_size}, stride={grid.stride}, edge={grid.edge!r}. "
            "daskdmed.predict blends maps of overlapping windows"
        )


def _spec(
    view: ImageView,
    grid: WindowGrid,
    block_windows: tuple[int, ...],
    layout: Layout,
    resolution: Resolution,
    facts: ModelFacts,
    keep: Array | None,
) -> ResultSpec:
    """Everything that the values depend on goes into the parameters; `batch_size` does not."""
    cells = layout.cells or (1,) * grid.ndim
    kernel, stride = (
        tuple(_whole(v / c) for v, c in zip(values, cells, strict=True))
        for values in (grid.kernel_size, grid.stride)
    )
    place = Georeference.of(view, kernel, stride)
    parameters = {
        "image": view.token,
        "shape": view.shape,
        "resolution": str(resolution),
        "kernel_size": grid.kernel_size,
        "stride": grid.stride,
        "edge": grid.edge,
        **facts.parameters,
        "mask": None if keep is None else fingerprint(keep),
        "block_windows": block_windows,
        "outputs": layout.outputs,
        **({"cells": layout.cells} if layout.cells else {}),
    }
    name = view.name
    counts = tuple(n * c for n, c in zip(grid.counts, cells, strict=True))
    chunk = tuple(n * c for n, c in zip(block_windows, cells, strict=True))
    return ResultSpec("heatmap", counts, layout.outputs, chunk, place, name, parameters)


def _whole(value: float) -> Any:
    """A cell of a map need not be whole pixels; integers stay integers."""
    return int(value) if value == int(value) else value
