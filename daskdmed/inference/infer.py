"""`infer`: dense prediction of every scan of a dataset, one after the other.

MedSegPy's contract of per-scan inference (``for input, output in loader.inference(model)``)
without its state: the dataset is not changed, an iteration that is abandoned leaves nothing
behind, scans need no labels, and neither images nor predictions are held in memory.

Not covered: what one prediction is (`daskdmed.inference.dense.predict`), metrics
(`daskdmed.inference.metrics`).
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import dask.array as da
import zarr

from daskdmed.cohort.annotations.undrawn import stand_in
from daskdmed.cohort.patient import Patient
from daskdmed.cohort.record import Record
from daskdmed.cohort.sources import Image, Images, ImagesLike, LeftOut, Request, images_of
from daskdmed.core.checks import check_count
from daskdmed.core.errors import DatasetError, UsageError
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
from daskdmed.core.view import ImageView
from daskdmed.images.channels import ChannelsLike
from daskdmed.images.lazy import to_dask
from daskdmed.inference.dense.predict import predict
from daskdmed.inference.inputs import mask_over
from daskdmed.inference.models.window import Model, check_model
from daskdmed.store.location import Location, file_names, result_path
from daskdmed.store.results.georeference import Georeference
from daskdmed.tiling.grid import PerAxis, spatial_axes

if TYPE_CHECKING:
    from distributed import Client

#: pixels along an axis of a block of a lazy image, by number of axes
_BLOCK = {2: 2048, 3: 128}
#: how arrays of scans are laid out
ScanLayout: TypeAlias = Literal["zyx", "hwd"]
#: keywords that every scan needs its own of
_OWN = (
    "image", "out", "mask", "level", "mpp", "power", "spacing", "orientation", "record", "on_error",
    "tile_error", "compute", "channels",
)  # fmt: skip


class ScanInput(TypedDict):
    """What went in."""

    #: the image, lazy, at the resolution that was asked for: spatial axes first
    x: da.Array
    patient: Patient
    patient_id: str
    record: str
    scan_id: str  # "id/record"
    #: extent of a pixel of `x` along each spatial axis, array order, in `unit`: "micrometer" for
    #: what has an mpp, "millimeter" for what has a spacing, or "pixel" (of level 0)
    spacing: tuple[float, ...]
    unit: str


class ScanOutput(TypedDict):
    """What came out."""

    #: as `daskdmed.predict` returns it: lazy, of the Zarr array that was written
    y_pred: da.Array
    #: the target, lazy, on the pixels of `x`; None when there is none
    y_true: da.Array | None
    #: extent of a cell of `y_pred`; that of `x` for a prediction per pixel
    spacing: tuple[float, ...]
    time_elapsed: float  # seconds that the prediction took
    out: str | None  # where `y_pred` is stored


class Scans(Iterator[tuple[ScanInput, ScanOutput]]):
    """Iterator over scans. Made by `infer`.

    Attributes
    ----------
    failures : list of Failure
        Scans left out so far, with ``on_error="skip"``.
    """

    def __init__(self, scans: Sequence[_Scan], run: _Run, on_error: OnError, ahead: int) -> None:
        left_out = LeftOut(on_error, len(scans))
        self.failures = left_out.failures
        self._count = len(scans)
        self._iterator = self._go(scans, run, left_out, ahead)

    def __len__(self) -> int:
        """Number of scans, those that fail included."""
        return self._count

    def __repr__(self) -> str:
        return f"<Scans: {len(self)}, {len(self.failures)} left out so far>"

    def __iter__(self) -> Scans:
        return self

    def __next__(self) -> tuple[ScanInput, ScanOutput]:
        return next(self._iterator)

    @staticmethod
    def _go(
        scans: Sequence[_Scan], run: _Run, left_out: LeftOut, ahead: int
    ) -> Iterator[tuple[ScanInput, ScanOutput]]:
        for scan, result_of in _begun(scans, run, ahead):
            try:
                result = result_of()
            except Exception as error:  # the model's too: other scans may fare better
                left_out.failed(scan.image, error, "scan")
                continue
            yield result


def _begun(
    scans: Sequence[_Scan], run: _Run, ahead: int
) -> Iterator[tuple[_Scan, Callable[[], tuple[ScanInput, ScanOutput]]]]:
    """Every scan and what gives its result, when so many behind it are being predicted."""
    if not ahead:
        yield from ((scan, functools.partial(run, scan)) for scan in scans)
        return
    pool = ThreadPoolExecutor(ahead, "daskdmed-infer")
    rest, begun = iter(scans), deque[tuple[_Scan, Future[tuple[ScanInput, ScanOutput]]]]()
    try:
        while True:
            more = itertools.islice(rest, ahead + 1 - len(begun))
            begun.extend((scan, pool.submit(run, scan)) for scan in more)
            if not begun:
                return
            scan, future = begun.popleft()
            yield scan, future.result
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Scan:
    """One record of one patient."""

    image: Image
    target: Record | None
    mask_of: Callable[[Image], Any]


def infer(
    dataset: ImagesLike,
    model: Model | PathLike,
    *,
    kernel_size: PerAxis,
    record: str | Sequence[RecordLike] | None = None,
    target: str | None = None,
    target_classes: Any = None,
    level: LevelLike = 0,
    mpp: MppLike | None = None,
    power: PowerLike | None = None,
    spacing: SpacingLike | None = None,
    orientation: str | None = None,
    channels: ChannelsLike | None = None,
    out: PathLike | None = None,
    mask: Any = None,
    layout: ScanLayout = "zyx",
    ahead: int = 0,
    on_error: OnError = "raise",
    tile_error: OnTileError = "raise",
    client: Client | None = None,
    **options: Any,
) -> Scans:
    """Predict every scan of a dataset, and pair it with its truth.

    Scans are predicted one after the other, when the iterator is asked for them (see `ahead`);
    each uses all threads (or the whole cluster). Nothing but its place is kept of a scan that
    was yielded. The contract is that of MedSegPy's ``DataLoader.inference``.

    Parameters
    ----------
    dataset, model, kernel_size, level, mpp, power, spacing, orientation, channels, tile_error,
    client
        As for `daskdmed.predict`. The dataset is not changed.
    record : str or sequence of (str or sequence of str), optional
        Which records are scans. Default: every record of a patient but the target and
        annotations. A sequence within the sequence is one scan of several records, whose
        channels are stacked: ``record=[["t1", "t2"]]``.
    target : str, optional
        Name of the record that holds the truth: a label map with a resolution of the extent
        of the image, or annotations, which are painted on its pixels; of volumes as for
        `LightDL`. Patients without it have no `y_true`.
    target_classes : optional
        For annotations required, for label maps optional: which labels make which class, as
        ``target_classes=`` of `LightDL`.
    out : path or URL, optional
        Folder; each scan gets ``<patient>/<record>.zarr`` in it. Default: in memory, until
        the arrays are let go.
    mask : optional
        As for `predict`; for several patients ``{patient id: mask}`` or ``mask(patient)``.
    layout : {"zyx", "hwd"}
        How arrays are laid out: `x` and `y_true` (z, y, x[, c]) and `y_pred` ([k,] z, y, x), as
        everywhere; or rows, columns, slices and then channels, (y, x, z[, c]) and (y, x, z[, k]),
        as MedSegPy has them. Of planes only the channels move. `spacing` follows the axes;
        stores are the same.
    ahead : int
        How many further scans are predicted, side by side, while the caller works with one: so
        that neither waits for the other, and the end of a scan does not leave threads idle.
        Each takes the memory of a prediction. When the iterator is left, those that are
        running end first.
    on_error : {"raise", "skip"}
        What a scan that fails does: ends the iteration with its error, or is reported in
        `Scans.failures` and in the log. When all fail, an error is raised in any case.
    **options
        Further keywords of `predict`: `overlap`, `blend`, `batch_size`, `post`, `resume`,
        `overwrite`, `receptive_field`, `context`, `squeeze`...

    Returns
    -------
    Scans
        Iterator of (`ScanInput`, `ScanOutput`), which are plain dictionaries.

    Raises
    ------
    DatasetError
        No patients, the same scan twice, a record that a patient does not have, or every
        scan failed.
    UsageError
        Unknown options, or arguments that contradict each other.
    Exception
        What `predict` raises, with the patient and the record as a note.

    Examples
    --------
    >>> for inputs, outputs in infer(  # doctest: +SKIP
    ...     dataset, unet, kernel_size=512, target="mask", post="argmax", out="predictions"
    ... ):
    ...     print(inputs["scan_id"], confusion(outputs["y_true"], outputs["y_pred"]).dice)
    """
    _check_options(options)
    check_model(model)
    if layout not in get_args(ScanLayout):
        raise UsageError(f"layout must be one of {get_args(ScanLayout)}, got {layout!r}")
    if out is not None and not isinstance(out, (str, os.PathLike)):
        raise UsageError(
            f"out= is a folder or URL for one store per scan, got {type(out).__name__}"
        )
    check_count("ahead", ahead, 0)
    axes = spatial_axes(kernel_size)
    request = Request(None, level, mpp, power, axes, tile_error, spacing, orientation, channels)
    images = images_of(dataset, request)
    scans = _scans(images, record, target, images.each(mask, "mask"))
    options = {"kernel_size": kernel_size, "client": client, **options}
    names = file_names(image.key for image in images)
    arranged = _Arranged(layout, axes)
    run = _Run(model, out, target_classes, options, names, arranged)
    return Scans(scans, run, on_error, ahead)


def _check_options(options: Mapping[str, Any]) -> None:
    import inspect

    known = {n for n in inspect.signature(predict).parameters if n not in ("model", *_OWN)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(f"unknown option(s) {unknown}; those of predict are {sorted(known)}")


def _scans(
    images: Images,
    record: str | Sequence[RecordLike] | None,
    target: str | None,
    mask_of: Callable[[Image], Any],
) -> list[_Scan]:
    """All scans, with everything checked that needs no file to be opened."""
    wanted = None if record is None else _each(record)
    named = [n for w in wanted or () for n in ((w,) if isinstance(w, str) else w)]
    if wanted is not None and (target in named or len(set(wanted)) < len(wanted)):
        raise DatasetError(
            f"record={record!r} must name each record once, and not the target {target!r}"
        )
    patients = images.dataset
    if target is not None and not any(target in p.records for p in patients):
        there = sorted({n for p in patients for n in p.records})
        raise DatasetError(f"no patient has the target {target!r}; the records are {there}")
    scans = []
    empty = None if target is None else stand_in(patients, target)
    for image in images:
        patient = image.patient
        truth = None if target is None else patient.records.get(target, empty)
        names: list[RecordLike] = list(wanted or ())
        if wanted is None:
            names = [n for n, r in patient.records.items() if n != target and not r.is_annotations]
            if not names:
                raise DatasetError(
                    f"patient {patient.key!r} has no record to predict beside the target; it "
                    f"has {list(patient.records)}"
                )
        ones = [replace(image, request=replace(image.request, record=n)) for n in names]
        for one in ones:
            one.records, one.resolution  # noqa: B018  what cannot be is refused now
        scans += [_Scan(one, truth, mask_of) for one in ones]
    return scans


def _each(record: str | Sequence[RecordLike]) -> list[RecordLike]:
    """Every scan by its record, or by those that are stacked."""
    many = [record] if isinstance(record, str) else record
    return [one if isinstance(one, str) else tuple(one) for one in many]


@dataclass(frozen=True)
class _Arranged:
    """How the arrays of a scan over so many axes are laid out."""

    layout: ScanLayout
    ndim: int

    @property
    def _order(self) -> tuple[int, ...]:
        """Axes of space: the slices behind rows and columns."""
        axes = tuple(range(self.ndim))
        return axes if self.layout == "zyx" or self.ndim < 3 else (*axes[1:], 0)

    def each(self, values: Sequence[float]) -> tuple[float, ...]:
        """A number for each axis of space."""
        return tuple(values[axis] for axis in self._order)

    def image(self, array: da.Array) -> da.Array:
        """(*space[, c])."""
        return array.transpose(*self._order, *range(self.ndim, array.ndim))

    def result(self, array: da.Array) -> da.Array:
        """([k,] *space); the k last in the other layout."""
        if self.layout == "zyx":
            return array
        lead = array.ndim - self.ndim
        return array.transpose(*(lead + axis for axis in self._order), *range(lead))


@dataclass(frozen=True)
class _Run:
    """What is done with every scan."""

    model: Model | PathLike
    out: PathLike | None
    target_classes: Any
    options: Mapping[str, Any]
    #: of the folders of all patients
    names: Mapping[str, str]
    arranged: _Arranged

    def __call__(self, scan: _Scan) -> tuple[ScanInput, ScanOutput]:
        patient, record, view = scan.image.patient, scan.image.record_name, scan.image.view()
        truth = self._truth(scan, view)  # before the work: it may not fit
        # as the scan was asked for, which the view knows no more
        mask = mask_over(scan.mask_of(scan.image), scan.image, view)
        place = self._place(patient, record)
        start = time.perf_counter()
        y_pred = predict(view, self.model, out=place, mask=mask, **self.options)
        elapsed = time.perf_counter() - start
        spacing, unit = spacing_of(view)
        cells = _pixels_per_cell(place)
        told = self.arranged
        inputs = ScanInput(
            x=told.image(to_dask(view, _BLOCK.get(view.spatial_ndim, 64))),
            patient=patient,
            patient_id=patient.key,
            record=record,
            scan_id=f"{patient.key}/{record}",
            spacing=told.each(spacing),
            unit=unit,
        )
        true = None
        if truth is not None:
            true = told.image(to_dask(truth, _BLOCK.get(truth.spatial_ndim, 64)))
        outputs = ScanOutput(
            y_pred=told.result(y_pred),
            y_true=true,
            spacing=told.each([s * n for s, n in zip(spacing, cells, strict=True)]),
            time_elapsed=elapsed,
            out=None if self.out is None else str(place),
        )
        return inputs, outputs

    def _truth(self, scan: _Scan, view: ImageView) -> ImageView | None:
        if scan.target is None:
            return None
        from daskdmed.cohort.annotations.view import target_view

        request = scan.image.request
        spacing = scan.image.resolution.spacing
        return target_view(
            scan.target,
            view,
            self.target_classes,
            spacing=spacing,
            orientation=request.orientation,
        )

    def _place(self, patient: Patient, record: str) -> Any:
        if self.out is None:
            return zarr.storage.MemoryStore()
        return result_path(self.out, patient.key, record, self.names)


def spacing_of(view: ImageView) -> tuple[tuple[float, ...], str]:
    """Extent of a pixel along each spatial axis, array order, and its unit.

    Micrometers for what has an mpp, millimeters for what has a spacing (see `Record`), else
    level-0 pixels.
    """
    if view.mpp is not None:
        return (view.mpp[1], view.mpp[0]), "micrometer"
    if view.spacing is not None:
        return view.spacing, "millimeter"
    return tuple(float(d) for d in view.downsample), "pixel"


def _pixels_per_cell(place: Any) -> tuple[int, ...]:
    own: Any = Location.of(place).open("r").attrs["daskdmed"]
    return Georeference.from_json(own["georeference"]).stride


__all__ = ["ScanInput", "ScanOutput", "Scans", "infer", "spacing_of"]
