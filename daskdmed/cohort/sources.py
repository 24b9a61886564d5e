"""Whatever users give, as images of patients: the one way in, behind every entry point.

A dataset, a patient, a record, a slide, a view, a path, an array, or a list of these becomes
a sequence of `Image`: whose it is, which record, at which resolution, and how to open it.
With `on_error="skip"` images that cannot be used are left out and reported, one way for all.

Not covered: what is done with an image, and how pixels are read (`daskdmed.images`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, get_args, overload

import dask.array as da
import numpy as np

from daskdmed.cohort.dataset import Dataset
from daskdmed.cohort.folder import image_id
from daskdmed.cohort.image import Image as Image
from daskdmed.cohort.image import Request as Request
from daskdmed.cohort.patient import DEFAULT_RECORD, Patient
from daskdmed.cohort.record import Record
from daskdmed.core import events, html
from daskdmed.core.errors import (
    BudgetError,
    DaskdmedError,
    DatasetError,
    LoaderError,
    StoreError,
    UsageError,
)
from daskdmed.core.types import Array, OnError, PathLike
from daskdmed.core.view import ImageView
from daskdmed.images.filecache import FileKey
from daskdmed.images.protocols import SlideOptions, VolumeOptions
from daskdmed.images.slide import Slide
from daskdmed.images.view import SlideView
from daskdmed.images.volumes.volume import Volume

logger = logging.getLogger("daskdmed.cohort")
T = TypeVar("T")
#: results that a notebook shows one by one
_SHOWN = 20

#: one image that is open
Opened: TypeAlias = Slide | Volume | ImageView
#: one image, as users give it
ImageLike: TypeAlias = "Patient | Record | Opened | PathLike | da.Array | Array | Any"
#: one image or many
ImagesLike: TypeAlias = "Dataset | ImageLike | Sequence[ImageLike]"

#: what an image that cannot be used raises; anything else is a defect and ends the run
_OWN_FAULT = (DaskdmedError, OSError, ValueError, TypeError, LookupError)
#: what no other image would fare better with
_COMMON_FAULT = (StoreError, BudgetError)
_TAKEN = (
    "images are given as a Dataset, a Patient, a Record, a Slide, a Volume, a view, a path or "
    "URL, a Dask, NumPy or Zarr array, or a list of these; got {}"
)


class Images(Sequence[Image]):
    """Images in the order of their dataset. Made by `images_of`.

    `given` are slides and views that the user had open, by patient id; `single` says whether it
    was one image and not a collection (of perhaps one).
    """

    def __init__(
        self,
        dataset: Dataset,
        request: Request,
        given: Mapping[str, Opened],
        single: bool,
    ) -> None:
        self.dataset, self.request, self.single = dataset, request, single
        self._items = tuple(Image(p, request, given.get(p.key)) for p in dataset)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, item: int) -> Image: ...
    @overload
    def __getitem__(self, item: slice) -> tuple[Image, ...]: ...
    def __getitem__(self, item: int | slice) -> Image | tuple[Image, ...]:
        return self._items[item]

    def only(self, purpose: str) -> Image:
        """The image, where one can be used only; a `UsageError` when there are several."""
        if len(self) > 1:
            raise UsageError(f"{purpose} takes one image, got {len(self)}: {self.dataset!r}")
        return self[0]

    def each(self, value: Any, name: str) -> Callable[[Image], Any]:
        """An argument, by its name, that every image has its own of, such as a mask.

        It is ``{id: value}`` with an entry (perhaps None) for every patient, a function of the
        patient, or the value itself where there is one image. None is nothing for all.
        """
        if value is None:
            return lambda image: None
        if isinstance(value, Mapping):
            by_key = {getattr(k, "key", str(k)): v for k, v in value.items()}
            missing = [image.key for image in self if image.key not in by_key]
            if missing:
                raise UsageError(
                    f"{name}= has no entry for {len(missing)} of {len(self)} patients: "
                    f"{missing[:10]} (it has {sorted(by_key)[:5]}); give None for a patient "
                    f"without one"
                )
            return lambda image: by_key[image.key]
        if callable(value) and not hasattr(value, "shape") and not hasattr(value, "scale"):
            return lambda image: value(image.patient)
        if len(self) > 1:
            raise UsageError(
                f"{name}= of several images is {{id: {name}}} or a function of the patient, got "
                f"{type(value).__name__}: one array cannot lie over several images"
            )
        return lambda image: value


def images_of(source: ImagesLike, request: Request | None = None) -> Images:
    """Whatever the user has, as images. Opens nothing.

    A bare image becomes the only record of a patient, whose id is the name of the file without
    its suffixes, or "image"; in a list of arrays their positions.
    """
    request = request or Request()
    if isinstance(source, Dataset):
        if not len(source):
            raise DatasetError(
                f"dataset {source.name!r} has no patients; check the folder, pattern or filter "
                "that it was made with"
            )
        return Images(source, request, {}, single=False)
    many = isinstance(source, (Sequence, Iterator)) and not isinstance(source, (str, bytes))
    items: list[Any] = list(source) if many else [source]  # type: ignore[arg-type]
    if not items:
        raise DatasetError(_TAKEN.format("an empty list"))
    patients, given = [], {}
    for position, item in enumerate(items):
        where = f"item {position} of the list, " if many else ""
        patient, opened = _as_patient(item, str(position) if many else "image", where)
        patients.append(patient)
        if opened is not None:
            given[patient.key] = opened
    return Images(Dataset("images", patients), request, given, single=not many)


def _as_patient(image: Any, unnamed: str, where: str) -> tuple[Patient, Opened | None]:
    """The patient of one image, and the image if it is open already."""
    if isinstance(image, Patient):
        return image, None
    record, opened = _as_record(image, where)
    key = image_id(record.uri) if record.uri else unnamed
    name = record.name or (DEFAULT_RECORD if record.uri else "image")
    return Patient(key, {name: record}), opened


def _as_record(image: Any, where: str) -> tuple[Record, Opened | None]:
    if isinstance(image, Record):
        return image, None
    if isinstance(image, (str, os.PathLike)) and os.fspath(image):
        return Record(image), None
    if isinstance(image, Slide):
        own = None if image.mpp == image.info.mpp else image.mpp
        which = _which(image.key, image.picked, image.is_srgb)
        return Record(image.uri, backend=image.backend, mpp=own, **which), image
    if isinstance(image, Volume):
        said = VolumeOptions.parse(image.key.image)
        options = {n: getattr(said, n) for n in ("series", "dataset", "time", "form")}
        options |= {"on_gap": said.on_gap, "channels": image.picked, **image.own}
        options["storage_options"] = image.key.storage_options
        return Record(image.uri, backend=image.backend, **options), image
    if isinstance(image, SlideView):
        which = _which(image.key, image.channels, image.srgb)
        return Record(image.uri, backend=image.backend, **which), image
    if isinstance(image, ImageView):
        array = getattr(image, "array", None)
        if array is not None:
            steps = image.spacing if image.mpp is None else None
            axes = image.spatial_ndim
            if image.space is not None:
                return Record(array=array, space=image.space), image
            return Record(array=array, spatial_ndim=axes, mpp=image.mpp, spacing=steps), image
        return Record(image.uri or image.token), image
    if isinstance(image, (np.ndarray, da.Array)) or hasattr(image, "__array__"):
        return Record(array=image), None
    what = repr(image) if image is None or isinstance(image, (str, int)) else type(image).__name__
    raise UsageError(_TAKEN.format(f"{where}{what}"))


def _which(key: FileKey, channels: tuple[int, ...] | None, srgb: bool) -> dict[str, Any]:
    """What of a file a slide is, as arguments of a record."""
    said = SlideOptions.parse(key.image)
    found = {"image": said.image or None, "plane": said.plane or None, "channels": channels}
    return {**found, "color": "srgb" if srgb else None, "storage_options": key.storage_options}


# ------------------------------------------------------------------------- what is left out
@dataclass(frozen=True, slots=True)
class Failure:
    """An image, or a part of one (`where`: "open", or the region), that was left out."""

    patient: str
    record: str
    where: str
    message: str
    error: Exception | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, image: Image, error: Exception, where: str = "open") -> Failure:
        """Of an image that could not be used."""
        try:
            record = image.record_name
        except DatasetError:
            record = image.request.title
        return cls(image.key, record, where, str(error), error)

    @property
    def reason(self) -> str:
        """Kind and message of the error."""
        kind = f"{type(self.error).__name__}: " if self.error is not None else ""
        return f"{kind}{self.message}"

    def tell(self) -> None:
        """Say in the log, and to those who listen, that an image is left out."""
        logger.warning("left out %s", self)
        if events.listening():
            events.emit(events.SlideSkipped(self.patient, self.record, self.reason))

    def __str__(self) -> str:
        return f"{self.patient}/{self.record}: {self.reason}"


class Results(dict[str, T]):
    """Results by patient id, in the order of the dataset."""

    #: what was left out, with ``on_error="skip"``
    failures: tuple[Failure, ...] = ()

    def _repr_html_(self) -> str:
        shown = list(self.items())[:_SHOWN]
        rows = [(name, html.in_a_word(value)) for name, value in shown]
        left = len(self) - len(shown)
        said = [f"{len(self):,} patients"]
        said += [f"{len(self.failures):,} left out: {self.failures[0]}"] if self.failures else []
        more = html.soft(f"and {left:,} more") if left else ""
        return html.page(
            html.title("Results", *said), html.table(("patient", "result"), rows), more
        )


class LeftOut:
    """What becomes of images that cannot be used: an error, or a report in `failures`.

    When none of the `total` can be used it is an error in any case.
    """

    def __init__(self, on_error: OnError, total: int) -> None:
        check_on_error(on_error)
        self.on_error, self.total = on_error, total
        self.failures: list[Failure] = []

    @contextmanager
    def of(self, image: Image) -> Iterator[None]:
        """Work on an image; what it raises names the patient, or is reported."""
        try:
            yield
        except _COMMON_FAULT as error:
            error.add_note(_whose(image))
            raise
        except _OWN_FAULT as error:
            self.failed(image, error)

    def failed(self, image: Image, error: Exception, where: str = "open") -> None:
        """An image cannot be used: raise the error, or report it."""
        if self.on_error == "raise":
            error.add_note(_whose(image))
            raise error
        self.add(Failure.of(image, error, where))

    def excuse(self, image: Image, error: Exception) -> bool:
        """An image whose pixels cannot be read is reported, and left out."""
        self.add(Failure.of(image, error, "read"))
        return True

    def add(self, failure: Failure) -> None:
        """Report one; an error when it was the last hope."""
        failure.tell()
        self.failures.append(failure)
        if len(self.failures) == self.total:
            first = self.failures[0]
            raise DatasetError(
                f"none of the {self.total} images can be used; the first failed with: {first}"
            ) from first.error


def _whose(image: Image) -> str:
    name = image.request.title
    return f"patient {image.key!r}" + (f", record {name!r}" if name else "")


def check_on_error(on_error: Any) -> None:
    """Refuse what is neither "raise" nor "skip"."""
    if on_error not in get_args(OnError):
        raise UsageError(f"on_error must be 'raise' or 'skip', got {on_error!r}")


def open_all(
    images: Images, use: Callable[[Image], T], on_error: OnError
) -> tuple[list[T], list[Failure]]:
    """Open images for a loader, in parallel threads."""
    left_out = LeftOut(on_error, len(images))

    def attempt(image: Image) -> tuple[Literal[True], T] | tuple[Literal[False], Exception]:
        try:
            return True, use(image)
        except _OWN_FAULT as error:
            return False, error

    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1), len(images))) as pool:
        outcomes = list(pool.map(attempt, images))
    made: list[T] = []
    for image, outcome in zip(images, outcomes, strict=True):
        if outcome[0]:
            made.append(outcome[1])
            continue
        error = outcome[1]
        if on_error == "skip" and not isinstance(error, _COMMON_FAULT):
            left_out.add(Failure.of(image, error))
            continue
        message = f"patient {image.patient.id!r}: {error}"
        # what is wrong with the request stays its own kind of error
        if isinstance(error, (UsageError, BudgetError)):
            raise type(error)(message) from error
        failed = Failure.of(image, error)
        raise LoaderError(message, patient=failed.patient, record=failed.record) from error
    return made, left_out.failures
