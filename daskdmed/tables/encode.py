"""`features`: what an encoder makes of every window of a cohort, one Parquet file per slide.

The blocks, models, masks and clusters are those of `daskdmed.heatmap`: features are computed
into a hidden store beside the table, which goes on where a run was cut off, and become rows
when the slide is complete.

Not covered: what is done with rows (`daskdmed.tables.read_windows`), training, and streams of
batches that the user processes (`daskdmed.tables.run_stream`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from daskdmed.cohort.sources import Image, ImagesLike
from daskdmed.core.errors import StoreError, UsageError
from daskdmed.core.files import write_failure
from daskdmed.core.places import local_path
from daskdmed.core.types import (
    LevelLike,
    MppLike,
    OnError,
    OnTileError,
    PathLike,
    PowerLike,
    RecordLike,
    SpacingLike,
)
from daskdmed.core.work import Index, Job
from daskdmed.images.channels import ChannelsLike
from daskdmed.inference.blocks import WindowBlocks
from daskdmed.inference.call import Call
from daskdmed.inference.heatmapjob import HeatmapJob, ModelFacts, Settings
from daskdmed.inference.models.outputs import Output
from daskdmed.inference.models.shipped import Shipped
from daskdmed.inference.models.window import Model, Transform
from daskdmed.loading.sliding.plan import ImageWindows
from daskdmed.store.location import Location, file_names, result_path
from daskdmed.store.results.resumable import ResultSpec, check_parameters
from daskdmed.tables.formats import ParquetFile, require_pyarrow, stored_facts
from daskdmed.tables.rows import WindowTable
from daskdmed.tiling.grid import Edge, OverlapLike, PerAxis
from daskdmed.tiling.imagegrid import ImageGrid

if TYPE_CHECKING:
    from distributed import Client


def features(
    dataset: ImagesLike,
    model: Model | PathLike,
    *,
    kernel_size: PerAxis,
    out: PathLike,
    stride: PerAxis | None = None,
    overlap: OverlapLike | None = None,
    level: LevelLike = 0,
    mpp: MppLike | None = None,
    power: PowerLike | None = None,
    spacing: SpacingLike | None = None,
    orientation: str | None = None,
    mask: ArrayLike | Mapping[Any, Any] | Any = None,
    mask_fraction: float = 0.0,
    edge: Edge = "pad",
    batch_size: int = 64,
    batch_tfms: Transform | None = None,
    devices: Sequence[Any] | Any = None,
    autocast: Any = None,
    channels_last: bool = False,
    output: Output | None = None,
    overwrite: bool = False,
    client: Client | None = None,
    resources: Mapping[str, float] | None = None,
    block_windows: PerAxis | None = None,
    record: RecordLike | None = None,
    channels: ChannelsLike | None = None,
    on_error: OnError = "raise",
    tile_error: OnTileError = "raise",
    progress: bool = False,
) -> Any:
    """Encode every window of every slide: a feature vector each, one Parquet file per slide.

    For runs of days: call it again with the same arguments and it goes on. Tables that are
    complete are left as they are, a slide that was cut off goes on at its next block, and what
    comes out is the same bit by bit. A table is there when it is complete, or not at all.

    Parameters
    ----------
    dataset, kernel_size, stride, overlap, mask, mask_fraction, edge
        Images and their windows, as for `daskdmed.heatmap`; ``mask=daskdmed.tissue_mask`` for
        windows with tissue.
    model : torch.nn.Module, path, torch.export.ExportedProgram or callable
        As for `daskdmed.heatmap`, for instance an encoder of timm's: ``(n, c, *kernel) -> (n, k)``.
        `batch_tfms` is the place for its normalisation.
    out : path
        The folder that gets ``<id>/<record>.parquet`` for each image, and the report of the
        run: ``run.json`` with versions, parameters and the fingerprint of the model (its seed is
        null, as nothing is drawn), and ``run.csv`` with a row per image (windows, seconds,
        windows/s where one run computed all, why it was left out).
    batch_size, batch_tfms, autocast, channels_last, output, client, resources, block_windows
        As for `daskdmed.heatmap`; the workers of `client` need to see `out`.
    devices : str, torch.device, or several of them
        Where the model runs in this process: ``["cuda:0", "cuda:1"]`` keeps a copy on each,
        among which the threads are shared out.
    overwrite : bool
        Replace tables of another model or of other parameters, which are else an error.
    level, mpp, power, spacing, orientation, record, channels, tile_error
        As for `daskdmed.heatmap`.
    on_error : {"raise", "skip"}
        "skip": images that cannot be opened or read are left out and reported, in the
        `failures` of the result and in ``run.csv``.
    progress : bool
        Show a progress bar over blocks.

    Returns
    -------
    dict of str to Path
        The table of every patient; `daskdmed.tables.read_windows` reads it. A row has patient,
        record, window (index_y, index_x), place in the level-0 frame (y, x), level, mpp, kernel
        and stride (see `daskdmed.tables.rows`) and ``features``, a list of k float32. Rows are
        in C order of windows. For a single image its path.

    Raises
    ------
    UsageError, GeometryError, ResolutionError
        Arguments that do not fit, or a model that gives no vectors.
    StoreError
        A table there is of other parameters or of another model, or cannot be written.
    DatasetError, ImageError
        As for `daskdmed.heatmap`.
    MissingExtraError
        pyarrow is not installed.

    Examples
    --------
    >>> daskdmed.tables.features(  # doctest: +SKIP
    ...     dataset, encoder, kernel_size=224, mpp=0.5, mask=daskdmed.tissue_mask,
    ...     out="features", devices=["cuda:0", "cuda:1"], on_error="skip",
    ... )
    """
    require_pyarrow()
    place: Any = out
    folder = local_path(place) if isinstance(place, (str, os.PathLike)) else None
    if folder is None:
        raise UsageError(f"out={out!r}: tables of features are written to a local folder")
    settings = Settings(
        kernel_size, stride, overlap, edge, batch_size, mask_fraction, block_windows
    )
    said = {**locals(), "out": folder, "device": devices}
    call = Call("features", dataset, said, settings.ndim)
    with call.ready():
        facts = ModelFacts(call.model, call.placed)
        names = file_names(image.key for image in call.images)

        def job(one: Image) -> Any:
            blocks, spec = settings.prepare(one, call.mask_of(one), facts)
            if blocks.layout.cells:
                raise UsageError(
                    f"the model gives {blocks.layout}; features are one vector per window, "
                    "(n, k): pool the maps within the model"
                )
            parameters = {**spec.parameters, "kind": "features"}
            spec = replace(spec, kind="features", parameters=parameters)
            path = Path(result_path(folder, one.key, one.record_name, names, ".parquet"))
            windows = ImageWindows(
                one.patient, one.record_name, blocks.view, blocks.grid, blocks.shape, blocks.keep,
                one.resolution.level,
            )  # fmt: skip
            table = FeatureTable(path, windows, spec.parameters)
            if table.is_done(overwrite):
                return DoneJob(table)
            return FeatureJob(
                table, blocks, spec, call.shipped, travels=client is not None, split=bool(resources)
            )

        return call.run(job, report=True)


class FeatureTable:
    """The table of one image, and the hidden store that it is made of."""

    def __init__(self, path: Path, windows: ImageWindows, parameters: Mapping[str, Any]) -> None:
        self.path, self.windows, self.parameters = path, windows, parameters
        self.staging = Location.of(path.with_name(f".{path.stem}.features.zarr"))

    def is_done(self, overwrite: bool) -> bool:
        """Whether it is there, complete; StoreError where something of other parameters is."""
        if self.path.exists() and self._is_same(self.path, overwrite, stored_facts):
            self.staging.remove()  # a run may have been killed before it could do so
            return True
        begun = self.staging.holds_group()
        if begun and not self._is_same(self.staging, overwrite, _facts_of):
            self.staging.remove()
        return False

    def _is_same(self, place: Any, overwrite: bool, facts: Callable[[Any], Any]) -> bool:
        """Whether what is there was made with the same parameters."""
        hint = "A model whose fingerprint changes though it computes the same can define "
        try:
            stored = facts(place).get("parameters") or {}
            check_parameters(place, stored, self.parameters, hint + "__dask_tokenize__.")
        except StoreError:
            if not overwrite:
                raise
            return False
        return True

    def write(self, array: Any) -> Path:
        """Make the table of the values (k, *counts) or (*counts) of all windows."""
        image = self.windows.described
        parts = self._parts(image, array)
        first = next(parts)
        file = ParquetFile(self.path, first, {"parameters": dict(self.parameters)})
        file.column = "features"
        file.know([image])
        try:
            for rows in itertools.chain([first], parts):
                if len(rows):
                    file.append(rows)
            return file.finish()
        except BaseException:
            file.abort()
            raise

    def _parts(self, image: ImageGrid, array: Any) -> Iterator[WindowTable]:
        """Rows of one row of blocks after the other."""
        counts, step, keep = image.grid.counts, self.windows.block_windows[0], self.windows.keep
        lead = array.ndim - len(counts)
        for start in range(0, counts[0], step):
            values = np.asarray(array[(slice(None),) * lead + (slice(start, start + step),)])
            values = np.moveaxis(values, 0, -1) if lead else values[..., None]
            kept = np.ones(values.shape[:-1], bool) if keep is None else keep[start : start + step]
            indices = np.argwhere(kept)
            indices[:, 0] += start
            yield WindowTable.of_grid(image, indices, values[kept])


def _facts_of(place: Location) -> dict[str, Any]:
    own: Any = place.open("r").attrs.get("daskdmed", {})
    return dict(own)


class FeatureJob(HeatmapJob):
    """The blocks of one image that are not done yet; then its table."""

    def __init__(
        self,
        table: FeatureTable,
        blocks: WindowBlocks,
        spec: ResultSpec,
        model: Shipped,
        *,
        travels: bool,
        split: bool,
    ) -> None:
        try:
            table.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failure(table.path.parent, error) from error
        super().__init__(
            blocks, spec, model, table.staging, resume=True, overwrite=False, travels=travels,
            split=split,
        )  # fmt: skip
        self.table, self.was_done = table, False

    def result(self) -> Path:
        """The table in its place."""
        path = self.table.write(self.store.array)
        self.table.staging.remove()
        return path

    def state(self) -> str:
        """How far it is."""
        done = f"{self.store.finished} of {self.store.total} {self.unit} are done"
        return f"{done} and kept beside {self.table.path}; call again to go on"


class DoneJob(Job):
    """A table that is complete: nothing to do."""

    name = "features"
    was_done = goes_on = True

    def __init__(self, table: FeatureTable) -> None:
        self.location, self.windows = table.path, table.windows.count
        self.image = table.windows.view.name
        self.ended: Any = None

    def graph(self) -> tuple[Mapping[Any, Any], Mapping[Any, Index]]:
        """No task."""
        return {}, {}

    def finish(self) -> Path:
        """The table."""
        self.ended()
        return self.location


__all__ = ["features"]
