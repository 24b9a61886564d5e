"""The records of a dataset, opened at one resolution and cut into big chunks.

This is where patients become something to draw from: every record is opened once (in
parallel), its resolution resolved, its size checked, its block grid made. No pixels are
read. Not covered: the order of visits (`daskdmed.persistence.plan`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from daskdmed.cohort.annotations.categories import Categories
from daskdmed.cohort.annotations.view import CollatedView, target_view
from daskdmed.cohort.dataset import Dataset
from daskdmed.cohort.record import Patient
from daskdmed.core.errors import DaskdmedError, DatasetError, GeometryError, LoaderError, UsageError
from daskdmed.core.types import LevelLike, MppLike, PowerLike
from daskdmed.core.view import ImageView
from daskdmed.persistence.blockgrid import BlockGrid
from daskdmed.persistence.plan import Population

logger = logging.getLogger("daskdmed.persistence")


@dataclass(frozen=True, slots=True)
class Failure:
    """A record, or a region of it, that could not be used.

    Parameters
    ----------
    patient, record : str
        Whose.
    where : str
        "open", or the region.
    message : str
        The error.
    """

    patient: str
    record: str
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes that all records of a loader share, per spatial axis.

    Parameters
    ----------
    smallchunk, bigchunk : tuple of int
        Pixels, array order.
    pad : bool
        Whether images smaller than a small chunk are padded with background.
    """

    smallchunk: tuple[int, ...]
    bigchunk: tuple[int, ...]
    pad: bool = False

    @classmethod
    def of(
        cls,
        smallchunk: int | tuple[int, ...],
        bigchunk: int | tuple[int, ...],
        *,
        pad: bool = False,
    ) -> Geometry:
        """From what the user gives: one number (two axes, y and x) or one per axis.

        Raises
        ------
        UsageError
            Not positive integers, or differing numbers of axes.
        GeometryError
            A big chunk smaller than a small chunk.
        """
        small = _extents("smallchunk_size", smallchunk, 2)
        big = _extents("bigchunk_size", bigchunk, len(small))
        if len(big) != len(small):
            raise UsageError(
                f"bigchunk_size {big} has {len(big)} axes and smallchunk_size {small} has "
                f"{len(small)}; give one number or one per axis"
            )
        if any(b < s for b, s in zip(big, small, strict=True)):
            raise GeometryError(
                f"bigchunk_size {big} is smaller than smallchunk_size {small}; make the big "
                "chunks larger"
            )
        return cls(small, big, pad)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.smallchunk)


def _extents(name: str, value: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    try:
        extents = (int(value),) * ndim if np.ndim(value) == 0 else tuple(int(v) for v in value)  # type: ignore[arg-type, union-attr]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be one integer or one per axis, got {value!r}") from error
    if not extents or any(e < 1 for e in extents) or np.any(np.asarray(value) != extents):
        raise UsageError(f"{name} must be positive integers, got {value!r}")
    return extents


@dataclass(frozen=True, slots=True)
class Entry:
    """One record at its resolution.

    Parameters
    ----------
    patient : Patient
        Whose.
    record : str
        Name of the record within the patient.
    view : ImageView
        The pixels.
    target : ImageView or None
        The pixels of the target record, of the same spatial shape.
    grid : BlockGrid
        The big chunks.
    level : int or None
        Level asked for, None when the resolution was given by mpp or power.
    target_ratio : tuple of int
        Pixels of the image per pixel of the target along each spatial axis.
    """

    patient: Patient
    record: str
    view: ImageView
    target: ImageView | None
    grid: BlockGrid
    level: int | None
    target_ratio: tuple[int, ...]

    @property
    def summary(self) -> tuple[Any, ...]:
        """Whose image it is, and its shape: the same wherever the files lie."""
        target = None if self.target is None else self.target.shape
        view = self.view
        return str(self.patient.id), self.record, view.shape, str(view.dtype), target

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest big chunk, with its target."""
        largest = self.grid.largest
        nbytes = int(np.prod(largest, dtype=np.int64)) * _pixel_bytes(self.view)
        if self.target is not None:
            covered = [
                -(-e // r) + (r > 1) for e, r in zip(largest, self.target_ratio, strict=True)
            ]
            nbytes += int(np.prod(covered, dtype=np.int64)) * _pixel_bytes(self.target)
        return nbytes


def _pixel_bytes(view: ImageView) -> int:
    channels = int(np.prod(view.shape[view.spatial_ndim :], dtype=np.int64))
    return channels * view.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything a loader draws from.

    Parameters
    ----------
    entries : tuple of Entry
        Usable records, in the order of the dataset.
    failures : tuple of Failure
        Records left out under ``on_error="skip"``.
    """

    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]

    @property
    def population(self) -> Population:
        """The facts that the plan needs."""
        return Population(
            tuple(len(e.grid) for e in self.entries),
            tuple(str(e.patient.id) for e in self.entries),
            tuple(e.patient.labels for e in self.entries),
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest big chunk of all."""
        return max(e.block_bytes for e in self.entries)

    @property
    def channels(self) -> tuple[int, ...]:
        """Trailing shape behind the spatial axes, the same for all records."""
        view = self.entries[0].view
        return view.shape[view.spatial_ndim :]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Sample type, the same for all records."""
        return self.entries[0].view.dtype


@dataclass(frozen=True, slots=True)
class Request:
    """Which record of each patient, at which resolution.

    Each of `level`, `mpp` and `power` is a value or a function of the patient, and so are
    `target_level` and `target_mpp`; without these the target is opened as the image is.
    `target_classes` and `target_channels` say what a target of annotations or of a label map
    holds, see `daskdmed.cohort.annotations.target_view`.
    """

    record: str | None = None
    target: str | None = None
    level: LevelLike = 0
    mpp: MppLike | None = None
    power: PowerLike | None = None
    target_level: LevelLike | None = None
    target_mpp: MppLike | None = None
    target_classes: Any = None
    target_channels: bool = False

    def entry(self, patient: Patient, geometry: Geometry) -> Entry:
        """Open a patient's record (and target) and cut it into big chunks."""
        record = patient.record(self.record)
        resolution = _resolved(patient, level=self.level, mpp=self.mpp, power=self.power)
        options: dict[str, Any] = {**resolution, "spatial_ndim": geometry.ndim}
        view = record.view(**options)
        if view.spatial_ndim != geometry.ndim:
            raise GeometryError(
                f"record {record.name!r} has {view.spatial_ndim} spatial axes (shape "
                f"{view.shape}), but smallchunk_size {geometry.smallchunk} has {geometry.ndim}"
            )
        target = self._target(patient, view, options)
        ratio = (1,) * geometry.ndim
        if target is not None:
            ratio = _ratio(view, target, str(self.target), geometry.smallchunk)
        grid = _grid(view, geometry)
        by_level = resolution["mpp"] is None and resolution["power"] is None
        level: Any = resolution["level"] if by_level else None
        return Entry(patient, record.name, view, target, grid, level, ratio)

    def _target(
        self, patient: Patient, view: ImageView, options: dict[str, Any]
    ) -> ImageView | None:
        if self.target is None:
            return None
        if self.target_level is not None or self.target_mpp is not None:
            own = _resolved(patient, level=self.target_level or 0, mpp=self.target_mpp)
            options = {**own, "spatial_ndim": options["spatial_ndim"]}
            view = patient.record(self.record).view(**options)
        record = patient.record(self.target)
        if record.is_annotations:
            return target_view(record, view, self.target_classes, multichannel=self.target_channels)
        labelmap = record.view(**options)
        if self.target_classes is None:
            return labelmap
        classes = self.target_classes
        categories = classes if isinstance(classes, Categories) else Categories(classes)
        return CollatedView(labelmap, categories, self.target_channels)


def _resolved(patient: Patient, **resolution: Any) -> dict[str, Any]:
    """Values of what may be functions of the patient."""
    return {name: v(patient) if callable(v) else v for name, v in resolution.items()}


def _grid(view: ImageView, geometry: Geometry) -> BlockGrid:
    shape = view.shape[: view.spatial_ndim]
    small = geometry.smallchunk
    if any(s < m for s, m in zip(shape, small, strict=True)):
        if not geometry.pad:
            raise GeometryError(
                f"the image has {shape} pixels at this resolution, fewer than smallchunk_size "
                f"{small}; make small chunks smaller, leave the image out, or pass pad=True "
                "to surround it with background"
            )
        shape = tuple(max(s, m) for s, m in zip(shape, small, strict=True))
    return BlockGrid.of(shape, geometry.bigchunk, view.tile_shape, small)


def _ratio(
    view: ImageView, target: ImageView, name: str, smallchunk: tuple[int, ...]
) -> tuple[int, ...]:
    """Pixels of the image per pixel of its target, whole numbers."""
    shape, own = view.shape[: view.spatial_ndim], target.shape[: target.spatial_ndim]
    if len(own) != len(shape):
        raise GeometryError(
            f"target record {name!r} has {len(own)} spatial axes and the image {len(shape)}"
        )
    ratio = tuple(max(1, round(s / t)) for s, t in zip(shape, own, strict=True))
    for size, extent, r in zip(shape, own, ratio, strict=True):
        # the last pixel of the target may be cut off or only partly on the image
        if abs(size - extent * r) >= r:
            raise GeometryError(
                f"target record {name!r} has shape {target.shape} and the image {view.shape}; a "
                "target must have the image's size at the resolution asked for, or that divided "
                "by a whole number; give target_level= or target_mpp="
            )
    if any(s % r for s, r in zip(smallchunk, ratio, strict=True)):
        raise GeometryError(
            f"target record {name!r} has one pixel per {ratio} of the image, so that a small "
            f"chunk of {smallchunk} does not cover whole pixels of it; make smallchunk_size a "
            f"multiple of {ratio}"
        )
    return ratio


OnRecordError = Literal["raise", "skip"]


def build(
    dataset: Dataset, request: Request, geometry: Geometry, *, on_error: OnRecordError
) -> Catalogue:
    """Open all records of a dataset, in parallel.

    Raises
    ------
    DatasetError
        The dataset is empty, or (under "skip") none of its records is usable.
    LoaderError
        Under "raise", the first record in dataset order that cannot be used.
    UsageError
        Records differ in channels or sample type.
    """
    if len(dataset) == 0:
        raise DatasetError(
            f"dataset {dataset.name!r} has no patients; check the folder, pattern or filter "
            "that it was made with"
        )
    outcomes = _open_all(dataset, lambda patient: request.entry(patient, geometry))
    entries, failures = [], []
    for patient, outcome in zip(dataset, outcomes, strict=True):
        if isinstance(outcome, Entry):
            entries.append(outcome)
            continue
        name = request.record or ""
        message = f"patient {patient.id!r}: {outcome}"
        if on_error == "raise":
            # what is wrong with the request stays its own kind of error
            if isinstance(outcome, UsageError):
                raise type(outcome)(message) from outcome
            raise LoaderError(message, patient=str(patient.id), record=name) from outcome
        logger.warning("left out %s", message)
        failures.append(Failure(str(patient.id), name, "open", str(outcome)))
    if not entries:
        raise DatasetError(
            f"none of the {len(dataset)} patients of dataset {dataset.name!r} can be used; the "
            f"first failed with: {failures[0].message}"
        )
    _check_uniform(entries)
    return Catalogue(tuple(entries), tuple(failures))


def _open_all(
    patients: Iterable[Patient], opener: Callable[[Patient], Entry]
) -> list[Entry | Exception]:
    def attempt(patient: Patient) -> Entry | Exception:
        try:
            return opener(patient)
        except (DaskdmedError, OSError, ValueError, TypeError, LookupError) as error:
            return error

    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(attempt, patients))


def _check_uniform(entries: list[Entry]) -> None:
    first = entries[0]
    ndim = first.view.spatial_ndim
    for entry in entries[1:]:
        same = (
            entry.view.dtype == first.view.dtype
            and entry.view.shape[ndim:] == first.view.shape[ndim:]
        )
        if not same:
            raise UsageError(
                f"records of a dataset must agree in channels and sample type: patient "
                f"{first.patient.id!r} has {first.view.shape[ndim:]} {first.view.dtype}, patient "
                f"{entry.patient.id!r} has {entry.view.shape[ndim:]} {entry.view.dtype}; filter "
                "the dataset or convert the images"
            )
