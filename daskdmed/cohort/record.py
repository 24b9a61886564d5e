"""`Record` (one image) and `Patient` (an id, named records, labels).

Values without handles: they pickle, hash, compare by what they name, and open their image
only when asked to. Not covered: collections of patients (`daskdmed.cohort.dataset`), and
how pixels are read (`daskdmed.images`).
"""

from __future__ import annotations

import copy
import functools
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import DaskdmedError, DatasetError, ImageError, ResolutionError
from daskdmed.core.frozen import FrozenMapping, missing, plain
from daskdmed.core.places import StorageOptions, using
from daskdmed.core.resolution import Resolution
from daskdmed.core.space import Space
from daskdmed.core.types import OnTileError, PathLike
from daskdmed.core.view import ImageView
from daskdmed.images.channels import ChannelsLike, as_channels, with_channels
from daskdmed.images.wrapping import as_dask

if TYPE_CHECKING:
    from daskdmed.cohort.annotations.table import Annotations
    from daskdmed.images.slide import Slide
    from daskdmed.images.volumes.volume import Volume

#: the record that `Patient.record` takes when a patient has several and none is named
DEFAULT_RECORD = "wsi"
#: files of these names hold annotations, not an image
ANNOTATION_SUFFIXES = (".geojson", ".json", ".xml", ".geojson.gz", ".json.gz", ".xml.gz", ".ndpa")
#: what a record says of its image beside what it is; None or "" when it does not
_OPTIONAL = ("name", "mpp", "backend", "spatial_ndim", "spacing", "background", "space", "options")
#: what a record tells `daskdmed.open_volume`
VOLUME_OPTIONS = ("series", "dataset", "time", "form", "on_gap")
#: what it tells `daskdmed.open_slide`, and of its colours
SLIDE_OPTIONS = ("image", "plane", "color")
#: all that it may say of which image of a file is meant, and what of it
IMAGE_OPTIONS = (*VOLUME_OPTIONS, *SLIDE_OPTIONS, "channels")
_NO_GRID = (
    "{!r} holds annotations, which have no pixels of their own; paint them on an image's grid: "
    "daskdmed.cohort.annotations.target_view(record, image.view(...), classes=...)"
)


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """One image of a patient: a file, or an array; or what was drawn on one of its images.

    A record of annotations (`is_annotations`) has no grid of its own: it is painted on that
    of another record, see `daskdmed.cohort.annotations.target_view`.

    Parameters
    ----------
    uri : path or str, optional
        A file or URL that some backend of `daskdmed.images` reads; or a file of annotations
        (``.geojson``, ``.json``, ``.xml``, each also ``.gz``; ``.ndpa`` beside its slide).
    array : dask.array.Array, numpy.ndarray, zarr.Array or h5py.Dataset, optional
        Spatial axes first, (y, x[, c]) or (z, y, x[, c]). All become lazy Dask arrays.
    annotations : Annotations, optional
        Annotations in memory, for instance read with an offset or other labels. Exactly one
        of `uri`, `array` and `annotations` is given.
    name : str, optional
        Name within the patient; `Patient` sets it to the key in its `records`.
    mpp : float or (float, float), optional
        Micrometers per pixel at level 0, one number or (x, y). For files it overrides what
        the file says, for files without one it supplies it.
    backend : str, optional
        Backend to read the file with, instead of the first that accepts it.
    spatial_ndim : int, optional
        Number of leading axes of an array that are space. Without it the caller of `view`
        decides (loaders: the number of axes of ``smallchunk_size``).
    spacing : float or sequence of float, optional
        Millimeters per voxel of an array or volume along each spatial axis, array order,
        (z, y, x) or (y, x); one number counts for every axis. Not beside `mpp` and `space`.
    background : number or sequence of numbers, optional
        Value outside an array or volume, one or one per channel: what padding consists of.
        Default white for three channels of uint8, else 0; signed integers are not padded
        without it (air is -1024 in CT).
    space : Space, optional
        Where the voxels of an array or volume lie in the patient; for files in the place of
        what they say.
    series, dataset, time, form, on_gap : optional
        Which volume of a file, see `daskdmed.open_volume`.
    image, plane : int or str, optional
        Which image of a file, and which plane of a stack, see `daskdmed.open_slide`.
    color : {"srgb"}, optional
        Read a slide with its colours converted by the file's profile, see `Slide.to_srgb`.
    channels : str, int or sequence of these, optional
        Names or numbers of the channels that the image consists of, in their order; of files that
        store them one by one no others are read. Default all.
    storage_options : mapping, optional
        For the file system of a URL, see `daskdmed.open_slide`. Neither equality nor the token
        of a record knows them, and manifests do not hold them.
    facts : mapping, optional
        Anything else known of the image (stain, scanner, date...).

    Raises
    ------
    DatasetError
        None or several of `uri`, `array` and `annotations`, or an array of a kind that is
        not known.
    ResolutionError
        `mpp` is not one or two positive numbers, `spacing` not positive numbers, or both are
        given.
    """

    uri: str | None = None
    array: Any = field(default=None, kw_only=True)
    name: str = field(default="", kw_only=True)
    mpp: tuple[float, float] | None = field(default=None, kw_only=True)
    backend: str | None = field(default=None, kw_only=True)
    spatial_ndim: int | None = field(default=None, kw_only=True)
    spacing: tuple[float, ...] | None = field(default=None, kw_only=True)
    background: float | tuple[float, ...] | None = field(default=None, kw_only=True)
    space: Space | None = field(default=None, kw_only=True)
    #: what `daskdmed.open_slide` or `daskdmed.open_volume` is told of a file beside its name, and
    #: what is taken of the image
    options: Mapping[str, Any] = field(default_factory=FrozenMapping, kw_only=True)
    facts: Mapping[str, Any] = field(default_factory=FrozenMapping, kw_only=True)
    storage_options: StorageOptions | None = field(default=None, kw_only=True)
    _drawn: Annotations | None = field(default=None, init=False)

    # written out because it accepts more than it stores: paths, one number for mpp
    def __init__(
        self,
        uri: PathLike | None = None,
        *,
        array: Any = None,
        annotations: Annotations | None = None,
        name: str | None = "",
        mpp: float | tuple[float, float] | None = None,
        backend: str | None = None,
        spatial_ndim: int | None = None,
        spacing: float | Sequence[float] | None = None,
        background: float | Sequence[float] | None = None,
        space: Space | None = None,
        facts: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        unknown = [name for name in options if name not in IMAGE_OPTIONS]
        if unknown:
            raise TypeError(f"Record() got an unexpected keyword argument {unknown[0]!r}")
        options = _as_options(options)
        given = {"uri": uri, "array": array, "annotations": annotations}
        named = [key for key, value in given.items() if value is not None]
        if len(named) != 1:
            both = f"both {' and '.join(named)}, uri={os.fspath(uri or '')!r}"
            got = both if named else "neither"
            raise DatasetError(
                f"a record needs exactly one of uri=, array= and annotations=, got {got}; "
                "write Record('slide.svs'), Record(array=x) or Record('slide.geojson')"
            )
        if uri is not None and not isinstance(uri, (str, os.PathLike)):
            raise DatasetError(
                f"the uri of a record is a path or a str, got {type(uri).__name__}; "
                "give an array as Record(array=x)"
            )
        path = None if uri is None else os.fspath(uri)
        if path == "":
            raise DatasetError("the uri of a record is empty; write Record('slide.svs')")
        if path is None and storage_options:
            raise DatasetError(f"storage_options= are for URLs, this record has {named[0]}=")
        told = None if path is None else StorageOptions.of(path, storage_options)
        pair = None if mpp is None else Resolution.of(mpp=mpp).mpp
        steps = None if spacing is None else _as_spacing(spacing, mpp)
        if steps is not None and len(steps) > 1:
            spatial_ndim = spatial_ndim or len(steps)
        if space is not None:
            spatial_ndim = spatial_ndim or 3
        lazy = None if array is None else as_dask(array, spatial_ndim)
        if lazy is not None and backend is not None:
            raise DatasetError(f"backend={backend!r} is for files, this record is an array")
        if space is not None and (steps is not None or mpp is not None):
            raise ResolutionError(f"{space!r} says how large voxels are; leave spacing, mpp away")
        odd = [n for n, v in (("spacing", steps), ("background", background)) if v is not None]
        odd += ["space"] * (space is not None) + list(options)
        of_files = options.keys() - {"channels"}
        if odd and (annotations is not None or (lazy is not None and of_files)):
            raise DatasetError(f"{', '.join(odd)} mean nothing beside {named[0]}=")
        drawn = None if annotations is None else _as_annotations(annotations, backend)
        self.__dict__.update(uri=path, array=lazy, name=name or "", mpp=pair, backend=backend)
        self.__dict__.update(spatial_ndim=spatial_ndim, spacing=steps, _drawn=drawn)
        known = FrozenMapping({str(k): plain(v) for k, v in (facts or {}).items()})
        self.__dict__.update(background=_as_background(background), space=space, facts=known)
        self.__dict__.update(options=FrozenMapping(options), storage_options=told)

    @classmethod
    def stack(
        cls,
        paths: PathLike | Iterable[PathLike],
        axis: int = 0,
        *,
        dataset: str | None = None,
        spacing: float | Sequence[float] | None = None,
        space: Space | None = None,
        background: float | Sequence[float] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Record:
        """A volume of which every slice is a file: HDF5, ``.npy``, TIFF, PNG...

        The first file is opened, the others when they are read. One that has changed since, or
        has another shape or type than the first, is an `ImageError` then.

        Parameters
        ----------
        paths : str or sequence of path
            A pattern of local files, such as ``"scan/*.png"``, sorted as people count
            ("slice_2" before "slice_10"); or the files in order. Each holds (y, x) or (y, x, c);
            a third axis of one pixel is left out.
        axis : int, default 0
            Along which they are stacked: 0 gives (z, y, x[, c]).
        dataset : str, optional
            Of HDF5 files, the array in them; needed where they hold several.
        spacing, space, background, facts : optional
            As of `Record`, of the volume.

        Raises
        ------
        DatasetError
            No file matches, a file twice, or HDF5 without the array.
        ImageError
            The first file is missing, damaged, or holds no slice.
        """
        from daskdmed.cohort.slices import stack_files

        return cls(
            array=stack_files(paths, axis, dataset),
            spatial_ndim=3,
            spacing=spacing,
            space=space,
            background=background,
            facts=facts,
        )

    @functools.cached_property
    def key(self) -> str:
        """Deterministic name: of uri and backend, or of the array. Not of `mpp` or `facts`."""
        from dask.base import tokenize

        if self.array is not None:
            return str(self.array.name)
        if self._drawn is not None:
            return f"annotations-{self._drawn.token}"
        stem = PurePath(str(self.uri)).name or "slide"
        which = (dict(self.options),) if self.options else ()
        return f"{stem}-{tokenize('record', self.uri, self.backend, *which)[:16]}"

    @functools.cached_property
    def token(self) -> str:
        """Deterministic name of all that the record says; records are equal when it is."""
        from dask.base import tokenize

        return str(tokenize(self.key, *(getattr(self, n) for n in (*_OPTIONAL, "facts"))))

    def renamed(self, name: str) -> Record:
        """The same record under another name."""
        twin = copy.copy(self)
        for stale in ("token", "key"):
            twin.__dict__.pop(stale, None)
        object.__setattr__(twin, "name", name)
        return twin

    @property
    def is_annotations(self) -> bool:
        """Whether it holds annotations and not an image, told from the name of the file."""
        if self._drawn is not None:
            return True
        named = self.uri is not None and self.uri.lower().endswith(ANNOTATION_SUFFIXES)
        return named and self.backend is None

    def annotations(self) -> Annotations:
        """The annotations of a record that holds them; a `DatasetError` when it is an image."""
        if self._drawn is not None:
            return self._drawn
        if not self.is_annotations:
            raise DatasetError(
                f"{self!r} is an image; annotations are a .geojson, .json, .xml or .ndpa file, or "
                "Record(annotations=read_annotations(...))"
            )
        from daskdmed.cohort.annotations.reading import annotations_of

        return annotations_of(str(self.uri))

    def open(self, *, spatial_ndim: int | None = None) -> Slide | Volume:
        """Open the slide or volume of a file record; `spatial_ndim` says which is meant, 2 or 3,
        where a file could be either. A `DatasetError` when it is an array or annotations."""
        if self.is_annotations:
            raise DatasetError(_NO_GRID.format(self))
        if self.uri is None:
            raise DatasetError(
                f"{self!r} is an array, there is no slide to open; use Record.view(), "
                "which works for both"
            )
        try:
            return self._open(spatial_ndim)
        except DaskdmedError:
            raise
        except Exception as error:
            raise ImageError(
                f"{self.uri}: cannot be opened: {type(error).__name__}: {error}", uri=self.uri
            ) from error

    def _open(self, spatial_ndim: int | None) -> Slide | Volume:
        from daskdmed.images.registry import get_backend, holds_volume, kind_of
        from daskdmed.images.slide import open_slide
        from daskdmed.images.source import normalize_uri
        from daskdmed.images.volumes.volume import open_volume

        uri = str(self.uri)
        if self.backend is not None:
            volume = kind_of(get_backend(self.backend)) == "volume"
        else:
            asked = spatial_ndim or self.spatial_ndim
            told = any(name in VOLUME_OPTIONS for name in self.options)
            told = told or self.space is not None or self.spacing is not None
            with using(self.storage_options):
                volume = told or asked == 3 or holds_volume(normalize_uri(uri))
        plain, channels = {**self.options}, self.options.get("channels")
        plain.pop("channels", None)
        access: dict[str, Any] = {"backend": self.backend, "storage_options": self.storage_options}
        color = plain.pop("color", None)
        if not volume:
            slide = open_slide(uri, **access, **plain)
            slide = slide if self.mpp is None else slide.with_mpp(self.mpp)
            slide = slide if color is None else slide.to_srgb()
            return slide if channels is None else slide.with_channels(channels)
        if self.mpp is not None:
            raise ResolutionError(f"{uri}: mpp= is for slides; volumes take spacing=")
        odd = [name for name in SLIDE_OPTIONS if name in self.options]
        if odd:
            raise DatasetError(f"{uri}: {odd[0]}= is for slides, this is opened as a volume")
        opened = open_volume(uri, **access, **plain)
        if channels is not None:
            opened = opened.with_channels(channels)
        steps = self.spacing if self.spacing is None or len(self.spacing) > 1 else self.spacing * 3
        return opened.with_space(self.space, spacing=steps, background=self.background)

    def view(
        self,
        *,
        level: int = 0,
        mpp: float | tuple[float, float] | None = None,
        power: float | None = None,
        spacing: Any = None,
        orientation: str | None = None,
        spatial_ndim: int | None = None,
        channels: ChannelsLike | None = None,
        tile_error: OnTileError = "raise",
    ) -> ImageView:
        """The image at one resolution, ready to be read region by region.

        Parameters
        ----------
        level, mpp, power, spacing : optional
            The resolution; they exclude each other. Slides have mpp and power, volumes
            spacing, see `daskdmed.Volume.view`. An array has level 0 only, and
            only the mpp that the record gives.
        orientation : str, optional
            Of volumes, "RAS" for instance.
        spatial_ndim : int, optional
            How many leading axes are space: 2 for every slide, 3 for every volume; for an
            array the record's own, or 2 when neither says.
        channels : str, int or sequence of these, optional
            Of those that the record has, by names or numbers; default all.
        tile_error : {"raise", "fill"}
            What a storage tile of a file that cannot be decoded becomes: an error, or
            background and a warning.

        Raises
        ------
        ResolutionError
            The image does not have this resolution.
        DatasetError, GeometryError
            `spatial_ndim` contradicts the record or the array, or the record is of annotations.
        """
        if self.is_annotations:
            raise DatasetError(_NO_GRID.format(self))
        wanted = Resolution.of(level, mpp, power, spacing)
        return view_of(
            self if self.array is not None else self.open(spatial_ndim=spatial_ndim),
            wanted,
            spatial_ndim=spatial_ndim,
            orientation=orientation,
            channels=channels,
            tile_error=tile_error,
        )

    def _array_view(self, wanted: Resolution, spatial_ndim: int | None) -> ImageView:
        if wanted.level not in (None, 0):
            raise ResolutionError(f"{self!r} is an array and has level 0 only, asked for {wanted}")
        if wanted.power is not None:
            raise ResolutionError(
                f"{self!r} is an array and has no objective power, asked for {wanted}; use level=0"
            )
        if self.spatial_ndim and spatial_ndim and self.spatial_ndim != spatial_ndim:
            raise DatasetError(
                f"{self!r} says spatial_ndim={self.spatial_ndim}, asked for {spatial_ndim}; "
                "give sizes with one number per spatial axis"
            )
        from daskdmed.images.arrayview import ArrayView

        view = ArrayView(
            self.array,
            spatial_ndim or self.spatial_ndim or 2,
            self.mpp,
            spacing=self.spacing,
            space=self.space,
            background=self.background,
        )
        if wanted.mpp is not None and not _same_mpp(wanted.mpp, view.mpp):
            has = "no mpp" if view.mpp is None else f"mpp={view.mpp}"
            raise ResolutionError(
                f"{self!r} is an array with {has}, asked for {wanted}; arrays are not resampled: "
                "use level=0, give Record(array=..., mpp=...), or resample it with Dask first"
            )
        some = self.options.get("channels")
        return view if some is None else with_channels(view, some)

    def __eq__(self, other: object) -> bool:
        return self.token == other.token if isinstance(other, Record) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "Record", self.token

    def __repr__(self) -> str:
        if self._drawn is not None:
            what = f"annotations={self._drawn!r}"
        elif self.array is None:
            what = repr(self.uri)
        else:
            what = f"array={self.array.dtype}{tuple(self.array.shape)}"
        given = [(n, getattr(self, n)) for n in _OPTIONAL if n != "options"]
        given += self.options.items()
        rest = [f"{n}={v!r}" for n, v in given if v not in (None, "")]
        rest += [f"facts={self.facts!r}"] if self.facts else []
        return f"Record({', '.join([what, *rest])})"

    def _repr_html_(self) -> str:
        from daskdmed.cohort.html import record_html

        return record_html(self)


def view_of(
    image: Slide | Volume | Record,
    wanted: Resolution,
    *,
    spatial_ndim: int | None,
    orientation: str | None,
    tile_error: OnTileError,
    channels: ChannelsLike | None = None,
) -> ImageView:
    """What is open, or a record of an array, at a resolution; an error for what it has not."""
    from daskdmed.images.slide import Slide
    from daskdmed.images.volumes.view import view_of_array

    if isinstance(image, Record):
        asked = Resolution(level=0) if wanted.spacing is not None else wanted
        view = image._array_view(asked, spatial_ndim)
        view = view if channels is None else with_channels(view, channels)
        return view_of_array(view, wanted.spacing, orientation)
    if channels is not None:
        image = image.with_channels(channels)
    has = 2 if isinstance(image, Slide) else 3
    if spatial_ndim not in (None, has):
        raise DatasetError(
            f"{image.uri}: a {'slide' if has == 2 else 'volume'} has {has} spatial axes, asked for "
            f"{spatial_ndim}; give sizes with one number per axis"
        )
    if isinstance(image, Slide):
        if wanted.spacing is not None or orientation is not None:
            raise ResolutionError(
                f"{image.uri} is a slide: spacing= and orientation= are for volumes, slides take "
                "level=, mpp= or power="
            )
        level = wanted.level or 0
        return image.view(level=level, mpp=wanted.mpp, power=wanted.power, tile_error=tile_error)
    if wanted.mpp is not None or wanted.power is not None:
        raise ResolutionError(
            f"{image.uri} is a volume, asked for {wanted}; use spacing= or level="
        )
    return image.view(
        level=wanted.level or 0,
        spacing=wanted.spacing,
        orientation=orientation,
        tile_error=tile_error,
    )


@dataclass(frozen=True, eq=False, repr=False)
class Patient:
    """An id, named records and labels.

    Parameters
    ----------
    id : str or int
        Unique within a dataset (compared as text: 1 and "1" are the same id).
    records : mapping of str to Record
        At least one. Each record's `name` becomes its key here.
    labels : mapping, optional
        What is known of the patient: {"grade": 2, "site": "A"}. A value that is missing
        (None, NaN, pandas' NA) is no label.

    Raises
    ------
    DatasetError
        The id is neither text nor an integer, there is no record, or one is not a `Record`.
    """

    id: str | int
    records: Mapping[str, Record]
    labels: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", _clean_id(self.id))
        given: Any = self.records
        if not isinstance(given, Mapping) or not given:
            raise DatasetError(
                f"patient {self.id!r} has no records; give a mapping that is not empty: "
                "Patient(id, {'wsi': Record('slide.svs')})"
            )
        for name, record in given.items():
            if not isinstance(record, Record):
                raise DatasetError(
                    f"patient {self.id!r}: record {name!r} is a {type(record).__name__}; "
                    "wrap it as Record(uri) or Record(array=x)"
                )
            if not isinstance(name, str) or not name:
                raise DatasetError(f"patient {self.id!r}: the record name {name!r} is not a text")
        named = {k: r if r.name == k else r.renamed(k) for k, r in given.items()}
        object.__setattr__(self, "records", FrozenMapping(named))
        labels = {str(k): plain(v) for k, v in self.labels.items() if not missing(v)}
        object.__setattr__(self, "labels", FrozenMapping(labels))

    @property
    def key(self) -> str:
        """The id as text, which is what uniqueness and equality go by."""
        return str(self.id)

    @functools.cached_property
    def token(self) -> str:
        """Deterministic name of id, records and labels; patients are equal when it is."""
        from dask.base import tokenize

        return str(tokenize(self.key, [r.token for r in self.records.values()], self.labels))

    def record(self, name: str | None = None) -> Record:
        """One of the records; without a name the only image, or of several that named "wsi"."""
        names = list(self.records)
        if name is None:
            # what was drawn on an image is no image: it does not count where one is asked for
            names = [n for n, r in self.records.items() if not r.is_annotations] or names
            if len(names) > 1 and DEFAULT_RECORD not in self.records:
                raise DatasetError(
                    f"patient {self.id!r} has {len(names)} records and none is named "
                    f"{DEFAULT_RECORD!r}; say which with record=, one of {names}"
                )
            name = names[0] if len(names) == 1 else DEFAULT_RECORD
        if name not in self.records:
            raise DatasetError(f"patient {self.id!r} has no record {name!r}; it has {names}")
        return self.records[name]

    def __eq__(self, other: object) -> bool:
        return self.token == other.token if isinstance(other, Patient) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "Patient", self.token

    def __repr__(self) -> str:
        return f"Patient({self.id!r}, records={list(self.records)}, labels={dict(self.labels)})"

    def _repr_html_(self) -> str:
        from daskdmed.cohort.html import patient_html

        return patient_html(self)


# every batch holds patients, and training frameworks (Lightning) take the dataclasses in a batch
# apart to look for tensors, and refuse frozen ones: to them a patient is one plain object
del Patient.__dataclass_fields__


def _as_options(said: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of an image, one text or tuple for what can be said in several ways."""
    options = {name: value for name, value in said.items() if value is not None}
    for name in {"image", "plane"} & options.keys():
        options[name] = str(options[name])
    if options.get("color", "srgb") != "srgb":
        raise DatasetError(f"color is 'srgb' or None, got {options['color']!r}")
    if "channels" in options:
        options["channels"] = as_channels(options["channels"])
    return options


def _clean_id(value: Any) -> str | int:
    if isinstance(value, str) and value:
        return str(value)
    if not isinstance(value, (bool, np.bool_)) and hasattr(value, "__index__"):
        return operator.index(value)
    raise DatasetError(f"a patient's id is a text that is not empty, or an integer; got {value!r}")


def _same_mpp(a: tuple[float, float], b: tuple[float, float] | None) -> bool:
    return b is not None and all(
        math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True)
    )


def _as_spacing(spacing: Any, mpp: Any) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in np.ravel(spacing))
    except (TypeError, ValueError):
        values = ()
    if not values or not all(0 < v < math.inf for v in values):
        raise ResolutionError(
            "spacing must be positive numbers, millimeters along each spatial axis in array "
            f"order, got {spacing!r}"
        )
    if mpp is not None:
        raise ResolutionError("mpp and spacing say the same thing in other units; give one")
    return values


def _as_background(given: Any) -> Any:
    """One value, or one per channel; as Python's own numbers, so that equal ones compare so."""
    values = [] if given is None else np.ravel(given).tolist()
    return tuple(values) if len(values) > 1 else (values or [None])[0]


def _as_annotations(value: Any, backend: str | None) -> Annotations:
    from daskdmed.cohort.annotations.table import Annotations

    if not isinstance(value, Annotations):
        raise DatasetError(
            f"annotations= takes Annotations, got {type(value).__name__}; write "
            "Record('slide.geojson') or Record(annotations=read_annotations(...))"
        )
    if backend is not None:
        raise DatasetError(f"backend={backend!r} is for images, this record is annotations")
    return value
