"""Steps that readers share: fingerprints, checks of requests, failed tiles.

Not covered here: how any format is read, and the choice of a backend for a file.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from daskdmed.core.buffers import empty
from daskdmed.core.errors import (
    CorruptImageError,
    GeometryError,
    ImageError,
    ResolutionError,
    TileError,
    UsageError,
    listing,
)
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.core.view import FailedTile
from daskdmed.images.protocols import LevelInfo, SlideInfo
from daskdmed.images.source import explain_os_error

logger = logging.getLogger("daskdmed.images")
#: focal planes and time points of one image
MAX_PLANES = 2**20
#: failed tiles remembered per open file
_REPORTED = 1000
#: an image so much coarser than the finest of its file is no scan of the slide
_OVERVIEW = 4
#: names of images beside the slide -> OpenSlide's
ASSOCIATED_NAMES = {
    "label": "label",
    **dict.fromkeys(("label image", "label_image", "macro", "macro image", "overview"), "macro"),
    "thumbnail": "thumbnail",
    "map": "map",
}


def check_readable(uri: str, path: str) -> os.stat_result:
    """Stat a local path and make sure that it may be read; a typed error where it may not."""
    try:
        facts = os.stat(path)
        if os.path.isdir(path):
            os.scandir(path).close()
        else:
            os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise explain_os_error(error, uri) from error
    return facts


def fingerprint_files(uri: str, paths: Iterable[str]) -> str:
    """Short text that changes when size or modification time of one of the files does."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            facts = os.stat(path)
        except OSError as error:
            raise explain_os_error(error, uri) from error
        digest.update(f"{os.path.basename(path)}:{facts.st_size}:{facts.st_mtime_ns};".encode())
    return digest.hexdigest()


def choose_image(
    uri: str,
    image: str,
    names: Sequence[str],
    pixels: Sequence[int],
    spacing: Sequence[float | None],
) -> int:
    """Which of the images of a file is meant: the number or name asked for, else the scan.

    That is the one with most pixels, the first of equals. Labels and such do not count, and
    images much coarser than the finest (where the `spacing` is known) are overviews, however
    many pixels they have.
    """
    if image:
        numbers = [i for i, name in enumerate(names) if image in (name, str(i))]
        if not numbers:
            raise UsageError(f"{uri} has no image={image!r}; there are {_shown(names, pixels)}")
        return numbers[0]
    scans = [i for i, name in enumerate(names) if name.strip().lower() not in ASSOCIATED_NAMES]
    scans = scans or list(range(len(names)))
    finest = min((s for i in scans if (s := spacing[i])), default=0.0)
    likely = [i for i in scans if (spacing[i] or finest) <= _OVERVIEW * finest]
    return max(likely, key=lambda i: pixels[i])


@dataclass(frozen=True, slots=True)
class Planes:
    """The planes of a stack: the `names` of all, that of the one that is read, and where it lies
    along each axis, by the axis's letter."""

    names: tuple[str, ...] = ()
    name: str = ""
    at: Mapping[str, int] = field(default_factory=dict)


def choose_planes(
    uri: str, plane: str, axes: Mapping[str, int], usual: Mapping[str, int]
) -> Planes:
    """Which plane of a stack is meant: the number or name asked for, else the `usual` one.

    `axes` are the extents along those that are neither channels nor y and x, by their letters; a
    name says where it lies along each longer than 1, "z=3,t=2". Of a name that leaves an axis out
    the usual plane along that one.
    """
    long = {letter: n for letter, n in axes.items() if n > 1}
    count = math.prod(long.values())
    if count > MAX_PLANES:
        raise CorruptImageError.of(
            uri, f"it claims {count} planes ({dict(axes)}), more than {MAX_PLANES}; fetch it again"
        )
    # z runs fastest, and is named first
    order = sorted(long, key=lambda letter: (letter != "z", letter != "t", letter))
    places = [p[::-1] for p in itertools.product(*(range(long[a]) for a in reversed(order)))]
    names = [_plane_name(dict(zip(order, place, strict=True))) for place in places if order]
    if not plane or (plane == "0" and not names):
        at = {letter: usual.get(letter, 0) for letter in axes}
    elif plane.isdecimal() and int(plane) < len(names):
        at = dict.fromkeys(axes, 0) | dict(zip(order, places[int(plane)], strict=True))
    else:
        said = _parsed_plane(plane)
        if said is None or any(not 0 <= n < axes.get(a, 0) for a, n in said.items()):
            raise UsageError(f"{uri} has no plane={plane!r}; there are {listing(names) or 'none'}")
        at = {letter: said.get(letter, usual.get(letter, 0)) for letter in axes}
    return Planes(tuple(names), _plane_name({a: at[a] for a in order}), at)


def _plane_name(at: Mapping[str, int]) -> str:
    return ",".join(f"{letter}={number}" for letter, number in at.items())


def _parsed_plane(text: str) -> dict[str, int] | None:
    """Positions by the letters of axes of "z=3,t=2"; None where it is no such text."""
    parts = [part.strip().partition("=") for part in text.lower().split(",")]
    if not all(sep and number.strip().isdecimal() for _, sep, number in parts):
        return None
    return {letter.strip(): int(number) for letter, _, number in parts}


def say_choice(uri: str, chosen: str, others: Sequence[str]) -> None:
    """Tell that a file holds more images than the one that is read."""
    if others:
        names = ", ".join(map(repr, others))
        logger.warning("%s: reads the image %r, not %s; image= chooses", uri, chosen, names)


def _shown(names: Sequence[str], pixels: Sequence[int]) -> str:
    images = enumerate(zip(names, pixels, strict=True))
    return ", ".join(f"{i} {name!r} of {count} pixels" for i, (name, count) in images)


def number_text(value: float) -> str:
    """A float as OpenSlide prints it."""
    return format(float(value), ".17g")


def level_infos(
    shapes: Sequence[tuple[int, ...]], tiles: Sequence[tuple[int, ...]]
) -> tuple[LevelInfo, ...]:
    """Levels of these shapes ``(*space, channels)``, largest first, and storage tiles."""
    full = shapes[0][:-1]
    return tuple(
        LevelInfo(shape, tile, tuple(n / m for n, m in zip(full, shape, strict=False)))
        for shape, tile in zip(shapes, tiles, strict=True)
    )


def level_properties(levels: Sequence[LevelInfo]) -> dict[str, str]:
    """What OpenSlide's properties say of levels (y, x, c)."""
    found = {"openslide.level-count": str(len(levels))}
    for i, level in enumerate(levels):
        name = f"openslide.level[{i}]"
        found[f"{name}.height"], found[f"{name}.width"] = map(str, level.shape[:2])
        found[f"{name}.tile-height"], found[f"{name}.tile-width"] = map(str, level.tile_shape)
        found[f"{name}.downsample"] = number_text(sum(level.downsample) / 2)
    return found


class TileFailures:
    """What becomes of the tiles of one open file that cannot be decoded."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._kept: deque[FailedTile] = deque(maxlen=_REPORTED)

    def __call__(
        self, level: int, tile: tuple[int, ...], cause: Exception, tile_error: OnTileError
    ) -> None:
        """Raise a `TileError`, or note and log that the caller paints the tile with the background.
        `tile` counts from 0 along each axis in array order."""
        text = f"{type(cause).__name__}: {cause}"
        axes = {2: " (row, column)", 3: " (z, y, x)"}.get(len(tile), "")
        what = f"{self._uri}: tile {tile}{axes} of level {level} cannot be decoded: {text}"
        if tile_error == "raise":
            raise TileError(
                f"{what}; fetch the file again, or pass tile_error='fill' to have such tiles "
                "painted with the background",
                uri=self._uri,
                level=level,
                tile=tile,
            ) from cause
        with self._lock:
            self._kept.append(FailedTile(level, tile, text))
        logger.warning("%s; painted with the background", what)

    @property
    def kept(self) -> tuple[FailedTile, ...]:
        """The last of those that were painted."""
        with self._lock:
            return tuple(self._kept)


class BaseReader(ABC):
    """What readers share: whether they are open, failed tiles, and finding the tile that fails."""

    #: set by who derives from it
    info: SlideInfo

    def __init__(self, uri: str) -> None:
        self._uri, self._closed = uri, False
        self._failures = TileFailures(uri)

    @property
    def failed_tiles(self) -> tuple[FailedTile, ...]:
        """The last tiles that ``tile_error="fill"`` painted with the background."""
        return self._failures.kept

    def read(
        self,
        level: int,
        region: Region,
        out: Array | None = None,
        *,
        tile_error: OnTileError = "raise",
    ) -> Array:
        """Read a region of a level, see `daskdmed.images.protocols.Reader.read`."""
        self._check_open()
        target = prepare_output(self._uri, self.info, level, region, out)
        if target.size:
            self._read(level, region, target, tile_error)
        return target

    def read_channels(
        self,
        level: int,
        region: Region,
        channels: tuple[int, ...],
        out: Array | None = None,
        *,
        tile_error: OnTileError = "raise",
    ) -> Array:
        """`read` of some channels, by their numbers."""
        self._check_open()
        target = prepare_output(self._uri, self.info.picked(channels), level, region, out)
        if target.size:
            self._read_channels(level, region, channels, target, tile_error)
        return target

    def _read_channels(
        self,
        level: int,
        region: Region,
        channels: tuple[int, ...],
        out: Array,
        tile_error: OnTileError,
    ) -> None:
        """`read_channels` of what has been checked; where all lie together they are read so."""
        values = prepare_output(self._uri, self.info, level, region, None)
        self._read(level, region, values, tile_error)
        for target, number in enumerate(channels):
            out[..., target] = values[..., number]

    @abstractmethod
    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        """`read` of what has been checked."""

    def _check_open(self) -> None:
        if self._closed:
            raise ImageError.of(self._uri, "the reader is closed")

    def _no_associated(self, name: str) -> UsageError:
        there = ", ".join(self.info.associated) or "none"
        return UsageError(f"{self._uri} has no associated image {name!r}; there are: {there}")

    def _read_tiles(
        self,
        level: int,
        region: Region,
        out: Array,
        tile_error: OnTileError,
        read: Callable[[Region, Array], object],
    ) -> None:
        """Read tile by tile after a failure, to find which one is bad and to keep the rest."""
        tile = self.info.levels[level].tile_shape
        for box in region.tiles(tile):
            part = out[box.local_to(region).slices]
            try:
                read(box, part)
            except (MemoryError, ImageError):
                raise
            except Exception as error:  # codecs and stores raise all sorts
                self._failures(level, box.cells(tile).origin, error, tile_error)
                part[...] = self.info.background_value


def prepare_output(
    uri: str, info: SlideInfo, level: int, region: Region, out: Array | None
) -> Array:
    """Check what a reader is asked for, and make the array to read into: `out`, or recycled memory
    of shape ``(*region.shape, channels)``."""
    if not 0 <= level < len(info.levels):
        raise ResolutionError(
            f"{uri} has levels 0 to {len(info.levels) - 1}, there is no level {level}"
        )
    *spatial, channels = info.levels[level].shape
    if not region.within(spatial):
        raise GeometryError(
            f"{uri}, level {level}: the region from {region.origin} to {region.stop} lies outside "
            f"the level of {tuple(spatial)} pixels, at least in part; clip it, or read through a "
            "view, whose read_padded gives the background there"
        )
    shape = (*region.shape, channels)
    if out is None:
        return empty(shape, info.numpy_dtype)
    if out.shape != shape or out.dtype != info.numpy_dtype:
        raise GeometryError(
            f"{uri}, level {level}: out is {out.shape} {out.dtype}, the region needs "
            f"{shape} {info.dtype}"
        )
    return out
