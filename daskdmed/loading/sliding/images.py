"""From what users give a sliding-window loader to images with their windows.

A dataset, a patient, or a bare image becomes a list of `ImageWindows`: opened at its
resolution, its grid laid, its mask applied, its blocks chosen. No pixels are read, except
by masks that are functions of the patient and look at them.

Not covered: the order of work (`daskdmed.loading.sliding.plan`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeAlias

import numpy as np

from daskdmed.cohort.dataset import Dataset
from daskdmed.cohort.record import Patient, Record
from daskdmed.core.errors import (
    DaskdmedError,
    DatasetError,
    GeometryError,
    LoaderError,
    UsageError,
)
from daskdmed.core.resolution import Resolution
from daskdmed.core.types import Array, LevelLike, MppLike, PowerLike
from daskdmed.core.view import ImageView
from daskdmed.loading.sliding.plan import ImageWindows, fit_block, pixel_bytes
from daskdmed.loading.sliding.read import WindowFailure
from daskdmed.tiling.grid import Edge, OverlapLike, PerAxis, WindowGrid, per_axis, spatial_axes
from daskdmed.tiling.mask import kept_windows

logger = logging.getLogger("daskdmed.inference")

#: an array over the whole image, or an object with `data` and `scale` (level-0 pixels per
#: mask pixel along each axis); None delivers every window
MaskLike: TypeAlias = Any
#: one mask for every image, masks by patient id, or a function of the patient
MasksLike: TypeAlias = "MaskLike | Mapping[Any, MaskLike] | Callable[[Patient], MaskLike]"


@dataclass(frozen=True)
class Wish:
    """What is asked of every image.

    Parameters
    ----------
    kernel_size, stride, overlap, edge
        The grid, as `WindowGrid.of` takes it.
    level, mpp, power
        The resolution: each a value or a function of the patient.
    record : str or None
        Name of the record.
    mask : see `MasksLike`
        Which windows are delivered.
    min_mask : float
        Least covered share of a window.
    block_windows : int or sequence of int, optional
        Windows per load; chosen by `fit_block` when None.
    budget : int
        Bytes that two blocks must fit into.
    """

    kernel_size: PerAxis
    stride: PerAxis | None
    overlap: OverlapLike | None
    edge: Edge
    level: LevelLike
    mpp: MppLike | None
    power: PowerLike | None
    record: str | None
    mask: MasksLike
    min_mask: float
    block_windows: PerAxis | None
    budget: int

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return spatial_axes(self.kernel_size)

    def image(self, patient: Patient, view: ImageView | None = None) -> ImageWindows:
        """Open one image and lay its windows."""
        resolution = Resolution.of(
            self.level(patient) if callable(self.level) else self.level,
            self.mpp(patient) if callable(self.mpp) else self.mpp,
            self.power(patient) if callable(self.power) else self.power,
        )
        record = patient.record(self.record)
        if view is None:
            view = record.view(
                level=resolution.level or 0,
                mpp=resolution.mpp,
                power=resolution.power,
                spatial_ndim=self.ndim,
            )
        elif resolution != Resolution(level=0):
            raise UsageError(
                f"{resolution} beside a view, which has its resolution already; give the "
                "slide, or leave level, mpp and power away"
            )
        if view.spatial_ndim != self.ndim:
            raise GeometryError(
                f"kernel_size={self.kernel_size!r} has {self.ndim} axes, the image has "
                f"{view.spatial_ndim} axes of space (shape {view.shape}); give one number per axis"
            )
        grid = WindowGrid.of(
            view.shape[: self.ndim],
            self.kernel_size,
            stride=self.stride,
            overlap=self.overlap,
            edge=self.edge,
        )
        keep = self._keep(patient, view, grid)
        return ImageWindows(
            patient, record.name, view, grid, self._blocks(view, grid), keep, resolution.level
        )

    def _blocks(self, view: ImageView, grid: WindowGrid) -> tuple[int, ...]:
        if not len(grid):
            return (1,) * grid.ndim
        if self.block_windows is None:
            return fit_block(grid, view.tile_shape, pixel_bytes(view), self.budget)
        wanted = per_axis(self.block_windows, grid.ndim, "block_windows")
        if min(wanted) < 1:
            raise GeometryError(f"block_windows must be at least 1, got {wanted}")
        return tuple(min(n, c) for n, c in zip(wanted, grid.counts, strict=True))

    def _keep(self, patient: Patient, view: ImageView, grid: WindowGrid) -> Array | None:
        mask = self.mask
        if isinstance(mask, Mapping):
            known = {getattr(k, "key", str(k)): v for k, v in mask.items()}
            if patient.key not in known:
                raise UsageError(
                    f"mask= has no entry for patient {patient.id!r} (it has {len(known)}: "
                    f"{sorted(known)[:5]}); add one, None to deliver every window"
                )
            mask = known[patient.key]
        elif callable(mask) and not hasattr(mask, "scale"):
            mask = mask(patient)
        if mask is None:
            return None
        if not len(grid):
            return np.ones(grid.counts, bool)
        extent = None
        if hasattr(mask, "scale") and hasattr(mask, "data"):
            data = np.asarray(mask.data)
            scale = tuple(float(s) for s in mask.scale)
            if len(scale) != grid.ndim or data.ndim != grid.ndim:
                raise GeometryError(
                    f"a mask of shape {data.shape} with scale {scale} does not lie over an "
                    f"image with {grid.ndim} spatial axes"
                )
            extent = [n * s / d for n, s, d in zip(data.shape, scale, view.downsample, strict=True)]
            mask = data
        return kept_windows(mask, grid, self.min_mask, extent)


def subjects(source: Any) -> list[tuple[Patient, ImageView | None]]:
    """Patients, with a view where one was given instead of something to open.

    Raises
    ------
    DatasetError
        There are no patients.
    UsageError
        It is neither a dataset nor an image.
    """
    if isinstance(source, Patient):
        return [(source, None)]
    if isinstance(source, Dataset) or (
        isinstance(source, Sequence) and source and all(isinstance(p, Patient) for p in source)
    ):
        patients = source if isinstance(source, Dataset) else Dataset("patients", source)
        if not len(patients):
            raise DatasetError(f"dataset {patients.name!r} has no patients; nothing to slide over")
        return [(p, None) for p in patients]
    record, view = _bare(source)
    stem = PurePath(record.uri).name.split(".")[0] if record.uri else ""
    return [(Patient(stem or "image", {record.name or "wsi": record}), view)]


def _bare(image: Any) -> tuple[Record, ImageView | None]:
    if isinstance(image, Record):
        return image, None
    if isinstance(image, (str, os.PathLike)):
        return Record(image), None
    if hasattr(image, "to_dask") and hasattr(image, "uri"):
        return Record(image.uri, backend=image.backend, mpp=image.mpp), None
    if isinstance(image, ImageView):
        array = getattr(image, "array", None)
        if array is not None:
            return Record(array=array, spatial_ndim=image.spatial_ndim), image
        return Record(image.uri or image.token), image
    if hasattr(image, "shape") and hasattr(image, "dtype"):
        return Record(array=image), None
    raise UsageError(
        "the first argument must be a dataset, a patient, a slide, a record, a path, a view or "
        f"an array, got {type(image).__name__}"
    )


def open_images(
    source: Any, wish: Wish, *, skip: bool
) -> tuple[list[ImageWindows], list[WindowFailure]]:
    """Open everything, in parallel.

    Returns
    -------
    images : list of ImageWindows
        Those that can be used, in the order of the dataset.
    failures : list of WindowFailure
        Those left out, only with `skip`.

    Raises
    ------
    DatasetError
        There are no patients, or none can be used.
    LoaderError
        Without `skip`, the first image that cannot be opened.
    UsageError
        What is asked for does not fit an image, or images differ in channels or sample
        type.
    """
    found = subjects(source)
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1), len(found))) as pool:
        outcomes = list(pool.map(lambda s: _attempt(wish, *s), found))
    images: list[ImageWindows] = []
    failures: list[WindowFailure] = []
    for (patient, _), outcome in zip(found, outcomes, strict=True):
        if isinstance(outcome, ImageWindows):
            images.append(outcome)
            continue
        message = f"patient {patient.id!r}: {outcome}"
        if not skip or isinstance(outcome, UsageError):
            # what is wrong with the request stays its own kind of error
            if isinstance(outcome, (UsageError, MemoryError)):
                raise type(outcome)(message) from outcome
            raise LoaderError(
                message, patient=str(patient.id), record=wish.record or ""
            ) from outcome
        logger.warning("left out %s", message)
        nothing = np.empty((0, wish.ndim), np.int64)
        failures.append(
            WindowFailure(str(patient.id), wish.record or "", "open", str(outcome), nothing)
        )
    if not images:
        raise DatasetError(
            f"none of the {len(found)} images can be used; the first failed with: "
            f"{failures[0].message}"
        )
    _check(images, wish)
    return images, failures


def _attempt(wish: Wish, patient: Patient, view: ImageView | None) -> ImageWindows | Exception:
    try:
        return wish.image(patient, view)
    except (DaskdmedError, OSError, ValueError, TypeError, LookupError) as error:
        return error


def _check(images: list[ImageWindows], wish: Wish) -> None:
    if not any(len(image.grid) for image in images):
        first = images[0]
        raise GeometryError(
            f"no window of {first.grid.kernel_size} pixels lies inside any of {len(images)} "
            f"images (the first has {first.grid.shape}); edge='pad' or 'shift' keeps windows "
            "over the border, or use a finer level"
        )
    ndim, first = wish.ndim, images[0]
    for image in images[1:]:
        a, b = first.view, image.view
        if a.dtype != b.dtype or a.shape[ndim:] != b.shape[ndim:]:
            raise UsageError(
                f"images must agree in channels and sample type: patient {first.patient.id!r} "
                f"has {a.shape[ndim:]} {a.dtype}, patient {image.patient.id!r} has "
                f"{b.shape[ndim:]} {b.dtype}; filter the dataset or convert the images"
            )
