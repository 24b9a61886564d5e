"""`Record`: one image of a patient, or what was drawn on one.

A value without handles: it pickles, hashes, compares by what it names, and opens its image only
when asked to. Not covered: whose it is (`daskdmed.cohort.patient`), and how it is opened
(`daskdmed.cohort.opening`).
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from daskdmed.cohort.opening import open_file, view_of
from daskdmed.cohort.options import (
    IMAGE_OPTIONS,
    as_annotations,
    as_background,
    as_options,
    as_spacing,
)
from daskdmed.core.errors import DaskdmedError, DatasetError, ImageError, ResolutionError
from daskdmed.core.frozen import FrozenMapping, plain
from daskdmed.core.places import StorageOptions
from daskdmed.core.resolution import Resolution
from daskdmed.core.space import Space
from daskdmed.core.types import OnTileError, PathLike
from daskdmed.core.view import ImageView
from daskdmed.images.channels import ChannelsLike
from daskdmed.images.wrapping import as_dask

if TYPE_CHECKING:
    from daskdmed.cohort.annotations.table import Annotations
    from daskdmed.images.slide import Slide
    from daskdmed.images.volumes.volume import Volume

#: files of these names hold annotations, not an image
ANNOTATION_SUFFIXES = (".geojson", ".json", ".xml", ".geojson.gz", ".json.gz", ".xml.gz", ".ndpa")
#: what a record says of its image beside what it is; None or "" when it does not
_OPTIONAL = ("name", "mpp", "backend", "spatial_ndim", "spacing", "background", "space", "options")
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
        options = as_options(options)
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
        steps = None if spacing is None else as_spacing(spacing, mpp)
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
        drawn = None if annotations is None else as_annotations(annotations, backend)
        self.__dict__.update(uri=path, array=lazy, name=name or "", mpp=pair, backend=backend)
        self.__dict__.update(spatial_ndim=spatial_ndim, spacing=steps, _drawn=drawn)
        known = FrozenMapping({str(k): plain(v) for k, v in (facts or {}).items()})
        self.__dict__.update(background=as_background(background), space=space, facts=known)
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
            return open_file(self, spatial_ndim)
        except DaskdmedError:
            raise
        except Exception as error:
            raise ImageError(
                f"{self.uri}: cannot be opened: {type(error).__name__}: {error}", uri=self.uri
            ) from error

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
