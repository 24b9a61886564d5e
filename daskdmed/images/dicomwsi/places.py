"""Where the frames of a file belong in its level, when they do not simply follow each other.

A sparse file says it in one item per frame, of which pydicom makes half a millisecond: a minute
for a large level. So the bytes of that sequence are searched for the few elements that matter.
What is found counts only when it is exactly one per frame; else pydicom reads it after all.

Not covered: all else in the header (`daskdmed.images.dicomwsi.instance`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import UnsupportedImageError
from daskdmed.core.extras import extra
from daskdmed.images.volumes.dicom.elements import corrupt, list_of, tag_of
from daskdmed.images.volumes.dicom.frames import Pixels
from daskdmed.images.volumes.dicom.header import PIXEL_TAGS, HeaderFile

_EACH = 0x52009230
#: group and element, little endian
_ROW, _COLUMN, _DEPTH, _PATH = b"H\0\x1f\2", b"H\0\x1e\2", b"@\0J\7", b"H\0\6\1"
#: the end of a sequence of unknown length, before the pixels or their tables
_SEQUENCE_END = re.compile(rb"\xfe\xff\xdd\xe0\0\0\0\0(?=\xe0\x7f[\x01\x08\x09\x10]\0)")
_CHUNK, _MOST = 2**22, 2**30


class SlideHeader(HeaderFile):
    """A file while its header is read: without the items of frames, of which it has the bytes."""

    stops = (_EACH,)

    def __init__(self, path: str, file: Any, names: tuple[str, ...]) -> None:
        super().__init__(path, file, names)
        self.frame_items = b""
        self._names, self._items_at = names, 0
        if self.next_tag() == _EACH and self.little and not self.deflated:
            self._items_at = self.start
            self._take_items(file)
        elif self.next_tag() == _EACH:
            self._go_on(file, self.start)

    def _take_items(self, file: Any) -> None:
        implicit = bool(self.data.original_encoding[0])
        begin = self.start + (8 if implicit else 12)
        length = int.from_bytes(self.tag[4:8] if implicit else self.tag[8:12], "little")
        file.seek(begin)
        if length != 0xFFFFFFFF:
            self.frame_items = file.read(min(length, _MOST))
            self._go_on(file, begin + length)
            return
        data = bytearray()
        while len(data) < _MOST and (chunk := file.read(_CHUNK)):
            searched = max(0, len(data) - 16)
            data += chunk
            found = _SEQUENCE_END.search(data, searched)
            if found is not None:
                self.frame_items = bytes(data[: found.start()])
                self._go_on(file, begin + found.end())
                return
        self._go_on(file, self.start)

    def _go_on(self, file: Any, at: int) -> None:
        """Read what comes before the pixels, from a byte on."""
        self.data.update(self._elements(file, at))
        self.start = file.tell()
        self.tag = file.read(12)

    def _elements(self, file: Any, at: int) -> Any:
        reader = extra("pydicom.filereader", "volumes", "DICOM files need")
        file.seek(at)
        wanted = [tag_of(name) for name in (*self._names, "PerFrameFunctionalGroupsSequence")]
        return reader.read_dataset(
            file,
            *self.data.original_encoding,
            stop_when=lambda tag, vr, length: tag in PIXEL_TAGS,
            specific_tags=wanted,
        )

    def each_frame(self) -> list[Any]:
        """The items of frames as pydicom has them."""
        if "PerFrameFunctionalGroupsSequence" not in self.data and self._items_at:
            with open(self.path, "rb") as file:
                self.data.update(self._elements(file, self._items_at))
        return self.items("PerFrameFunctionalGroupsSequence")


def read_places(
    file: SlideHeader, pixels: Pixels, paths: Sequence[str]
) -> tuple[npt.NDArray[np.int64] | None, int]:
    """(optical path, focal plane, row, column) of each frame, None where they are in order; and the
    number of focal planes."""
    depth = file.number(file.data, "TotalPixelMatrixFocalPlanes", int) or 1
    if file.text(file.data, "DimensionOrganizationType").upper() == "TILED_FULL":
        return None, depth
    found = _searched(file, pixels.frames)
    if found is None:
        each = file.each_frame()
        if not each and pixels.frames == 1:
            return None, depth
        found = _parsed(file, each, pixels.frames)
    names, depths, corners = found
    common = _path_of(file, file.items("SharedFunctionalGroupsSequence")[:1])
    known = {name: number for number, name in enumerate(paths)}
    places = np.zeros((pixels.frames, 4), np.int64)
    places[:, 0] = [known.get(name or common, 0) for name in names]
    planes, places[:, 1] = np.unique(np.round(depths, 9), return_inverse=True)
    cells, rest = np.divmod(corners - 1, (pixels.rows, pixels.columns))
    if rest.any():
        raise UnsupportedImageError.of(
            file.path, "its frames do not lie on one grid of tiles; convert it to TILED_FULL"
        )
    places[:, 2:] = cells
    return places, len(planes)


#: identifiers of optical paths, depths, and (row, column) in the level, counted from 1
_Found = tuple[list[str], npt.NDArray[np.float64], npt.NDArray[np.int64]]


def _searched(file: SlideHeader, frames: int) -> _Found | None:
    """By the bytes of the sequence; None where they leave a doubt."""
    data, implicit = file.frame_items, bool(file.data.original_encoding[0])
    corners = np.empty((frames, 2), np.int64)
    for axis, tag in enumerate((_ROW, _COLUMN)):
        head = re.escape(tag) + (rb"\x04\x00\x00\x00" if implicit else rb"SL\x04\x00")
        values = re.findall(head + rb"(.{4})", data, re.DOTALL)
        if len(values) != frames:
            return None
        corners[:, axis] = np.frombuffer(b"".join(values), "<i4")
    depths = list(_texts(data, _DEPTH, b"DS", implicit))
    names = list(_texts(data, _PATH, b"SH", implicit))
    if len(depths) not in (0, frames) or len(names) not in (0, frames):
        return None
    try:
        z = np.array([float(text or 0) for text in depths or ["0"] * frames])
    except ValueError:
        return None
    return names or [""] * frames, z, corners


def _texts(data: bytes, tag: bytes, kind: bytes, implicit: bool) -> Iterator[str]:
    head = re.escape(tag) + (rb"(.)\x00\x00\x00" if implicit else kind + rb"(.)\x00")
    for found in re.finditer(head, data, re.DOTALL):
        stop = found.end() + found[1][0]
        yield data[found.end() : stop].decode("latin-1").strip("\0 ")


def _parsed(file: SlideHeader, each: Sequence[Any], frames: int) -> _Found:
    """By pydicom."""
    if len(each) != frames:
        raise corrupt(file.path, f"{frames} frames, functional groups of {len(each)}")
    names: list[str] = []
    depths, corners = np.zeros(frames), np.zeros((frames, 2), np.int64)
    for number, group in enumerate(each):
        at = file.value(group, "PlanePositionSlideSequence", list_of) or [None]
        for axis, side in enumerate(("Row", "Column")):
            name = f"{side}PositionInTotalImagePixelMatrix"
            corner = None if at[0] is None else file.number(at[0], name, int)
            if corner is None:
                raise corrupt(file.path, f"frame {number} has no place in the slide")
            corners[number, axis] = corner
        depths[number] = file.number(at[0], "ZOffsetInSlideCoordinateSystem", float) or 0.0
        names.append(_path_of(file, [group]))
    return names, depths, corners


def _path_of(file: SlideHeader, groups: Sequence[Any]) -> str:
    for group in groups:
        found = file.value(group, "OpticalPathIdentificationSequence", list_of)
        if found:
            return file.text(found[0], "OpticalPathIdentifier")
    return ""
