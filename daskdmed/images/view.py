"""A slide at one resolution: the value that everything above reads pixels through.

`SlideView` is a level as it is stored, or the next finer level resampled to the mpp asked
for. It holds values only; the open file comes from `daskdmed.images.filecache`.

Not covered: level-0 locations and pixels outside the slide (`daskdmed.images.slide`).
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.buffers import empty
from daskdmed.core.errors import ResolutionError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.resolution import Resolution
from daskdmed.core.types import Array, OnTileError
from daskdmed.core.view import ImageView
from daskdmed.images.channels import composed, take
from daskdmed.images.filecache import FileKey, OfFile, cache
from daskdmed.images.protocols import Reader
from daskdmed.images.resample import check_resampled, resample_nearest, resample_region
from daskdmed.images.srgb import convert, transform_of

if TYPE_CHECKING:
    from daskdmed.images.slide import Slide

#: a level whose mpp agrees with the one asked for to this fraction is used as it is
SAME_RESOLUTION = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class SlideView(OfFile, ImageView):
    """One slide at one resolution, made by ``Slide.view``. Picklable, without open handles.

    Level `level` of shape `source_shape` and storage tile `source_tile` is read; `scale` are its
    pixels per view pixel along each spatial axis, None for a level as it is. `downsample` are
    level-0 pixels per view pixel, `mpp` is (x, y) of the view. `channels` are numbers of those of
    the file that are read, None for all; `srgb`: colours are converted by the file's profile;
    `labels`: values are never blended.
    """

    key: FileKey
    level: int
    shape: tuple[int, ...]
    source_shape: tuple[int, ...]
    source_tile: tuple[int, ...]
    scale: tuple[float, ...] | None
    downsample: tuple[float, ...]
    dtype_name: str
    background_value: tuple[int, ...]
    mpp: tuple[float, float] | None
    tile_error: OnTileError = "raise"
    channels: tuple[int, ...] | None = None
    srgb: bool = False
    labels: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype_name)

    @property
    def spatial_ndim(self) -> int:
        return len(self.source_tile)

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Storage tile in pixels of the view, rounded when resampled."""
        if self.scale is None:
            return self.source_tile
        return tuple(
            max(1, round(n / s)) for n, s in zip(self.source_tile, self.scale, strict=True)
        )

    @property
    def background(self) -> Array:
        return np.asarray(self.background_value, self.dtype)

    @property
    def token(self) -> str:
        facts: tuple[Any, ...] = (self.key, self.level, self.shape, self.scale, self.tile_error)
        if self.channels is not None:
            facts += (("channels", self.channels),)
        # labels differ from numbers where they are resampled
        odd = {"srgb": self.srgb, "labels": self.labels and self.scale is not None}
        facts += tuple(name for name, is_so in odd.items() if is_so)
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    @property
    def cheap_to_cut(self) -> bool:
        """True for a level as it is stored; neighbouring regions of others share pixels."""
        return self.scale is None

    @property
    def cheap_in_parts(self) -> bool:
        return True

    @property
    def cheap_in_tiles(self) -> bool:
        return True  # of JPEG no more is decoded

    def as_labels(self) -> SlideView:
        """The same as a map of labels: never blended, outside of it there is 0."""
        return replace(self, labels=True, background_value=(0,) * self.shape[-1])

    def picked(self, numbers: tuple[int, ...]) -> SlideView:
        """Some of its channels, see `daskdmed.images.channels.pick`."""
        if self.srgb:
            raise UsageError(f"{self.name}: of colours that are converted all channels are needed")
        return replace(
            self,
            channels=composed(self.channels, numbers),
            shape=(*self.shape[:-1], len(numbers)),
            source_shape=(*self.source_shape[:-1], len(numbers)),
            background_value=tuple(self.background_value[n] for n in numbers)
            if self.background_value
            else (),
        )

    def _read(self, region: Region, out: Array | None) -> Array:
        with cache.lease(self.key) as reader:
            if self.scale is None:
                out = self._read_stored(reader, region, out)
            else:
                out = self._read_resampled(reader, region, out)
            if self.srgb:
                convert(out, transform_of(self.key, reader))
        return out

    def read_boxes(self, first: Array, out: Array) -> bool:
        if self.scale is not None or self.channels is not None:
            return False
        with cache.lease(self.key) as reader:
            read = getattr(reader, "read_boxes", None)
            if read is None or not read(self.level, first, out, self.tile_error):
                return False
            if self.srgb:
                convert(out, transform_of(self.key, reader))
        return True

    def _read_stored(self, reader: Reader, region: Region, out: Array | None = None) -> Array:
        """A region of the level, of the channels that are wanted."""
        if self.channels is None:
            return reader.read(self.level, region, out, tile_error=self.tile_error)
        read = getattr(reader, "read_channels", None)
        if read is None:  # somebody else's
            values = reader.read(self.level, region, tile_error=self.tile_error)
            return take(values, self.channels, out)
        found: Array = read(self.level, region, self.channels, out, tile_error=self.tile_error)
        return found

    def _read_resampled(self, reader: Reader, region: Region, out: Array | None) -> Array:
        assert self.scale is not None
        if out is None:
            out = empty((*region.shape, *self.channel_shape), self.dtype)
        resample = resample_nearest if self.labels else resample_region
        read = functools.partial(self._read_stored, reader)
        return resample(region, self.scale, self.source_shape[:-1], self.source_tile[0], read, out)


def make_view(slide: Slide, resolution: Resolution, tile_error: OnTileError) -> SlideView:
    """The view of a slide at a resolution."""
    levels = slide.levels
    if resolution.level is not None:
        if resolution.level >= len(levels):
            raise ResolutionError(
                f"{slide.uri}: no level {resolution.level}, the slide has levels 0 to "
                f"{len(levels) - 1}"
            )
        return _level_view(slide, resolution.level, tile_error)
    wanted = _wanted_downsample(slide, resolution)
    for number, level in enumerate(levels):
        if all(
            abs(w / d - 1) <= SAME_RESOLUTION for w, d in zip(wanted, level.downsample, strict=True)
        ):
            return _level_view(slide, number, tile_error)
    return _resampled_view(slide, wanted, tile_error)


def _level_view(slide: Slide, number: int, tile_error: OnTileError) -> SlideView:
    level = slide.levels[number]
    return _view(slide, number, tile_error, level.shape, None, level.downsample)


def _resampled_view(
    slide: Slide, wanted: tuple[float, float], tile_error: OnTileError
) -> SlideView:
    """Read the coarsest level that is still fine enough."""
    number = 0
    for candidate, level in enumerate(slide.levels):
        if all(
            d <= w * (1 + SAME_RESOLUTION) for d, w in zip(level.downsample, wanted, strict=True)
        ):
            number = candidate
    check_resampled(f"{slide.uri}, level {number},", slide.levels[number].shape[:-1])
    *full, channels = slide.levels[0].shape
    spatial = (max(1, round(n / w)) for n, w in zip(full, wanted, strict=True))
    scale = (w / d for w, d in zip(wanted, slide.levels[number].downsample, strict=True))
    return _view(slide, number, tile_error, (*spatial, channels), tuple(scale), wanted)


def _view(
    slide: Slide,
    number: int,
    tile_error: OnTileError,
    shape: tuple[int, ...],
    scale: tuple[float, ...] | None,
    downsample: tuple[float, ...],
) -> SlideView:
    source = slide.levels[number]
    x, y = slide.mpp or (0.0, 0.0)
    return SlideView(
        key=slide.key,
        level=number,
        shape=shape,
        source_shape=source.shape,
        source_tile=source.tile_shape,
        scale=scale,
        downsample=downsample,
        dtype_name=slide.info.dtype,
        background_value=tuple(slide.info.background),
        mpp=slide.mpp and (x * downsample[1], y * downsample[0]),
        tile_error=tile_error,
        channels=slide.picked,
        srgb=slide.is_srgb,
        labels=slide.is_labels,
    )


def _wanted_downsample(slide: Slide, resolution: Resolution) -> tuple[float, float]:
    if resolution.mpp is not None:
        if slide.mpp is None:
            raise ResolutionError(
                f"{slide.uri}: the file does not say its resolution, so mpp={resolution.mpp} "
                "means nothing; give the mpp of level 0: slide.with_mpp(0.5), or "
                "Record(uri, mpp=0.5); or ask for level="
            )
        (x, y), (x0, y0) = resolution.mpp, slide.mpp
        return y / y0, x / x0
    assert resolution.power is not None
    if slide.power is None:
        raise ResolutionError(
            f"{slide.uri}: the file does not say its objective power, so "
            f"power={resolution.power:g} means nothing; ask for mpp= or level="
        )
    ratio = slide.power / resolution.power
    return ratio, ratio
