"""What is known of a slice before its pixels are read: plain values of a file's header.

Not covered: how they are found (`daskdmed.images.volumes.dicom.header`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Vector: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a file stores its pixels; of a certain state of the file."""

    path: str
    size: int
    mtime_ns: int
    #: UID of the transfer syntax, and what follows from it
    syntax: str
    encapsulated: bool
    big_endian: bool
    deflated: bool
    #: where the pixels begin (in the inflated stream of deflated files)
    offset: int
    #: bytes of pixels that the file declares; -1 for an encapsulated one
    length: int
    frames: int
    rows: int
    columns: int
    #: bits of a sample, of which are used, and the number of the highest
    allocated: int
    stored: int
    high: int
    signed: bool
    floating: bool
    #: (7FE0,0001) and (7FE0,0002), where the file has them
    extended_offsets: tuple[bytes, bytes] | None = None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame that is not compressed."""
        return self.rows * self.columns * self.allocated // 8


@dataclass(frozen=True, slots=True)
class Series:
    """Which series a file belongs to."""

    uid: str
    number: int | None
    description: str
    modality: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice."""

    pixels: Pixels
    #: its number in the file, from 0
    index: int
    series: Series
    #: its number in the series
    instance: int
    #: millimeters, LPS, of the centre of the first pixel
    position: Vector | None
    #: directions in which columns and rows are counted, two unit vectors
    axes: Vector | None
    #: millimeters from row to row and from column to column
    spacing: tuple[float, float] | None
    #: millimeters from slice to slice as the header says it, or their thickness
    thickness: float | None
    slope: float
    intercept: float
    #: stored value of pixels that belong to no image
    padding: int | None
    #: made for planning
    localizer: bool
    #: of several stacks in one series
    stack: str
    #: (name, value) of what may tell apart volumes of one series
    traits: tuple[tuple[str, str], ...]
