"""One image of a patient, not opened yet: which record, at which resolution, what errors do.

Not covered: how what users give becomes images (`daskdmed.cohort.sources`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from daskdmed.cohort.opening import view_of
from daskdmed.cohort.patient import Patient
from daskdmed.cohort.record import Record
from daskdmed.cohort.stacked import StackedView
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.resolution import Resolution
from daskdmed.core.types import (
    LevelLike,
    MppLike,
    OnTileError,
    PowerLike,
    RecordLike,
    SpacingLike,
)
from daskdmed.core.view import ImageView
from daskdmed.images.channels import ChannelsLike, as_channels, with_channels
from daskdmed.images.slide import Slide
from daskdmed.images.volumes.volume import Volume


@dataclass(frozen=True, slots=True)
class Request:
    """Which record of each patient, at which resolution, and what damaged tiles do.

    Of several records the channels are stacked, see `daskdmed.cohort.stacked`. Of level, mpp,
    power and spacing at most one is given, a value or a function of the patient; `orientation` is
    that of volumes, see `daskdmed.Volume.view`. `spatial_ndim` is how many axes
    must be space; None: as many as the image says.
    """

    record: RecordLike | None = None
    level: LevelLike | None = 0
    mpp: MppLike | None = None
    power: PowerLike | None = None
    spatial_ndim: int | None = None
    tile_error: OnTileError = "raise"
    spacing: SpacingLike | None = None
    orientation: str | None = None
    #: which channels of each, names or numbers; None for all
    channels: ChannelsLike | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "record", _as_names(self.record))
        if self.channels is not None:
            object.__setattr__(self, "channels", as_channels(self.channels))
            if len(self.names) > 1:
                raise UsageError(
                    f"channels={list(as_channels(self.channels))} of {len(self.names)} records: "
                    "say it of each, Record(uri, channels=...)"
                )
        if self.tile_error not in get_args(OnTileError):
            raise UsageError(f"tile_error must be 'raise' or 'fill', got {self.tile_error!r}")
        said: list[Any] = [self.level, self.mpp, self.power, self.spacing]
        if not any(callable(value) for value in said):
            Resolution.of(*said)

    @property
    def names(self) -> tuple[str | None, ...]:
        """The records whose channels are stacked; one None where a patient's only one is meant."""
        several = self.record is not None and not isinstance(self.record, str)
        return tuple(self.record or ()) if several else (self.record,)  # type: ignore[return-value]

    @property
    def title(self) -> str:
        """The record as it was asked for, "t1+t2" for several; "" for a patient's only one."""
        return "+".join(name or "" for name in self.names)

    def resolution(self, patient: Patient) -> Resolution:
        """The resolution of one patient's image."""
        said: list[Any] = [self.level, self.mpp, self.power, self.spacing]
        return Resolution.of(*(v(patient) if callable(v) else v for v in said))

    def parameters(self, patients: Iterable[Patient]) -> dict[str, Any]:
        """What batches depend on beside the shapes of images, for ``state_dict``; empty when
        neither was asked for."""
        asked: dict[str, Any] = {}
        if self.channels is not None:
            asked["channels"] = list(as_channels(self.channels))
        if self.orientation is not None:
            asked["orientation"] = self.orientation
        if self.spacing is not None:
            said = [self.resolution(patient).spacing for patient in patients]
            # one for all, or one for each where it is a function of the patient
            asked["spacing"] = [
                list(one or ()) for one in (said[:1] if len(set(said)) == 1 else said)
            ]
        return asked


def _as_names(record: Any) -> str | tuple[str, ...] | None:
    """The name of a record, or the names of several."""
    if record is None or isinstance(record, str):
        return record
    names = tuple(record) if isinstance(record, Sequence) else ()
    if not names or not all(isinstance(n, str) and n for n in names):
        raise UsageError(
            f"record= is the name of one record, or a list of names whose channels are stacked, "
            f"got {record!r}"
        )
    if len(set(names)) < len(names):
        raise UsageError(f"record={list(names)} names a record twice; each gives channels once")
    return names if len(names) > 1 else str(names[0])


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
    def records(self) -> tuple[Record, ...]:
        """The records whose channels are stacked; mostly one."""
        return tuple(self.patient.record(name) for name in self.request.names)

    @property
    def record(self) -> Record:
        """The record; of several that are stacked the first."""
        return self.records[0]

    @property
    def record_name(self) -> str:
        """The name of the record; of several "t1+t2"."""
        return "+".join(record.name for record in self.records)

    @property
    def resolution(self) -> Resolution:
        """The resolution, see `Request.resolution`."""
        return self.request.resolution(self.patient)

    @property
    def parameters(self) -> dict[str, Any]:
        """What results depend on beside the content of the image."""
        said = {"orientation": self.request.orientation, "channels": self.request.channels}
        return {"resolution": str(self.resolution), **{n: v for n, v in said.items() if v}}

    def open(self) -> Slide | Volume | ImageView:
        """The slide or volume, or the view of what is none, whatever resolution is asked for."""
        opened, axes = self.given, self.request.spatial_ndim
        if len(self.request.names) > 1:
            asked = self.request
            plain = Request(asked.record, spatial_ndim=axes, tile_error=asked.tile_error)
            return replace(self, request=plain).view()
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
        if len(self.request.names) > 1:
            named = {r.name: self._of(r.name).view() for r in self.records}
            return StackedView.of(named)
        wanted, opened, asked = self.resolution, self.open(), self.request
        if self.given is None or isinstance(opened, (Slide, Volume)):
            return view_of(
                self.record if isinstance(opened, ImageView) else opened,
                wanted,
                spatial_ndim=asked.spatial_ndim,
                orientation=asked.orientation,
                channels=asked.channels,
                tile_error=asked.tile_error,
            )
        if wanted != Resolution(level=0) or asked.orientation is not None:
            raise UsageError(
                f"{wanted} beside a view, which has its resolution already; give the slide, or "
                "leave level, mpp, power, spacing and orientation away"
            )
        return opened if asked.channels is None else with_channels(opened, asked.channels)

    def _of(self, name: str) -> Image:
        """The same of another record."""
        return replace(self, request=replace(self.request, record=name), given=None)


__all__ = ["Image", "Request"]
