"""Whole slides as OME-Zarr: sharded, streaming, resumable.

Block by block: a block is read from the slide (each storage tile once, when chunks lie on
the tile grid) and written as whole shards, which no other block touches. Levels that the
slide has are copied, coarser ones are built from the level before. What is done is kept in
the store until the end, so that a killed run goes on where it was, to the identical store.

Not covered: which blocks there are (`daskdmed.store.export.slideplan`), results of models
(`daskdmed.store.results.resumable`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from daskdmed import __version__
from daskdmed.cohort.sources import ImageLike, images_of
from daskdmed.core.errors import DaskdmedError, StoreError, UsageError
from daskdmed.core.files import write_failure
from daskdmed.core.region import Region
from daskdmed.core.types import OnTileError, PathLike
from daskdmed.core.work import Index, Job, call_graph, run
from daskdmed.images.ngff.metadata import ZARR_FORMATS, Axis, Channel, Multiscale, check_version
from daskdmed.images.opening import open_slide
from daskdmed.images.protocols import RGB_COLORS, ChannelInfo
from daskdmed.images.slide import Slide
from daskdmed.store.export.slideplan import Extent, PlannedLevel, Pyramid, plan_levels
from daskdmed.store.location import Location, damage_named
from daskdmed.store.ngff.levels import Compressor, compressors_for, create_level
from daskdmed.store.ngff.pyramid import ReduceTask, make_channels, value_range
from daskdmed.store.ngff.reduction import Method
from daskdmed.store.results.donemap import DONE, DoneMap
from daskdmed.store.results.resumable import check_parameters

if TYPE_CHECKING:
    from distributed import Client

KIND = "slide"
#: of the work, as the dashboard and the progress bar show it
NAME = "to-ome-zarr"
_AXES = ("c", "y", "x")
_RGB = ("red", "green", "blue")


def slide_to_ome_zarr(
    slide: ImageLike,
    path: PathLike,
    *,
    level: int | None = None,
    mpp: float | tuple[float, float] | None = None,
    pyramid: Pyramid = "auto",
    chunks: Extent = None,
    shards: Extent | bool = None,
    compressor: Compressor = "zstd",
    version: str = "0.5",
    associated: bool = True,
    tile_error: OnTileError = "raise",
    resume: bool = False,
    overwrite: bool = False,
    client: Client | None = None,
    progress: bool = False,
) -> Slide:
    """Convert a whole slide to an OME-Zarr image (c, y, x), losslessly.

    Names, colours and wavelengths of channels go along in the metadata of OMERO, and that values
    are labels; a colour profile does not, see ``Slide.to_srgb``.

    A local store appears at `path` when it is complete, in one step; until then it is built
    in a hidden folder beside it. At a URL the data are written in place (unless something
    is there to be replaced) and the metadata that make it an image last.

    Parameters
    ----------
    slide : Slide, Patient, Record, path or URL
        What is converted: the channels, plane and colours that it is opened with. A resolution
        given by ``Slide.with_mpp`` is kept.
    path : path or URL
        Where to write.
    level : int, optional
        The finest level that is written, default 0.
    mpp : float or (float, float), optional
        Write at this resolution instead, (x, y) micrometers per pixel, resampled.
    pyramid : {"auto", "copy", "build", "none"}
        "auto" copies the slide's coarser levels and builds further ones, each half as large,
        until no axis is longer than 1024 pixels. "copy" copies only, "build" builds all from
        the finest, "none" writes the finest only. Built levels are means of 2 x 2 pixels, of
        labels the first of them.
    chunks : int or (int, int), optional
        (height, width) of what is decoded at once. Default: the storage tile, so that every
        tile of the slide is read once. With chunks of which no multiple of reasonable size
        is one of the tile, tiles between two blocks are read by both. Channels that are no
        colours lie in chunks of their own.
    shards : int, (int, int) or False, optional
        (height, width) of one object in the store, a multiple of `chunks`; default about
        4096 pixels or 64 MiB. False: every chunk is an object, as in version 0.4 always.
    compressor : {"zstd", "blosc", "gzip"}, None or a codec
        None stores raw pixels. A codec of ``zarr.codecs`` (0.5) or ``numcodecs`` (0.4) is
        taken as it is.
    version : {"0.5", "0.4"}
        Of OME-Zarr: Zarr v3 or v2 underneath.
    associated : bool
        Copy label, macro and thumbnail too. A label often shows the name of the patient.
    tile_error : {"raise", "fill"}
        A tile that cannot be decoded stops the conversion, or becomes background and a
        warning.
    resume : bool
        Go on with what an interrupted call with the same arguments left, to the store that
        it would have written; where there is nothing, begin. What is complete stays.
    overwrite : bool
        Replace a store that is there, which stays until the new one is complete. With
        `resume`: go on with an interrupted replacement.
    client : distributed.Client, optional
        Convert on a cluster, whose workers see slide and store under the same names.
        Default: threads of this process.
    progress : bool
        Show a progress bar over blocks.

    Returns
    -------
    Slide
        The converted slide, open.

    Raises
    ------
    StoreError
        Something is at `path`, an interrupted conversion with other arguments is, or the
        store cannot be written (disk full...). What is done stays and can be resumed.
    ImageError
        The slide cannot be read.
    UsageError, ResolutionError, GeometryError
        Arguments that contradict each other or the slide.

    Examples
    --------
    >>> slide = daskdmed.open_slide("slide.svs")  # doctest: +SKIP
    >>> converted = slide.to_ome_zarr("slide.ome.zarr")  # doctest: +SKIP
    """
    slide = _opened(slide)
    version = check_version(version)
    codec = compressors_for(compressor, version)
    sharded = version == "0.5"
    plan = plan_levels(slide, level, mpp, pyramid, chunks, shards, sharded, tile_error)
    location = _target(path, client)
    job = _Job(slide, plan, version, codec, associated, location)
    place = job.place(resume=resume, overwrite=overwrite)
    if place is not None:
        job.run(place, client, progress)
        try:
            location.replace(place)
        except OSError as error:
            then = f"the new store is complete in {place}; resume=True puts it in place"
            raise write_failure(location, error, then) from error
    return open_slide(str(location))


def _opened(image: ImageLike) -> Slide:
    slide = images_of(image).only("slide_to_ome_zarr").open()
    if not isinstance(slide, Slide):
        raise UsageError(
            f"slide_to_ome_zarr copies the levels of a slide, got {slide!r}: write arrays with "
            "dask.array.to_zarr, and views by level= or mpp= of their slide"
        )
    return slide


def _target(path: PathLike, client: Client | None) -> Location:
    location = Location.of(path).writable(client)
    if not isinstance(location.target, str):
        raise UsageError(
            f"path must be a path or a URL, got {type(path).__name__}; slides open by name only"
        )
    return location


@dataclass(frozen=True)
class CopyTask:
    """Copies one block of a slide's view to a zarr.Array (c, y, x), of which blocks are whole
    shards."""

    view: Any
    target: Any

    def __call__(self, region: Region) -> None:
        values = np.empty(region.shape, self.target.dtype)
        self.view.read(Region(region.origin[1:], region.shape[1:]), values.transpose(1, 2, 0))
        self.target[region.slices] = values


class _LevelJob(Job):
    """The blocks of one level that are not done; a level that is built reads the one before."""

    name = NAME

    def __init__(
        self,
        image: str,
        level: PlannedLevel,
        call: Callable[[Region], None],
        done: DoneMap,
        first: int,
    ) -> None:
        self.image = image
        self.needs_those_before = level.view is None
        self._call, self._done = call, done
        blocks = enumerate(level.regions(), first)
        self._pending: dict[Index, Region] = {
            (i,): region for i, region in blocks if not done[(i,)]
        }
        self.total, self.finished = level.blocks, level.blocks - len(self._pending)

    def graph(self) -> tuple[Mapping[Any, Any], Mapping[Any, Index]]:
        return call_graph(self.name, self._call, self._pending)

    def mark(self, index: Index, result: Any) -> None:
        self._done.mark(index)
        self.finished += 1

    def flush(self) -> None:
        self._done.flush()

    finish = flush


@dataclass(frozen=True)
class _Job:
    """One conversion: what is written, and how far it is."""

    slide: Slide
    plan: list[PlannedLevel]
    version: str
    codec: Any
    associated: bool
    location: Location

    @property
    def fill(self) -> int:
        """Value of chunks without an object: the background, when it is the same everywhere."""
        values = set(self.slide.background)
        return int(values.pop()) if len(values) == 1 else 0

    @property
    def _method(self) -> Method:
        """How levels that the slide does not have are made."""
        return "nearest" if self.slide.is_labels else "mean"

    @property
    def _power(self) -> float | None:
        """Objective power at the finest level that is written."""
        view = self.plan[0].view
        if self.slide.power is None or view is None:
            return None
        return self.slide.power / (sum(view.downsample) / 2)

    def parameters(self) -> dict[str, Any]:
        """Everything that the bytes of the store depend on."""
        plain = {
            "slide": self.slide.token,
            "version": self.version,
            "compressor": str(self.codec),
            "associated": self.associated,
            "levels": [level.to_json() for level in self.plan],
        }
        found: dict[str, Any] = json.loads(json.dumps(plain))
        return found

    def attributes(self, state: str) -> dict[str, Any]:
        own = {
            "kind": KIND,
            "state": state,
            "version": __version__,
            "image": self.slide.uri,
            "power": self._power,
            "parameters": self.parameters(),
        }
        return {"daskdmed": own}

    def place(self, *, resume: bool, overwrite: bool) -> Location | None:
        """Where to write, empty or to be resumed; None when there is nothing to do."""
        location = self.location
        try:
            there = location.holds_group()
            own = self._own(location) if there else {}
            begun = own.get("state") == "incomplete"
            if there and not begun and not overwrite:
                if resume and own.get("kind") == KIND:
                    self._check(location, own)
                    # a run that was killed at its last step leaves the map
                    del location.open("r+", ZARR_FORMATS[self.version])[DONE]
                    return None
                raise StoreError(
                    f"{location} holds a Zarr group already; overwrite=True replaces it when the "
                    "new one is complete, or give another path"
                )
            direct = location.path is None and (begun or not there)
            place = location if direct else location.staging
            if not (begun if direct else place.holds_group()):
                return place
            own = self._own(place)
            if resume and own:
                self._check(place, own)
                place.sweep()
                return place
            if own and not overwrite:
                raise StoreError(
                    f"an interrupted conversion is in {place}; resume=True goes on with it, "
                    "overwrite=True begins anew"
                )
            place.remove()
        except OSError as error:
            if isinstance(error, DaskdmedError):
                raise
            raise write_failure(location, error) from error
        return place

    def _own(self, place: Location) -> dict[str, Any]:
        own: Any = place.open("r", zarr_format=None).attrs.get("daskdmed")
        return own if isinstance(own, dict) else {}

    def _check(self, place: Location, own: dict[str, Any]) -> None:
        check_parameters(
            place,
            {"kind": own.get("kind"), **own.get("parameters", {})},
            {"kind": KIND, **self.parameters()},
        )

    def run(self, place: Location, client: Client | None, progress: bool) -> None:
        """Do what is not done, and make it an image."""
        done: DoneMap | None = None
        try:
            with damage_named(place):
                group, arrays, done = self._open(place)
            if done is not None:
                run(self._levels(arrays, done), name=NAME, client=client, show=progress)
                self._finish(group, arrays, client)
            else:
                del group[DONE]
        except DaskdmedError as error:
            error.add_note(self._state(done, place))
            raise
        except OSError as error:
            raise write_failure(place, error, self._state(done, place)) from error

    def _state(self, done: DoneMap | None, place: Location) -> str:
        if done is None:
            return "nothing is lost: no block was written"
        return (
            f"{done.finished} of {done.total} blocks are done and kept in {place}; "
            "call again with resume=True to go on"
        )

    def _open(self, place: Location) -> tuple[zarr.Group, list[Any], DoneMap | None]:
        """Group, arrays and map, made where they are missing; no map when all is done."""
        zarr_format = ZARR_FORMATS[self.version]
        if place.holds_group():
            group = place.open("r+", zarr_format)
        else:
            group = zarr.create_group(
                place.target, zarr_format=zarr_format, attributes=self.attributes("incomplete")
            )
        arrays: list[Any] = []
        for level in self.plan:
            if level.place.path not in group:
                if DONE in group:
                    missing = level.place.path
                    raise StoreError(f"blocks are marked as done, and level {missing!r} is missing")
                create_level(
                    group,
                    level.place.path,
                    shape=level.shape,
                    chunks=level.chunks,
                    shards=level.shards,
                    dtype=self.slide.dtype.str,
                    fill_value=self.fill,
                    axes=_AXES,
                    compressors=self.codec,
                )
            arrays.append(group[level.place.path])
        own: Any = group.attrs["daskdmed"]
        if own["state"] == "complete":
            return group, arrays, None
        return group, arrays, DoneMap(group, (sum(level.blocks for level in self.plan),))

    def _levels(self, arrays: list[Any], done: DoneMap) -> Iterator[Job]:
        first = 0
        for number, (level, array) in enumerate(zip(self.plan, arrays, strict=True)):
            call: Any
            if level.view is not None:
                call = CopyTask(level.view, array)
            else:
                factors = (1, level.factor, level.factor)
                call = ReduceTask(arrays[number - 1], array, factors, self._method)
            yield _LevelJob(self.slide.uri, level, call, done, first)
            first += level.blocks

    def _finish(self, group: zarr.Group, arrays: list[Any], client: Client | None) -> None:
        """Associated images, then the metadata in one write, then the map is dropped."""
        if self.associated and self.slide.associated_images:
            home = group.require_group("associated")
            for name, picture in self.slide.associated_images.items():
                extra = {} if self.version == "0.4" else {"dimension_names": ("y", "x", "c")}
                home.create_array(
                    name, data=np.ascontiguousarray(picture), chunks=picture.shape, overwrite=True,
                    **extra,
                )  # fmt: skip
        micrometer = None if self.slide.mpp is None else "micrometer"
        image = Multiscale(
            axes=(Axis.named("c"), Axis.named("y", micrometer), Axis.named("x", micrometer)),
            levels=tuple(level.place for level in self.plan),
            name=self.slide.uri.rstrip("/").rsplit("/", 1)[-1],
            method=self._method if any(level.view is None for level in self.plan) else "",
            channels=tuple(self._channels(arrays[-1], client)),
            version=self.version,
            is_labels=self.slide.is_labels,
        )
        group.attrs.put({**image.attributes(), **self.attributes("complete")})
        del group[DONE]

    def _channels(self, coarsest: Any, client: Client | None) -> list[Channel]:
        count, known = coarsest.shape[0], self.slide.channels
        if self.slide.is_labels:
            return []
        if known is None and self.slide.info.is_rgb:
            top = float(np.iinfo(self.slide.dtype).max)
            named = zip(_RGB, RGB_COLORS, strict=True)
            return [Channel(name, color, (0.0, top), (0.0, top)) for name, color in named]
        if self.slide.dtype == np.uint8:
            windows = [(0.0, 255.0)] * count
        else:
            windows = value_range(coarsest, 0, client)
        shown = make_channels(count, windows, None, None)
        if known is not None:
            shown = [_described(*pair) for pair in zip(shown, known, strict=True)]
        return shown


def _described(shown: Channel, known: ChannelInfo) -> Channel:
    """A channel with what the slide says of it."""
    return replace(
        shown,
        label=known.name or shown.label,
        color=known.color or shown.color,
        window=known.window or shown.window,
        emission=known.wavelength,
        excitation=known.excitation,
    )
