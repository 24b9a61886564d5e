"""daskdmed: feeds neural networks from images too large to load.

Slides and volumes are lazy Dask arrays, a persistence scheduler keeps rotating big chunks
of them in memory, small chunks are cropped from those into batches, and sliding-window
results go back to Zarr. Names are imported on first use (PEP 562), so that importing the
package costs milliseconds and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: public name -> module that defines it
_EXPORTS: dict[str, str] = {
    "Slide": "daskdmed.images.slide",
    "open_slide": "daskdmed.images.slide",
    "open_slides": "daskdmed.images.slide",
    "Record": "daskdmed.cohort.record",
    "Patient": "daskdmed.cohort.record",
    "Dataset": "daskdmed.cohort.dataset",
    "TissueMask": "daskdmed.cohort.tissuemask",
    "tissue_mask": "daskdmed.cohort.tissue",
    "tissue_masks": "daskdmed.cohort.tissue",
    "LightDL": "daskdmed.loading.lightdl",
    "BigChunk": "daskdmed.loading.chunks",
    "SmallChunk": "daskdmed.loading.chunks",
    "BigChunkLoader": "daskdmed.loading.collectors",
    "SmallChunkCollector": "daskdmed.loading.collectors",
    "stateful": "daskdmed.loading.collectors",
    "Quota": "daskdmed.loading.quotas",
    "advise": "daskdmed.loading.advise",
    "Weighted": "daskdmed.persistence.policy",
    "LabelBalanced": "daskdmed.persistence.policy",
    "LeastVisitedFirst": "daskdmed.persistence.policy",
    "Sequential": "daskdmed.persistence.policy",
    "OnePass": "daskdmed.persistence.policy",
    "GridExplorer": "daskdmed.loading.explorers",
    "SpiralExplorer": "daskdmed.loading.explorers",
    "CircleExplorer": "daskdmed.loading.explorers",
    "LowDiscrepancyExplorer": "daskdmed.loading.explorers",
    "Explorer": "daskdmed.loading.explorers",
    "heatmap": "daskdmed.windows.heatmap",
    "predict": "daskdmed.windows.predict",
    "infer": "daskdmed.windows.infer",
    "confusion": "daskdmed.windows.metrics",
    "SlidingWindowDL": "daskdmed.windows.loader",
    "ProcessedPiece": "daskdmed.windows.streams.collector",
    "StreamCollector": "daskdmed.windows.streams.collector",
    "StreamWriter": "daskdmed.windows.streams.writer",
    "read_windows": "daskdmed.windows.streams.reading",
    "run_stream": "daskdmed.windows.streams.collector",
    "add_pyramid": "daskdmed.store.pyramid",
    "argmax_labels": "daskdmed.store.labels",
    "export_heatmap": "daskdmed.store.export",
    "heatmap_contours": "daskdmed.store.geojson",
    "windows_to_heatmap": "daskdmed.windows.streams.raster",
    "write_labels": "daskdmed.store.labels",
    "slide_to_ome_zarr": "daskdmed.store.convert",
    "Annotation": "daskdmed.cohort.annotations.annotation",
    "Annotations": "daskdmed.cohort.annotations.table",
    "Categories": "daskdmed.cohort.categories",
    "PatchCoordinates": "daskdmed.cohort.annotations.patches",
    "read_annotations": "daskdmed.cohort.annotations.reading",
    "target_view": "daskdmed.cohort.annotations.view",
    "Region": "daskdmed.types",
    "DaskdmedError": "daskdmed.errors",
}
_SUBMODULES = frozenset(
    {"cohort", "errors", "images", "loading", "persistence", "plot", "samples", "store"}
    | {"testing", "transforms", "types", "windows"}
)

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from daskdmed.cohort.annotations.annotation import Annotation as Annotation
    from daskdmed.cohort.annotations.patches import PatchCoordinates as PatchCoordinates
    from daskdmed.cohort.annotations.reading import read_annotations as read_annotations
    from daskdmed.cohort.annotations.table import Annotations as Annotations
    from daskdmed.cohort.annotations.view import target_view as target_view
    from daskdmed.cohort.categories import Categories as Categories
    from daskdmed.cohort.dataset import Dataset as Dataset
    from daskdmed.cohort.record import Patient as Patient
    from daskdmed.cohort.record import Record as Record
    from daskdmed.cohort.tissue import tissue_mask as tissue_mask
    from daskdmed.cohort.tissue import tissue_masks as tissue_masks
    from daskdmed.cohort.tissuemask import TissueMask as TissueMask
    from daskdmed.errors import DaskdmedError as DaskdmedError
    from daskdmed.images.slide import Slide as Slide
    from daskdmed.images.slide import open_slide as open_slide
    from daskdmed.images.slide import open_slides as open_slides
    from daskdmed.loading.advise import advise as advise
    from daskdmed.loading.chunks import BigChunk as BigChunk
    from daskdmed.loading.chunks import SmallChunk as SmallChunk
    from daskdmed.loading.collectors import BigChunkLoader as BigChunkLoader
    from daskdmed.loading.collectors import SmallChunkCollector as SmallChunkCollector
    from daskdmed.loading.collectors import stateful as stateful
    from daskdmed.loading.explorers import CircleExplorer as CircleExplorer
    from daskdmed.loading.explorers import Explorer as Explorer
    from daskdmed.loading.explorers import GridExplorer as GridExplorer
    from daskdmed.loading.explorers import LowDiscrepancyExplorer as LowDiscrepancyExplorer
    from daskdmed.loading.explorers import SpiralExplorer as SpiralExplorer
    from daskdmed.loading.lightdl import LightDL as LightDL
    from daskdmed.loading.quotas import Quota as Quota
    from daskdmed.persistence.policy import LabelBalanced as LabelBalanced
    from daskdmed.persistence.policy import LeastVisitedFirst as LeastVisitedFirst
    from daskdmed.persistence.policy import OnePass as OnePass
    from daskdmed.persistence.policy import Sequential as Sequential
    from daskdmed.persistence.policy import Weighted as Weighted
    from daskdmed.store.convert import slide_to_ome_zarr as slide_to_ome_zarr
    from daskdmed.store.export import export_heatmap as export_heatmap
    from daskdmed.store.geojson import heatmap_contours as heatmap_contours
    from daskdmed.store.labels import argmax_labels as argmax_labels
    from daskdmed.store.labels import write_labels as write_labels
    from daskdmed.store.pyramid import add_pyramid as add_pyramid
    from daskdmed.types import Region as Region
    from daskdmed.windows.heatmap import heatmap as heatmap
    from daskdmed.windows.infer import infer as infer
    from daskdmed.windows.loader import SlidingWindowDL as SlidingWindowDL
    from daskdmed.windows.metrics import confusion as confusion
    from daskdmed.windows.predict import predict as predict
    from daskdmed.windows.streams.collector import ProcessedPiece as ProcessedPiece
    from daskdmed.windows.streams.collector import StreamCollector as StreamCollector
    from daskdmed.windows.streams.collector import run_stream as run_stream
    from daskdmed.windows.streams.raster import windows_to_heatmap as windows_to_heatmap
    from daskdmed.windows.streams.reading import read_windows as read_windows
    from daskdmed.windows.streams.writer import StreamWriter as StreamWriter


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"daskdmed.{name}")
    raise AttributeError(f"module 'daskdmed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_SUBMODULES})
