"""What a backend must offer, and what it tells about a slide.

A backend is a small class that opens one kind of file and gives a *reader*; everything
else (levels, mpp, resampling, Dask arrays, caching of open files) is written once, above.
Third parties register a backend under the entry-point group ``daskdmed.readers`` and test
it with `daskdmed.testing.BackendConformance`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self, runtime_checkable

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


#: colours of the channels that are red, green and blue
RGB_COLORS = ("FF0000", "00FF00", "0000FF")


class ChannelInfo(str):
    """One channel: its name, as text, with what the file says of it.

    `color` is six hexadecimal digits like "00B4D8", "" where the file does not say. `wavelength`
    and `excitation` are what it emits and is excited by, in nanometers. `window` are the values
    that are shown darkest and brightest.
    """

    color: str
    wavelength: float | None
    excitation: float | None
    window: tuple[float, float] | None

    def __new__(
        cls,
        name: str = "",
        color: str = "",
        wavelength: float | None = None,
        excitation: float | None = None,
        window: tuple[float, float] | None = None,
    ) -> ChannelInfo:
        made = super().__new__(cls, name)
        made.color, made.wavelength, made.excitation = color, wavelength, excitation
        made.window = window
        return made

    @property
    def name(self) -> str:
        """The name alone."""
        return str(self)

    @property
    def facts(self) -> tuple[Any, ...]:
        """All that it says, in the order of its arguments."""
        return self.name, self.color, self.wavelength, self.excitation, self.window

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.facts


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
    #: one per channel, where the file says something of them
    channels: tuple[ChannelInfo, ...] = ()
    #: names of the focal planes and time points of the image, when it has several: "z=0", "t=2",
    #: "z=3,t=2"
    planes: tuple[str, ...] = ()
    #: the one of them that is read
    plane: str = ""
    #: whether the file says that its values are labels, which have no mean
    is_labels: bool = False

    @property
    def is_rgb(self) -> bool:
        """Whether the channels are red, green and blue, and no stains or labels."""
        kind = self.numpy_dtype
        if self.levels[0].shape[-1] != 3 or kind not in (np.uint8, np.uint16) or self.is_labels:
            return False
        if self.channels:
            return tuple(channel.color for channel in self.channels) == RGB_COLORS
        return bool(kind == np.uint8 or set(self.background) == {np.iinfo(kind).max})

    def picked(self, numbers: tuple[int, ...]) -> Self:
        """Of some of the channels, by their numbers."""

        def some(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[n] for n in numbers) if values else ()

        levels = (replace(lv, shape=(*lv.shape[:-1], len(numbers))) for lv in self.levels)
        return replace(
            self,
            levels=tuple(levels),
            background=some(self.background),
            channels=some(self.channels),
        )

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
class SlideOptions:
    """Which image of a file, and which plane of it, as `daskdmed.open_slide` is told; "" the usual.

    False when nothing was said.
    """

    #: number or name
    image: str = ""
    #: number among `SlideInfo.planes`, or a text like "z=3", "t=2" or "z=3,t=2"
    plane: str = ""

    def __bool__(self) -> bool:
        return bool(self.image or self.plane)

    @property
    def text(self) -> str:
        """Everything that is not as usual, as text: "" when nothing is, the name of an image as it
        is. The inverse of `parse`."""
        if not self.plane and not self.image.startswith("{"):
            return self.image
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({name: v for name, v in said.items() if v}, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> SlideOptions:
        """Of a `text`."""
        return cls(**json.loads(text)) if text.startswith("{") else cls(text)


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
    of a name or number, both as str (`daskdmed.images.readers.choose_image`). One that knows focal
    planes or time points too has ``open_slide(uri, options)`` with `SlideOptions` instead, and
    says in `SlideInfo` which `planes` there are (`daskdmed.images.readers.choose_planes`). A reader
    whose file may hold a colour profile has ``icc_profile() -> bytes | None``; one that can read
    some channels without the others ``read_channels(level, region, channels, out=None, *,
    tile_error)``, as `read` with their numbers.

    One of volumes has ``kind = "volume"``, gives readers whose `info` is a `VolumeInfo`, and has
    ``open_volume(uri, options)`` with `VolumeOptions` in the place of `open`; its `fingerprint`
    takes the options as a second argument.

    One over libraries of an extra may name them, ``needs = {"openslide": "openslide"}``: the module
    that is imported when a file is opened, and the extra. ``python -m daskdmed`` says what is
    missing.
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
