"""What a backend must offer, and what it tells about a slide.

A backend is a small class that opens one kind of file and gives a *reader*; everything
else (levels, mpp, resampling, Dask arrays, caching of open files) is written once, above.
Third parties register a backend under the entry-point group ``daskdmed.readers`` and test
it with `daskdmed.testing.BackendConformance`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np

from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array, OnTileError
from daskdmed.core.view import FailedTile


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """One level of the pyramid."""

    #: of what `Reader.read` returns, ``(*space, channels)``: (height, width, channels) of slides
    shape: tuple[int, ...]
    #: of a storage tile along the spatial axes; for strips (rows per strip, width)
    tile_shape: tuple[int, ...]
    #: level-0 pixels per pixel along each spatial axis, exact: level-0 extent / this extent
    downsample: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What is known of a slide once it is open. Small, picklable."""

    #: largest first
    levels: tuple[LevelInfo, ...]
    #: NumPy name of the sample type, "uint8" or "uint16" as a rule
    dtype: str
    #: pixels outside the image and missing tiles, one per channel: white for RGB, 0 for
    #: single-channel fluorescence, the file's own background when it names one
    background: tuple[int, ...]
    #: (x, y) micrometers per pixel at level 0
    mpp: tuple[float, float] | None = None
    #: objective power
    power: float | None = None
    #: OpenSlide's name of the vendor, or "generic-tiff", "ome", "ome-zarr"...
    vendor: str = ""
    #: every property name that OpenSlide gives for such a file and the data allow, as str
    properties: Mapping[str, str] = field(default_factory=dict)
    #: names of associated images ("label", "macro", "thumbnail")
    associated: tuple[str, ...] = ()
    #: names of all images of the file, when it holds several that may be the slide
    images: tuple[str, ...] = ()

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The sample type as a NumPy dtype."""
        return np.dtype(self.dtype)

    @property
    def background_value(self) -> Array:
        """The background as an array, shape (channels,)."""
        return np.asarray(self.background, self.numpy_dtype)


@dataclass(frozen=True, slots=True)
class VolumeInfo(SlideInfo):
    """What is known of a volume once it is open: levels are (z, y, x, channels).

    `background` is one value per channel, or () when nobody knows what is empty in it, as of CT
    whose air is -1024. Volumes have no `mpp` and no `power`.
    """

    #: where level 0 lies; None when the file does not say
    space: Space | None = None
    #: millimeters per voxel (z, y, x) of files that say this and no more
    voxel_size: tuple[float, float, float] | None = None
    #: whether users see the channel axis of `levels`; False where it has length 1 only because
    #: readers always give one
    has_channels: bool = False

    @property
    def background_value(self) -> Array:
        """What parts that cannot be read are filled with: the background, or 0 without one."""
        known = self.background or (0,) * self.levels[0].shape[-1]
        return np.asarray(known, self.numpy_dtype)


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """Which volume of a file, a folder or a list of files, as `daskdmed.open_volume` is told."""

    series: str | None = None
    dataset: str | None = None
    #: a time point, or "channels" for all of them as channels
    time: int | str | None = None
    #: of NIfTI: "sform" or "qform"
    form: str | None = None
    on_gap: str = "raise"
    #: of a list: the names of its files in the folder that is opened
    files: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Everything that is not as usual, as text; "" when nothing is. The inverse of `parse`."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        usual = VolumeOptions()
        odd = {name: v for name, v in said.items() if v != getattr(usual, name)}
        return json.dumps(odd, sort_keys=True) if odd else ""

    @classmethod
    def parse(cls, text: str) -> VolumeOptions:
        """Of a `text`."""
        said = json.loads(text) if text else {}
        return cls(**{**said, "files": tuple(said.get("files", ()))})


@runtime_checkable
class Reader(Protocol):
    """An open slide. `read` may be called from many threads at once."""

    @property
    def info(self) -> SlideInfo:
        """Facts about the slide."""
        ...

    @property
    def failed_tiles(self) -> tuple[FailedTile, ...]:
        """The last tiles that ``tile_error="fill"`` painted, see `BaseReader` in `readers`."""
        ...

    def read(
        self,
        level: int,
        region: Region,
        out: Array | None = None,
        *,
        tile_error: OnTileError = "raise",
    ) -> Array:
        """Read a region that lies inside a level.

        Parameters
        ----------
        level : int
            Level index.
        region : Region
            In pixels of that level, array order; must lie inside it.
        out : ndarray, optional
            Array of shape ``(*region.shape, channels)``, any strides, to write into.
        tile_error : {"raise", "fill"}
            What a tile that cannot be decoded becomes: an error, or the background value
            and a warning in the log of `daskdmed.images`.

        Returns
        -------
        ndarray
            ``(*region.shape, channels)``, the dtype of `info`.

        Raises
        ------
        TileError
            A storage tile is missing its data or cannot be decoded.
        """
        ...

    def read_associated(self, name: str) -> Array:
        """One associated image, (height, width, channels) uint8."""
        ...

    def close(self) -> None:
        """Release handles. Idempotent."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Opens one family of files.

    One that knows several images in a file also has ``open_image(uri, image)``, which opens that
    of a name or number, both as str (`daskdmed.images.readers.choose_image`).

    One of volumes has ``kind = "volume"``, gives readers whose `info` is a `VolumeInfo`, and has
    ``open_volume(uri, options)`` with `VolumeOptions` in the place of `open`; its `fingerprint`
    takes the options as a second argument.
    """

    #: name under which users choose it, ``open_slide(uri, backend=name)``
    name: str
    #: lower is tried first when several backends accept a file
    priority: int

    def accepts(self, uri: str) -> bool:
        """Cheap guess from the name and the first bytes; never raises."""
        ...

    def open(self, uri: str) -> Reader:
        """Open a file, or raise in bounded time and memory what names it and a remedy.

        `ImageNotFoundError`, `ImagePermissionError`, `UnsupportedImageError`,
        `CorruptImageError`; `MissingExtraError` when the library underneath is not installed.
        """
        ...

    def fingerprint(self, uri: str) -> str:
        """Changes when the content changes: size and mtime_ns, or an etag."""
        ...
