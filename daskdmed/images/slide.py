"""`Slide`: a value object with OpenSlide's names.

A `location` is (x, y) in the level-0 frame and a `size` is (width, height) at the level, as
in OpenSlide; arrays are (y, x, c).

Not covered: making one of a file (`daskdmed.images.opening`), reading at a resolution between
levels (`daskdmed.images.view`).
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.resolution import Resolution
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.associated import Associated
from daskdmed.images.channels import ChannelsLike, channel_numbers, composed
from daskdmed.images.composite import display
from daskdmed.images.filecache import FileKey, OfFile, cache
from daskdmed.images.protocols import ChannelInfo, LevelInfo, SlideInfo
from daskdmed.images.srgb import convert, transform_of
from daskdmed.images.view import SlideView, make_view

if TYPE_CHECKING:
    import dask.array as da

    from daskdmed.store.export.slides import slide_to_ome_zarr

#: most bytes that one `read_region` gives; larger areas are what `to_dask` is for
MAX_REGION_BYTES = 2**34


class _FromAbove:
    """A function of a higher layer as a method: found by its name when it is looked up.

    Nothing in this layer imports it; signature and help are the function's own.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, slide: Slide | None, owner: type[Slide]) -> Any:
        function = pkgutil.resolve_name(self._name)
        return function if slide is None else MethodType(function, slide)


class Slide(OfFile):
    """A whole-slide image: facts, and ways to its pixels. Picklable, without open handles.

    Made by `daskdmed.open_slide`. Equal when file, backend, fingerprint, image, plane, mpp,
    channels and colours are equal.
    """

    __slots__ = ("_mpp", "info", "is_srgb", "key", "picked")

    def __init__(
        self,
        key: FileKey,
        info: SlideInfo,
        mpp: tuple[float, float] | None = None,
        picked: tuple[int, ...] | None = None,
        is_srgb: bool = False,
    ) -> None:
        self.key = key
        #: of the channels that were picked
        self.info = info
        self._mpp = mpp
        #: numbers of these among all of the file; None for all
        self.picked = picked
        #: whether colours are converted, see `to_srgb`
        self.is_srgb = is_srgb

    @property
    def token(self) -> str:
        """Deterministic name of the content."""
        return hashlib.blake2b(repr(self._identity()).encode(), digest_size=16).hexdigest()

    @property
    def levels(self) -> tuple[LevelInfo, ...]:
        """Levels, largest first."""
        return self.info.levels

    @property
    def level_count(self) -> int:
        """Number of levels."""
        return len(self.info.levels)

    @property
    def dimensions(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.level_dimensions[0]

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level."""
        return tuple((level.shape[1], level.shape[0]) for level in self.info.levels)

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Downsample of each level, the mean of both axes as in OpenSlide."""
        return tuple(sum(level.downsample) / 2 for level in self.info.levels)

    @property
    def level_tile_shapes(self) -> tuple[tuple[int, int], ...]:
        """Storage tile (height, width) of each level."""
        return tuple((lv.tile_shape[0], lv.tile_shape[1]) for lv in self.info.levels)

    @property
    def properties(self) -> Mapping[str, str]:
        """Metadata by OpenSlide's property names."""
        return MappingProxyType(dict(self.info.properties))

    @property
    def mpp(self) -> tuple[float, float] | None:
        """(x, y) micrometers per pixel at level 0, None when unknown."""
        return self._mpp if self._mpp is not None else self.info.mpp

    @property
    def power(self) -> float | None:
        """Objective power, None when unknown."""
        return self.info.power

    @property
    def dtype(self) -> np.dtype[Any]:
        """Sample type."""
        return self.info.numpy_dtype

    @property
    def background(self) -> tuple[int, ...]:
        """Value of pixels outside the image, one per channel."""
        return tuple(self.info.background)

    @property
    def associated_images(self) -> Mapping[str, Array]:
        """Label, macro, thumbnail as (h, w, c) arrays, read when they are looked up."""
        return Associated(self.key, self.info.associated)

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images in the file, when it holds several: ``image=`` of `open_slide`."""
        return self.info.images

    @property
    def planes(self) -> tuple[str, ...]:
        """Names of the focal planes and time points, when there are several: ``plane=`` of
        `open_slide`."""
        return self.info.planes

    @property
    def plane(self) -> str:
        """The one of `planes` that is read; "" where the image is one plane."""
        return self.info.plane

    @property
    def channels(self) -> tuple[ChannelInfo, ...] | None:
        """Names of the channels, each with its `color`, `wavelength` and `excitation` where the
        file has them; None where it names none, as of RGB."""
        return self.info.channels or None

    @property
    def is_labels(self) -> bool:
        """Whether the file says that its values are labels."""
        return self.info.is_labels

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC colour profile in the file, read on access; None when it holds none."""
        with cache.lease(self.key) as reader:
            read = getattr(reader, "icc_profile", None)
            found: bytes | None = None if read is None else read()
        return found

    def with_mpp(self, mpp: float | tuple[float, float]) -> Slide:
        """The same slide with its level-0 resolution, micrometers per pixel (x, y), given by the
        user."""
        pair = Resolution.of(mpp=mpp).mpp
        return Slide(self.key, self.info, pair, self.picked, self.is_srgb)

    def with_channels(self, channels: ChannelsLike) -> Slide:
        """The same slide of some of its channels: names or numbers, in the order wanted.

        Of files that store channels one by one (fluorescence) no others are read or decoded.

        Raises
        ------
        UsageError
            A channel that is not there; the error lists those that are.
        """
        count = self.levels[0].shape[-1]
        numbers = channel_numbers(self.uri, channels, self.info.channels, count)
        if numbers == tuple(range(count)):
            return self
        if self.is_srgb:
            raise UsageError(f"{self.uri}: of colours that are converted all channels are needed")
        told = self.info.picked(numbers)
        return Slide(self.key, told, self._mpp, composed(self.picked, numbers))

    def to_srgb(self) -> Slide:
        """The same slide in sRGB: what is read is converted by the file's ICC profile.

        By Pillow's ImageCms with the rendering intent of the profile, block by block, where pixels
        are read: about 30 ms per million of them. The background outside the slide too.

        Raises
        ------
        UnsupportedImageError
            The file holds no profile, or one that is not for RGB.
        UsageError
            The slide has no three channels of uint8.
        """
        if self.dtype != np.uint8 or self.levels[0].shape[-1] != 3 or self.is_labels:
            kind = "labels" if self.is_labels else self.dtype
            raise UsageError(
                f"{self.uri} has {self.levels[0].shape[-1]} channels of {kind}; colours are three "
                "of uint8"
            )
        if self.is_srgb:
            return self
        with cache.lease(self.key) as reader:
            transform = transform_of(self.key, reader)
        outside = np.array(self.background, np.uint8)[None, None]
        convert(outside, transform)
        told = replace(self.info, background=tuple(outside[0, 0].tolist()))
        return Slide(self.key, told, self._mpp, self.picked, True)

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """The coarsest level that is at least as fine as a downsample, as in OpenSlide."""
        best = 0
        for number, value in enumerate(self.level_downsamples):
            if value <= downsample:
                best = number
        return best

    def view(
        self,
        *,
        level: int = 0,
        mpp: float | tuple[float, float] | None = None,
        power: float | None = None,
        channels: ChannelsLike | None = None,
        tile_error: OnTileError = "raise",
    ) -> SlideView:
        """The slide at one resolution.

        Parameters
        ----------
        level, mpp, power
            Mutually exclusive. An mpp within 0.1 % of a level's uses that level as it is;
            between levels the next finer one is averaged over areas; finer than level 0 it
            is interpolated linearly. Power is taken relative to the file's objective power.
            Labels take the nearest pixel instead.
        channels : str, int or sequence of these, optional
            As of `with_channels`; default all.
        tile_error : {"raise", "fill"}
            A storage tile that cannot be decoded is an error, or becomes background, is
            logged, and is listed in `failed_tiles`.

        Raises
        ------
        ResolutionError
            No such level, or the file does not say its mpp or power.
        """
        if tile_error not in ("raise", "fill"):
            raise UsageError(f"tile_error must be 'raise' or 'fill', got {tile_error!r}")
        slide = self if channels is None else self.with_channels(channels)
        return make_view(slide, Resolution.of(level, mpp, power), tile_error)

    def to_dask(
        self,
        level: int = 0,
        *,
        mpp: float | tuple[float, float] | None = None,
        power: float | None = None,
        channels: ChannelsLike | None = None,
        chunks: int | tuple[int, int] = 4096,
        tile_error: OnTileError = "raise",
    ) -> da.Array:
        """The slide at one resolution as a lazy array (y, x, c).

        Parameters
        ----------
        level, mpp, power, channels, tile_error
            As in `view`.
        chunks : int or (int, int)
            Block extent along (y, x), rounded down to whole storage tiles.

        Returns
        -------
        dask.array.Array
            One task per block; the name is the same for the same file and arguments.
        """
        from daskdmed.images.lazy import to_dask

        view = self.view(
            level=level, mpp=mpp, power=power, channels=channels, tile_error=tile_error
        )
        return to_dask(view, chunks)

    def read_region(
        self,
        location: tuple[int, int],
        level: int,
        size: tuple[int, int],
        *,
        tile_error: OnTileError = "raise",
    ) -> Array:
        """Pixels of a rectangle; outside the slide the background.

        Parameters
        ----------
        location : (int, int)
            (x, y) of the top left pixel in the level-0 frame; may be negative. At other
            levels it is divided by the level's downsample per axis and rounded to the
            nearest pixel, so nothing is interpolated.
        level : int
            Level index.
        size : (int, int)
            (width, height) at that level.

        Returns
        -------
        ndarray
            (height, width, channels).

        Raises
        ------
        GeometryError
            A negative size, or more than `MAX_REGION_BYTES`.
        ResolutionError
            No such level.
        """
        x, y = _pair(location, "location")
        width, height = _pair(size, "size")
        view = self.view(level=level, tile_error=tile_error)
        nbytes = width * height * view.shape[2] * view.dtype.itemsize
        if width < 0 or height < 0 or nbytes > MAX_REGION_BYTES:
            raise GeometryError(
                f"{self.uri}: a region of {width} x {height} pixels ({nbytes} bytes) cannot be "
                f"read at once (at most {MAX_REGION_BYTES} bytes); use to_dask for large areas"
            )
        origin = (_nearest(y / view.downsample[0]), _nearest(x / view.downsample[1]))
        return view.read_padded(Region(origin, (height, width)))

    def get_thumbnail(self, size: tuple[int, int]) -> Array:
        """A small picture (height, width, channels) of the whole slide, averaged over areas; of
        labels the nearest ones.

        Parameters
        ----------
        size : (int, int)
            (width, height) to stay within; the aspect is kept.
        """
        width, height = _pair(size, "size")
        if width <= 0 or height <= 0:
            raise GeometryError(f"a thumbnail needs a positive size, got {size!r}")
        full_w, full_h = self.dimensions
        ratio = max(1.0, full_w / width, full_h / height)
        view = self.with_mpp((1.0, 1.0)).view(mpp=ratio)
        return view.read(Region.of(view.spatial_shape))

    def get_picture(self, size: tuple[int, int]) -> Array:
        """A small picture (height, width, 3) uint8 of the whole slide for people to look at.

        RGB as it is, one channel as grey; several channels as their sum, each in the colour that
        the file gives or one of a palette; labels in colours.

        Parameters
        ----------
        size : (int, int)
            (width, height) to stay within; the aspect is kept.
        """
        return display(self.get_thumbnail(size), self.info)

    if TYPE_CHECKING:
        to_ome_zarr = slide_to_ome_zarr
    else:
        to_ome_zarr = _FromAbove("daskdmed.store:slide_to_ome_zarr")

    def close(self) -> None:
        """Close the file in this process; reading opens it again."""
        cache.discard(self.uri)

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _identity(self) -> tuple[Any, ...]:
        odd: list[Any] = [self.key.image] if self.key.image else []
        odd += [] if self.picked is None else [("channels", self.picked)]
        odd += ["srgb"] if self.is_srgb else []
        return self.key.uri, self.key.backend, self.key.fingerprint, self._mpp, *odd

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slide) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> tuple[Any, ...]:
        return Slide, (self.key, self.info, self._mpp, self.picked, self.is_srgb)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "daskdmed.Slide", self.token

    def __repr__(self) -> str:
        width, height = self.dimensions
        mpp = "unknown mpp" if self.mpp is None else f"{self.mpp[0]:g} um/px"
        return (
            f"Slide({self.uri!r}, {width} x {height}, {self.level_count} levels, {mpp}, "
            f"{self.dtype}, backend {self.backend!r})"
        )

    def _repr_html_(self) -> str:
        from daskdmed.images.html import slide_html

        return slide_html(self)


def _nearest(value: float) -> int:
    return int(np.floor(value + 0.5))


def _pair(value: Any, name: str) -> tuple[int, int]:
    try:
        first, second = value
        pair = int(first), int(second)
    except (TypeError, ValueError, OverflowError):
        raise GeometryError(f"{name} must be two whole numbers, got {value!r}") from None
    if pair != (first, second):
        raise GeometryError(f"{name} must be two whole numbers, got {value!r}")
    return pair
