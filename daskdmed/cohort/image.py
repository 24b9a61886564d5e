"""One image of a patient, not opened yet: which record, at which resolution, what errors do.

Not covered: how what users give becomes images (`daskdmed.cohort.sources`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from daskdmed.cohort.record import Patient, Record, view_of
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.resolution import Resolution
from daskdmed.core.types import LevelLike, MppLike, OnTileError, PowerLike, SpacingLike
from daskdmed.core.view import ImageView
from daskdmed.images.slide import Slide
from daskdmed.images.volumes.volume import Volume


@dataclass(frozen=True, slots=True)
class Request:
    """Which record of each patient, at which resolution, and what damaged tiles do.

    Of level, mpp, power and spacing at most one is given, a value or a function of the patient;
    `orientation` is that of volumes, see `daskdmed.images.volumes.Volume.view`.
    `spatial_ndim` is how many axes must be space; None: as many as the image says.
    """

    record: str | None = None
    level: LevelLike | None = 0
    mpp: MppLike | None = None
    power: PowerLike | None = None
    spatial_ndim: int | None = None
    tile_error: OnTileError = "raise"
    spacing: SpacingLike | None = None
    orientation: str | None = None

    def __post_init__(self) -> None:
        if self.record is not None and not isinstance(self.record, str):
            raise UsageError(
                f"record= is the name of one record, got {self.record!r}; to draw from several, "
                "stack them into one: Record(array=dask.array.concatenate([...], axis=-1))"
            )
        if self.tile_error not in get_args(OnTileError):
            raise UsageError(f"tile_error must be 'raise' or 'fill', got {self.tile_error!r}")
        said: list[Any] = [self.level, self.mpp, self.power, self.spacing]
        if not any(callable(value) for value in said):
            Resolution.of(*said)

    def resolution(self, patient: Patient) -> Resolution:
        """The resolution of one patient's image."""
        said: list[Any] = [self.level, self.mpp, self.power, self.spacing]
        return Resolution.of(*(v(patient) if callable(v) else v for v in said))


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a patient, not opened yet; `given` is what the user had open already."""

    patient: Patient
    request: Request
    given: Slide | Volume | ImageView | None = None

    @property
    def key(self) -> str:
        """The id of the patient as text."""
        return self.patient.key

    @property
    def record(self) -> Record:
        """The record."""
        return self.patient.record(self.request.record)

    @property
    def resolution(self) -> Resolution:
        """The resolution, see `Request.resolution`."""
        return self.request.resolution(self.patient)

    def open(self) -> Slide | Volume | ImageView:
        """The slide or volume, or the view of what is none, whatever resolution is asked for."""
        opened, axes = self.given, self.request.spatial_ndim
        if opened is None:
            record = self.record
            array = record.array is not None
            opened = record.view(spatial_ndim=axes) if array else record.open(spatial_ndim=axes)
        shape = opened.levels[0].shape if isinstance(opened, Slide) else opened.shape
        has = {Slide: 2, Volume: 3}.get(type(opened)) or getattr(opened, "spatial_ndim", 2)
        if axes not in (None, has):
            raise GeometryError(
                f"the image has {has} spatial axes (shape {shape}), the sizes given have {axes}; "
                "give one number per axis"
            )
        return opened

    def view(self) -> ImageView:
        """The image at the resolution asked for, ready to be read."""
        wanted, opened, asked = self.resolution, self.open(), self.request
        if self.given is None or isinstance(opened, (Slide, Volume)):
            return view_of(
                self.record if isinstance(opened, ImageView) else opened,
                wanted,
                spatial_ndim=asked.spatial_ndim,
                orientation=asked.orientation,
                tile_error=asked.tile_error,
            )
        if wanted != Resolution(level=0) or asked.orientation is not None:
            raise UsageError(
                f"{wanted} beside a view, which has its resolution already; give the slide, or "
                "leave level, mpp, power, spacing and orientation away"
            )
        return opened
