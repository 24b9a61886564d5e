"""Volumes: `open_volume`, and a value object like `daskdmed.Slide`.

Arrays are (z, y, x[, c]) as the file stores them: for NIfTI x is the fastest axis, so nothing
is moved. `Space` says where the voxels lie; orientation and spacing are asked for when reading.

Not covered: what the formats mean (the modules beside this one), reading at a resolution
(`daskdmed.images.volumes.view`).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from daskdmed.core.errors import GeometryError, ResolutionError, UsageError
from daskdmed.core.places import StorageOptions, using
from daskdmed.core.region import Region
from daskdmed.core.space import Space, spacing_of
from daskdmed.core.types import Array, OnTileError, PathLike
from daskdmed.images.channels import ChannelsLike, channel_numbers, composed
from daskdmed.images.filecache import FileKey, OfFile, cache
from daskdmed.images.protocols import LevelInfo, VolumeInfo, VolumeOptions
from daskdmed.images.registry import fingerprint_of, get_backend, open_with
from daskdmed.images.source import normalize_uri
from daskdmed.images.view import SAME_RESOLUTION, SlideView
from daskdmed.images.volumes.view import VolumeView, downsample_for, orient, turned

if TYPE_CHECKING:
    import dask.array as da

_log = logging.getLogger("daskdmed.images")
OnGap = Literal["raise", "resample"]


def open_volume(
    uri: PathLike | Sequence[PathLike],
    *,
    series: str | None = None,
    dataset: str | None = None,
    time: int | Literal["channels"] | None = None,
    form: Literal["sform", "qform"] | None = None,
    backend: str | None = None,
    on_gap: OnGap = "raise",
    storage_options: Mapping[str, Any] | None = None,
) -> Volume:
    """Open a volume: NIfTI, DICOM, HDF5, OME-Zarr, multi-page TIFF or NumPy.

    Parameters
    ----------
    uri : str, path-like or a sequence of these
        A file or URL; for DICOM also a folder, or the files of a series in any order.
    series : str, optional
        Which series of a DICOM folder, by its number, UID or description, with a volume behind
        where the series holds several: "801", "801/0" or "801/FIELD_MAP"; or which image of a
        TIFF file or of what bioformats2raw writes, by its number or name. Needed where several
        volumes lie in it: the error without it lists them.
    dataset : str, optional
        Which array of an HDF5 file or Zarr group; needed where several could be meant.
    time : int or "channels", optional
        Which time point of a 4-D file, counted from 0; "channels" gives all of them as
        channels. Needed where there are several.
    form : {"sform", "qform"}, optional
        Which of its two forms says where a NIfTI file lies; needed where they contradict each
        other by more than a hundredth of a voxel. Default: the one there is.
    backend : str, optional
        A registered backend; default: the first of volumes that reads the file.
    on_gap : {"raise", "resample"}
        What DICOM slices at uneven distances are: an error that names the gaps, or
        interpolated linearly to the most frequent distance.
    storage_options : mapping, optional
        For the file system of a URL, as in `daskdmed.open_slide`. What is read from URLs: NIfTI,
        OME-Zarr and TIFF.

    Returns
    -------
    Volume
        A light value; what is open is kept in a bounded per-process cache.

    Raises
    ------
    ImageNotFoundError, ImagePermissionError, UnsupportedImageError, CorruptImageError
        Naming the file and a remedy.
    GeometryError
        The file says in two ways where it lies (`SpaceError`), or its slices lie on no grid.

    Notes
    -----
    What is compressed as a whole (.nii.gz) is decoded once: in memory up to 512 MiB a file
    (``daskdmed.images.decoded-limit`` of ``dask.config``) and 1 GiB together (``decoded-kept``),
    larger ones into the folder ``DASKDMED_CACHE_DIR`` of at most 50 GiB (``cache-limit``).

    Examples
    --------
    >>> volume = open_volume("t1.nii.gz")  # doctest: +SKIP
    >>> volume.space.orientation, volume.spacing  # doctest: +SKIP
    ('RAS', (1.0, 1.0, 1.0))
    """
    if not (time in (None, "channels") or (isinstance(time, int) and time >= 0)):
        raise UsageError(f"time is a number from 0 or 'channels', got {time!r}")
    if form not in (None, "sform", "qform"):
        raise UsageError(f"form is 'sform' or 'qform', got {form!r}")
    if on_gap not in ("raise", "resample"):
        raise UsageError(f"on_gap is 'raise' or 'resample', got {on_gap!r}")
    path, files = _place(uri)
    options = VolumeOptions(series, dataset, time, form, on_gap, files)
    told = StorageOptions.of(path, storage_options)
    with using(told):
        return _open(path, backend, options, told)


def _open(
    path: str, backend: str | None, options: VolumeOptions, told: StorageOptions | None
) -> Volume:
    name, reader = open_with(path, backend, options)
    try:
        info = reader.info
        if not isinstance(info, VolumeInfo):
            raise UsageError(f"the backend {name!r} reads slides; open them with open_slide")
        found = fingerprint_of(get_backend(name), path, options)
        key = FileKey(path, name, found, options.text, told)
    except BaseException:
        reader.close()
        raise
    cache.put(key, reader)
    return Volume(key, info)


def _place(uri: PathLike | Sequence[PathLike]) -> tuple[str, tuple[str, ...]]:
    """One place, and the names of files in it when it was a list of files."""
    if isinstance(uri, (str, os.PathLike)):
        return normalize_uri(uri), ()
    paths = [normalize_uri(one) for one in uri]
    folders = {os.path.dirname(path) for path in paths}
    if not paths:
        raise UsageError("an empty list of files is no volume")
    folder = os.path.commonpath(folders) if len(folders) > 1 else next(iter(folders))
    return folder, tuple(sorted({os.path.relpath(path, folder) for path in paths}))


class Volume(OfFile):
    """A volume of a file: facts, and ways to its voxels. Picklable, without open handles.

    Made by `open_volume`.
    """

    __slots__ = ("_background", "_space", "_spacing", "info", "key", "picked")

    def __init__(
        self,
        key: FileKey,
        info: VolumeInfo,
        *,
        space: Space | None = None,
        spacing: tuple[float, float, float] | None = None,
        background: tuple[float, ...] | None = None,
        picked: tuple[int, ...] | None = None,
    ) -> None:
        #: `info` is of the channels that were picked, by their numbers in the file; None for all
        self.key, self.info, self.picked = key, info, picked
        self._space, self._spacing, self._background = space, spacing, background

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x) of level 0."""
        z, y, x = self.info.levels[0].shape[:3]
        return z, y, x

    @property
    def channels(self) -> int | None:
        """Number of channels; None for a volume without such an axis."""
        return self.info.levels[0].shape[3] if self.info.has_channels else None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values, after the file's own slope and intercept."""
        return self.info.numpy_dtype

    @property
    def levels(self) -> tuple[LevelInfo, ...]:
        """Levels, largest first."""
        return self.info.levels

    @property
    def space(self) -> Space | None:
        """Where the voxels of level 0 lie; None when neither the file nor the user says."""
        return self._space or self.info.space

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Millimeters per voxel along (z, y, x); None when unknown."""
        return self.space.spacing if self.space else self._spacing or self.info.voxel_size

    @property
    def background(self) -> tuple[float, ...] | None:
        """Value outside of the volume per channel; None when nobody knows what is empty in it."""
        return self._background or self.info.background or None

    @property
    def own(self) -> dict[str, Any]:
        """What the user said of it, as arguments of `with_space`."""
        steps = None if self._space else self._spacing
        return {"space": self._space, "spacing": steps, "background": self._background}

    @property
    def properties(self) -> Mapping[str, str]:
        """What the file says besides, as text."""
        return MappingProxyType(dict(self.info.properties))

    @property
    def token(self) -> str:
        """Deterministic name of the content."""
        return hashlib.blake2b(repr(self._identity()).encode(), digest_size=16).hexdigest()

    def with_space(
        self,
        space: Space | None = None,
        *,
        spacing: Any = None,
        background: Any = None,
    ) -> Volume:
        """The same volume in a space, or with a size of voxels and a value outside of it, that the
        user knows better than the file."""
        steps = self._spacing
        if spacing is not None:
            if None in (found := spacing_of(spacing)):
                raise UsageError(f"the size of voxels is three numbers, got {spacing!r}")
            steps = found  # type: ignore[assignment]
        if space is not None and space.shape != self.shape:
            raise GeometryError(f"{self.uri} has {self.shape} voxels, the space is {space}")
        if spacing is not None and (space or self.info.space) is not None:
            raise UsageError(
                f"{self.uri}: spacing= beside a space, which says it: {space or self.info.space}"
            )
        outside = self._background
        if background is not None:
            outside = tuple(np.broadcast_to(background, (self.channels or 1,)).tolist())
        return _volume(self.key, self.info, space or self._space, steps, outside, self.picked)

    def with_channels(self, channels: ChannelsLike) -> Volume:
        """The same volume of some of its channels: numbers, or the names in ``info.channels``, in
        the order wanted. Where a file stores them one by one no others are read."""
        count = self.info.levels[0].shape[-1]
        numbers = channel_numbers(self.uri, channels, self.info.channels, count)
        if numbers == tuple(range(count)):
            return self
        outside = self._background
        if outside is not None:
            outside = tuple(outside[n] for n in numbers)
        told, picked = self.info.picked(numbers), composed(self.picked, numbers)
        return _volume(self.key, told, self._space, self._spacing, outside, picked)

    def view(
        self,
        *,
        level: int = 0,
        spacing: Any = None,
        orientation: str | None = None,
        channels: ChannelsLike | None = None,
        tile_error: OnTileError = "raise",
    ) -> VolumeView:
        """The volume at one resolution in one orientation.

        Parameters
        ----------
        level : int
            Of a pyramid.
        spacing : float or sequence of (float or None), optional
            Millimeters per voxel along each axis of the result, (z, y, x); None leaves an axis
            as it is. Values are averaged over the areas of voxels, or interpolated linearly
            where voxels become smaller; maps of labels take the most frequent one.
        orientation : str, optional
            Where the axes of the result grow to, written as nibabel, ITK and MONAI do, x first:
            "RAS" gives (z, y, x) arrays with z to superior, y to anterior, x to the right.
            Default: as stored.
        channels : str, int or sequence of these, optional
            As of `with_channels`; default all.
        tile_error : {"raise", "fill"}
            What a part of the file that cannot be decoded becomes.

        Raises
        ------
        ResolutionError
            No such level, or the file does not say what was asked for.
        """
        if tile_error not in ("raise", "fill"):
            raise UsageError(f"tile_error must be 'raise' or 'fill', got {tile_error!r}")
        if channels is not None:
            some = self.with_channels(channels)
            return some.view(
                level=level, spacing=spacing, orientation=orientation, tile_error=tile_error
            )
        if not 0 <= level < len(self.levels) or (spacing is not None and level):
            raise ResolutionError(
                f"{self.uri}: level={level}, spacing={spacing!r}; give one of both, there are "
                f"levels 0 to {len(self.levels) - 1}"
            )
        order, flips, space = orient(self.uri, self.space, orientation)
        own = self.spacing
        steps = None if own is None else tuple(own[axis] for axis in order)
        wanted = downsample_for(self.uri, spacing, steps)
        if spacing is None:
            wanted = tuple(self.levels[level].downsample[axis] for axis in order)
        else:
            level = self._level_for(wanted, order)
        found = turned(
            self._stored(level, tile_error),
            wanted=wanted,
            order=order,
            flips=flips,
            full=tuple(self.shape[axis] for axis in order),
            space=space,
            spacing=steps,
            channels=self.info.has_channels,
            outside=self.background,
        )
        return found.as_labels() if self.info.is_labels else found

    def _level_for(self, wanted: tuple[float, ...], order: tuple[int, ...]) -> int:
        """The coarsest level that is still fine enough."""
        best = 0
        for number, level in enumerate(self.levels):
            down = (level.downsample[axis] for axis in order)
            if all(d <= w * (1 + SAME_RESOLUTION) for d, w in zip(down, wanted, strict=True)):
                best = number
        return best

    def _stored(self, number: int, tile_error: OnTileError) -> SlideView:
        """A level as it is in the file, (z, y, x, c)."""
        level = self.levels[number]
        return SlideView(
            key=self.key,
            level=number,
            shape=level.shape,
            source_shape=level.shape,
            source_tile=level.tile_shape,
            scale=None,
            downsample=level.downsample,
            dtype_name=self.info.dtype,
            background_value=self.info.background,
            mpp=None,
            tile_error=tile_error,
            channels=self.picked,
        )

    def to_dask(
        self,
        level: int = 0,
        *,
        spacing: Any = None,
        orientation: str | None = None,
        channels: ChannelsLike | None = None,
        chunks: int | tuple[int, int, int] = 256,
    ) -> da.Array:
        """The volume as a lazy array (z, y, x[, c]); arguments as of `view`.

        `chunks` is the extent of a block along each axis, rounded down to whole storage tiles.
        """
        from daskdmed.images.lazy import to_dask

        view = self.view(level=level, spacing=spacing, orientation=orientation, channels=channels)
        return to_dask(view, chunks)

    def read(self, origin: Sequence[int], shape: Sequence[int], level: int = 0) -> Array:
        """Voxels (z, y, x[, c]) of a box of a level; GeometryError where it reaches outside."""
        return self.view(level=level).read(Region(tuple(origin), tuple(shape)))

    def close(self) -> None:
        """Close the file in this process; reading opens it again."""
        cache.discard(self.uri)

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _identity(self) -> tuple[Any, ...]:
        some = () if self.picked is None else (("channels", self.picked),)
        return self.key, self._space, self._spacing, self._background, *some

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Volume) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> tuple[Any, ...]:
        own = self._space, self._spacing, self._background
        return _volume, (self.key, self.info, *own, self.picked)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "daskdmed.Volume", self.token

    def __repr__(self) -> str:
        where = self.space or f"{' x '.join(map(str, self.shape))} voxels (z, y, x)"
        more = f", {self.channels} channels" if self.channels else ""
        return f"Volume({self.uri!r}, {where}{more}, {self.dtype}, backend {self.backend!r})"

    def _repr_html_(self) -> str:
        from daskdmed.images.html import volume_html

        return volume_html(self)


def _volume(
    key: FileKey, info: VolumeInfo, space: Any, spacing: Any, background: Any, picked: Any
) -> Volume:
    return Volume(key, info, space=space, spacing=spacing, background=background, picked=picked)
