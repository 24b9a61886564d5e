"""Dicts of a dataset as scans: lazy images and masks of daskdmed, slices in their order.

A scan is made of all dicts of one ``scan_id``. Of slices in files it is the stack of these, sorted
by ``slice_id``; else an array of an HDF5 file. What users see is rows x columns x slices, whatever
lies on the disk.

Not covered: which parts of a scan make a batch (`daskdmed.compat.medsegpy.data.data_loader`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np

from daskdmed.cohort.annotations.categories import Categories
from daskdmed.cohort.record import Record
from daskdmed.compat.medsegpy.data.data_utils import categories_of
from daskdmed.core.errors import DatasetError, GeometryError, listing
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.images.lazy import to_dask

logger = logging.getLogger("daskdmed.compat")

#: arrays of the files, by what they hold
_SLICE, _VOLUME, _MASKS = "data", "volume", "seg"
#: voxels along an axis of a block of a lazy scan
_BLOCK = 128


class Scan:
    """One scan. The order of its slices is that of their numbers.

    `sliced`: whether every dict is a slice in a file of its own; arrays are then (slices, rows,
    columns) until they are shown. `background` of masks as of `Categories`.
    """

    def __init__(
        self,
        scan_id: str,
        dicts: Sequence[Mapping[str, Any]],
        *,
        sliced: bool,
        singlefile: bool = False,
        preload: bool = False,
    ) -> None:
        self.scan_id, self.sliced = scan_id, sliced
        self.dicts = _in_order(scan_id, dicts) if sliced else tuple(dicts)
        if not sliced and len(dicts) > 1:
            raise DatasetError(
                f"scan {scan_id!r} has {len(dicts)} dicts; a loader of whole scans takes one for "
                "each. Slices in files are for DefaultDataLoader and S25dDataLoader"
            )
        self._singlefile, self._preload = singlefile, preload

    @property
    def facts(self) -> dict[str, Any]:
        """What is handed on of the scan: whatever begins with "scan", and the subject."""
        first = self.dicts[0]
        found = {key: value for key, value in first.items() if str(key).startswith("scan")}
        found["scan_id"] = self.scan_id
        if "subject_id" in first:
            found["subject_id"] = first["subject_id"]
        return found

    @property
    def labelled(self) -> bool:
        """Whether there are masks; DatasetError where there are of some slices only."""
        with_masks = [d for d in self.dicts if d.get("sem_seg_file")]
        if with_masks and len(with_masks) < len(self.dicts):
            lacking = [d.get("file_name") for d in self.dicts if not d.get("sem_seg_file")]
            raise DatasetError(
                f"scan {self.scan_id!r} has masks of {len(with_masks)} of {len(self.dicts)} "
                f"slices, not of {listing(lacking)}; add them, or leave the scan out"
            )
        return bool(with_masks)

    @functools.cached_property
    def record(self) -> Record:
        """The image as it lies on the disk."""
        return self._kept(self._record("file_name", _SLICE, _VOLUME))

    @functools.cached_property
    def view(self) -> ImageView:
        """The image, to be read."""
        return self.record.view(spatial_ndim=3)

    @functools.cached_property
    def masks(self) -> ImageView | None:
        """The masks as they lie on the disk, to be read; None of a scan without."""
        if not self.labelled:
            return None
        record = self._kept(self._record("sem_seg_file", _SLICE, _MASKS))
        view = record.view(spatial_ndim=3)
        if view.spatial_shape != self.view.spatial_shape:
            raise GeometryError(
                f"scan {self.scan_id!r}: the masks are {view.spatial_shape}, the image "
                f"{self.view.spatial_shape}"
            )
        return view

    def shown(self, array: da.Array) -> da.Array:
        """An array with the axes of space first as rows x columns x slices."""
        return da.moveaxis(array, 0, 2) if self.sliced else array

    def image(self) -> da.Array:
        """The image, lazy: rows x columns x slices, and channels where it has any."""
        return self.shown(to_dask(self.view, _BLOCK))

    def truth(self, classes: Classes) -> da.Array | None:
        """The classes of each voxel, lazy: rows x columns x slices x classes."""
        if self.masks is None:
            return None
        raw = to_dask(self.masks, _BLOCK)
        if raw.ndim == 3:
            raw = raw[..., None]
        raw = raw.rechunk((*raw.chunks[:3], -1))
        count = classes.count(raw.shape[3])
        chunks = (*raw.chunks[:3], (count,))
        # without the empty array Dask would call it to learn what it gives
        empty = np.empty((0,) * 4, np.uint8)
        return self.shown(da.map_blocks(classes.of, raw, chunks=chunks, meta=empty))

    def __repr__(self) -> str:
        return f"<Scan {self.scan_id!r}: {len(self.dicts)} file(s)>"

    def _record(self, key: str, of_slice: str, of_volume: str) -> Record:
        # pixels outside are MedSegPy's, 0; with another IMG_PAD_MODE there are none
        if self.sliced:
            files = [_value(d, key) for d in self.dicts]
            return Record.stack(files, dataset=of_slice, background=0)
        first = self.dicts[0]
        path, dataset = _value(first, key), of_volume
        if self._singlefile:
            path, dataset = _value(first, "singlefile_path"), f"{path}/{of_volume}"
        return Record(path, dataset=dataset, background=0, backend="hdf5")

    def _kept(self, record: Record) -> Record:
        """The same with its voxels in memory, when they are wanted there."""
        if not self._preload:
            return record
        values = np.asarray(to_dask(record.view(spatial_ndim=3), _BLOCK).compute())
        # one block, of which parts are taken as they are
        return Record(array=da.from_array(values, chunks=-1), spatial_ndim=3, background=0)


class Classes:
    """What masks are made of: `CATEGORIES` and `INCLUDE_BACKGROUND` of a configuration."""

    def __init__(self, categories: Sequence[Any], background: bool) -> None:
        self.categories: Categories | None = categories_of(categories, background)
        self.background = bool(background)
        if self.categories is None:
            logger.warning("CATEGORIES is empty: every mask of the files is a class")

    def count(self, masks: int) -> int:
        """Classes, the background among them, of files with so many masks."""
        if self.categories is None:
            return masks + self.background
        return len(self.categories.channels)

    def of(self, masks: Array) -> Array:
        """Zeros and ones (..., classes) of masks (..., masks)."""
        return self._chosen(masks.shape[-1]).collate_channels(masks)

    def _chosen(self, masks: int) -> Categories:
        if self.categories is not None:
            return self.categories
        found = categories_of(range(masks), self.background)
        assert found is not None
        return found


def scans_of(dicts: Iterable[Mapping[str, Any]], **options: Any) -> list[Scan]:
    """Scans in the order in which they come first.

    Raises
    ------
    DatasetError
        No dicts, one without ``scan_id``, or slices that have no order.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for position, one in enumerate(dicts):
        if "scan_id" not in one and not options["sliced"]:
            # a file is a scan
            one = {**one, "scan_id": _value(one, "file_name")}
        if "scan_id" not in one:
            raise DatasetError(f"dict {position} has no scan_id; it has {listing(list(one))}")
        groups.setdefault(str(one["scan_id"]), []).append(one)
    if not groups:
        raise DatasetError("there are no dicts of a dataset; check what it was filtered by")
    return [Scan(scan_id, group, **options) for scan_id, group in groups.items()]


def _in_order(scan_id: str, dicts: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    numbers = [d.get("slice_id") for d in dicts]
    if len(dicts) == 1:
        return tuple(dicts)
    if None in numbers:
        raise DatasetError(
            f"scan {scan_id!r}: {numbers.count(None)} of {len(dicts)} slices have no slice_id, so "
            "that nobody knows their order"
        )
    twice = sorted({int(n) for n in numbers if n is not None and numbers.count(n) > 1})
    if twice:
        raise DatasetError(f"scan {scan_id!r}: slice_id {listing(twice)} is there twice")
    return tuple(sorted(dicts, key=lambda d: d["slice_id"]))


def _value(one: Mapping[str, Any], key: str) -> str:
    if not one.get(key):
        raise DatasetError(f"a dict has no {key!r}; it has {listing(list(one))}")
    return str(one[key])
