"""The backend over FastSlide, for what nothing else here opens: iSyntax, VSI. Needs the extra
``fastslide``.

It is asked for these, and by ``backend="fastslide"`` for all that it reads. Its JPEG
decoder rounds otherwise than libjpeg: on the samples of an SVS of 2220 x 2967 pixels 60 % of the
values differ from OpenSlide's and tifffile's, by at most 2.

Not covered: URLs, its own colour management, its caches (a block is read once).
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import numpy as np

from daskdmed.core.errors import CorruptImageError, DaskdmedError, UnsupportedImageError
from daskdmed.core.extras import extra
from daskdmed.core.places import is_remote
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.protocols import ChannelInfo, SlideInfo, SlideOptions
from daskdmed.images.readers import (
    BaseReader,
    Planes,
    check_readable,
    choose_image,
    choose_planes,
    fingerprint_files,
    level_infos,
    level_properties,
    number_text,
    say_choice,
)
from daskdmed.images.tiff.metadata import Mpp, plausible

_log = logging.getLogger("daskdmed.images")
#: what nothing else opens: the library takes damaged files of other formats for slides
_SUFFIXES = (".isyntax", ".i2syntax", ".vsi", ".ets")
#: (height, width) of what counts as a tile: the library does not tell
_TILE = 512


class FastSlideBackend:
    """Opens what FastSlide opens."""

    name = "fastslide"
    priority = 60

    def accepts(self, uri: str) -> bool:
        return not is_remote(uri) and uri.lower().endswith(_SUFFIXES) and os.path.isfile(uri)

    def open(self, uri: str) -> FastSlideReader:
        return self.open_slide(uri, SlideOptions())

    def open_slide(self, uri: str, options: SlideOptions) -> FastSlideReader:
        """One of the images in a file, in one plane of it."""
        if is_remote(uri):
            raise UnsupportedImageError.of(
                uri, "FastSlide reads local files only; download the slide first"
            )
        check_readable(uri, uri)
        return FastSlideReader(uri, options)

    def fingerprint(self, uri: str) -> str:
        """Size and time of the file, and of all in the folder that pixels of VSI lie in."""
        stem, suffix = os.path.splitext(uri)
        folder = os.path.join(os.path.dirname(uri), f"_{os.path.basename(stem)}_")
        beside = []
        if suffix.lower() == ".vsi":
            for place, _, names in sorted(os.walk(folder)):
                beside += [os.path.join(place, name) for name in sorted(names)]
        return fingerprint_files(uri, [uri, *beside])


class FastSlideReader(BaseReader):
    """An open slide. Reads from any number of threads, as the library allows."""

    def __init__(self, uri: str, options: SlideOptions) -> None:
        super().__init__(uri)
        self._lock = threading.Lock()
        library = extra("fastslide", "fastslide", "this slide needs")
        try:
            self._slide: Any = library.FastSlide.from_file_path(uri)
        except Exception as error:
            raise _refused(uri, error) from error
        try:
            self._begin(options)
        except BaseException as error:
            self.close()
            if isinstance(error, DaskdmedError) or not isinstance(error, Exception):
                raise
            raise _refused(uri, error) from error  # it opens lazily, text too

    def _begin(self, options: SlideOptions) -> None:
        slide, images = self._slide, list(self._slide.images)
        names = [image.name or str(number) for number, image in enumerate(images)]
        areas = [image.dimensions[0] * image.dimensions[1] for image in images]
        spacing = [None if (mpp := _mpp(image)) is None else mpp[0] for image in images]
        number = choose_image(self._uri, options.image, names, areas, spacing)
        if not options.image:
            say_choice(self._uri, names[number], names[:number] + names[number + 1 :])
        self._image: Any = images[number]
        axes = {"z": int(self._image.z_count), "t": int(self._image.t_count)}
        self._planes = choose_planes(self._uri, options.plane, axes, {})
        self._icc: bytes | None = slide.icc_profile or None
        shown = tuple(names) if len(names) > 1 else ()
        corner = _pixels(self._found(0, Region((0, 0), (1, 1))))
        self.info = _describe(slide, self._image, shown, self._planes, corner)

    def icc_profile(self) -> bytes | None:
        """The colour profile in the file."""
        return self._icc

    def _found(self, level: int, region: Region) -> Any:
        (top, left), (height, width) = region.origin, region.shape
        at = self._planes.at
        return self._image.read_region(
            (int(left), int(top)), level, (int(width), int(height)), at.get("z", 0), at.get("t", 0)
        )

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        def read(part: Region, target: Array) -> None:
            found = _pixels(self._found(level, part))
            if found.shape != target.shape or found.dtype != target.dtype:
                raise ValueError(f"FastSlide gives {found.shape} {found.dtype} of {target.shape}")
            target[...] = found

        try:
            read(region, out)
        except MemoryError:
            raise
        except Exception as error:  # the library raises all sorts
            _log.debug("%s, level %d: %r, reading tile by tile", self._uri, level, error)
            self._read_tiles(level, region, out, tile_error, read)

    def read_associated(self, name: str) -> Array:
        self._check_open()
        if name not in self.info.associated:
            raise self._no_associated(name)
        try:
            found = self._slide.associated_images[name]
            pixels = np.asarray(found.numpy() if hasattr(found, "numpy") else found)
        except Exception as error:
            raise CorruptImageError.of(
                self._uri, f"associated image {name!r} cannot be decoded: {error}"
            ) from error
        return pixels.reshape(*pixels.shape[:2], -1)[..., :3]

    def close(self) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._slide.close()


def _refused(uri: str, error: Exception) -> UnsupportedImageError:
    return UnsupportedImageError.of(
        uri, f"FastSlide cannot open it: {error}; check that it is a whole slide"
    )


def _pixels(found: Any) -> Array:
    pixels: Array = np.asarray(found.to_interleaved().numpy())
    return pixels.reshape(*pixels.shape[:2], -1)


def _mpp(image: Any) -> Mpp | None:
    found = image.mpp
    return plausible(float(found[0]), float(found[1])) if found else None


def _describe(
    slide: Any, image: Any, names: tuple[str, ...], planes: Planes, corner: Array
) -> SlideInfo:
    channels, dtype = corner.shape[2], corner.dtype
    sizes = [(int(h), int(w)) for w, h in image.level_dimensions]
    levels = level_infos(
        [(*size, channels) for size in sizes], [(min(_TILE, h), min(_TILE, w)) for h, w in sizes]
    )
    properties = {f"fastslide.{name}": str(value) for name, value in slide.properties.items()}
    properties |= {**level_properties(levels), "openslide.vendor": str(slide.format).lower()}
    mpp = _mpp(image)
    if mpp is not None:
        properties["openslide.mpp-x"], properties["openslide.mpp-y"] = map(number_text, mpp)
    power = float(slide.properties.get("objective_magnification") or 0) or None
    # of colours one entry for all, whose name is RGB
    colour = channels == 3 and len(image.channel_metadata) < 2 and dtype.kind == "u"
    return SlideInfo(
        levels=levels,
        dtype=dtype.name,
        background=(int(np.iinfo(dtype).max) if colour else 0,) * channels,
        mpp=mpp,
        power=power,
        vendor=str(slide.format).lower(),
        properties=dict(sorted(properties.items())),
        associated=tuple(sorted(slide.associated_images.keys())),
        images=names,
        channels=() if colour else _channels(image, channels),
        planes=planes.names,
        plane=planes.name,
    )


def _channels(image: Any, count: int) -> tuple[ChannelInfo, ...]:
    said = image.channel_metadata
    if len(said) != count:
        return ()
    return tuple(
        ChannelInfo(str(one.get("name") or ""), "".join(f"{int(v):02X}" for v in one["color"]))
        for one in said
    )
