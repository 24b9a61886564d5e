"""From one DICOM file's header to the slices in it.

Read are the elements before the pixels, and of these only what is needed. Values (slope and
intercept, positions, spacing) may stand in the data set, in the functional groups that frames
share, or in those of each frame; the nearest to the frame counts.

Not covered: pixels (`daskdmed.images.volumes.dicom.pixels`), and which slices make a volume
(`daskdmed.images.volumes.dicom.grouping`).
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from daskdmed.core.errors import CorruptImageError, ImageError, MissingExtraError
from daskdmed.core.extras import extra
from daskdmed.images.source import explain_os_error
from daskdmed.images.volumes.dicom.elements import (
    FRAME_TRAITS,
    READ,
    TOLD,
    TRAITS,
    Elements,
    corrupt,
    floats,
    list_of,
    tag_of,
)
from daskdmed.images.volumes.dicom.frames import Frame, Pixels, Series, Vector

T = TypeVar("T")
H = TypeVar("H", bound="HeaderFile")

#: dimensions that count slices, not volumes: stack, number in the stack, positions
_OF_SLICES = {0x00209056, 0x00209057, 0x00200032, 0x00209301}
_DEFLATED = "1.2.840.10008.1.2.1.99"
#: kind of object (SOP class) of whole-slide images
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_DIRECTORY = "1.2.840.10008.1.3.10"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66."
#: bytes of an inflated header
_MAX_HEADER = 2**24
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
#: a compressed image is at most so many times larger than its stream, plus some
_MAX_RATIO = 20_000
#: shortest item of an encapsulated frame
_ITEM = 8


def _pydicom(module: str) -> Any:
    return extra(f"pydicom{module}", "volumes", "DICOM files need")


def looks_like_dicom(head: bytes) -> bool:
    """By the first 132 bytes: the magic, or without a preamble elements of group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    group, vr = head[:2], head[4:6]
    if group not in (b"\x02\0", b"\x08\0") or head[3:4] != b"\0" or len(head) < 132:
        return False
    length = int.from_bytes(head[4:8], "little")
    return (vr.isalpha() and vr.isupper()) or length < 256


def read_frames(path: str) -> tuple[Frame, ...] | str:
    """The slices in a file, or why it holds none that can be read.

    CorruptImageError for a DICOM file whose header is damaged.
    """
    found = read_header(path, READ, lambda file: file.frames(), HeaderFile)
    return "it is not DICOM" if found is None else found


def read_told(path: str) -> dict[str, str]:
    """What a file says for people, ``{"dicom.SeriesDescription": ...}``."""
    return read_header(path, TOLD, lambda file: file.told(), HeaderFile) or {}


def read_header(
    path: str, names: tuple[str, ...], ask: Callable[[H], T], kind: type[H]
) -> T | None:
    """What a file's header says, of these elements; None of what is no DICOM."""
    try:
        with open(path, "rb") as file:
            if not looks_like_dicom(file.read(132)):
                return None
            return ask(kind(path, file, names))
    except (ImageError, MissingExtraError):
        raise
    except Exception as error:  # pydicom raises all sorts, among them OSErrors of its own
        if isinstance(error, OSError) and error.errno is not None:
            raise explain_os_error(error, path) from error
        raise corrupt(path, "", error) from error


class HeaderFile(Elements):
    """A file while its header is read."""

    #: elements before which reading ends, beside the pixels
    stops: tuple[int, ...] = ()

    def __init__(self, path: str, file: Any, names: tuple[str, ...]) -> None:
        self.path, self.facts = path, os.fstat(file.fileno())
        file.seek(0)
        self.deflated = _is_deflated(path, file.read(4096))
        file.seek(0)
        if self.deflated:
            self.meta, self.data, stream = self._inflated(file, names)
        else:
            stream = file
            stops = {*PIXEL_TAGS, *self.stops}
            self.data = _pydicom(".filereader").read_partial(
                file,
                lambda tag, vr, length: tag in stops,
                force=True,
                specific_tags=[tag_of(name) for name in names],
            )
            self.meta = self.data.file_meta
        self.start = stream.tell()
        self.tag = stream.read(12)

    def _inflated(self, file: Any, names: tuple[str, ...]) -> tuple[Any, Any, io.BytesIO]:
        """Header of a file whose data set is one deflated stream: no more than its beginning."""
        reader = _pydicom(".filereader")
        meta = reader.read_file_meta_info(self.path)
        stream = io.BytesIO(inflated(file, _MAX_HEADER))
        wanted = [tag_of(name) for name in names]
        data = reader.read_dataset(
            stream, False, True, specific_tags=wanted,
            stop_when=lambda tag, vr, length: tag in PIXEL_TAGS,
        )  # fmt: skip
        return meta, data, stream

    def told(self) -> dict[str, str]:
        return {f"dicom.{name}": text for name in TOLD if (text := self.text(self.data, name))}

    # ------------------------------------------------------------------ what there is
    def frames(self) -> tuple[Frame, ...] | str:
        reason = self._unreadable()
        if reason:
            return reason
        pixels = self.pixels()
        data = self.data
        shared = self.items("SharedFunctionalGroupsSequence")
        each = self.items("PerFrameFunctionalGroupsSequence")
        if each and len(each) != pixels.frames:
            raise corrupt(self.path, f"{pixels.frames} frames, functional groups of {len(each)}")
        series = Series(
            self.text(data, "SeriesInstanceUID"),
            self.number(data, "SeriesNumber", int),
            self.text(data, "SeriesDescription"),
            self.text(data, "Modality"),
        )
        common = [shared[0]] if shared else []
        frames = []
        for index in range(pixels.frames):
            places = ([each[index]] if each else []) + common
            frames.append(self._frame(pixels, index, series, places))
        return tuple(frames)

    def _unreadable(self) -> str:
        """Why the file holds no slice that can be read; "" when it does."""
        data = self.data
        kind = data.get("SOPClassUID")
        name = getattr(kind, "name", "") or "unknown kind of object"
        if str(kind) == WHOLE_SLIDE:
            return "it is a whole slide image; open it with open_slide"
        if str(kind).startswith(_SEGMENTATION) or data.get("BitsAllocated") == 1:
            return f"segmentation objects are not read ({name}); convert it to NIfTI"
        if data.get("Rows") is None and not self._has_pixels():
            remedy = "; open the folder" if str(kind) == _DIRECTORY else ""
            return f"it holds no image ({name}){remedy}"
        samples = self.number(data, "SamplesPerPixel", int) or 1
        colours = self.text(data, "PhotometricInterpretation")
        if samples != 1 or not (colours or "MONOCHROME2").startswith("MONOCHROME"):
            return (
                f"a volume has one value per voxel, this has SamplesPerPixel {samples}, "
                f"PhotometricInterpretation {colours or 'unknown'}; convert it to gray values"
            )
        if "MOSAIC" in self.text(data, "ImageType").upper().split("\\"):
            return "slices side by side in one image (mosaic) are not read; convert it by dcm2niix"
        if data.get("ModalityLUTSequence"):
            return "values behind a lookup table (Modality LUT Sequence) are not read"
        return ""

    def _has_pixels(self) -> bool:
        return self.next_tag() in PIXEL_TAGS

    def next_tag(self) -> int:
        """The element before which reading ended."""
        order = "<" if self.little else ">"
        if len(self.tag) < 4:
            return 0
        group, element = np.frombuffer(self.tag[:4], f"{order}u2")
        return int(group) << 16 | int(element)

    @property
    def little(self) -> bool:
        """Whether it is written in little endian."""
        return self.deflated or bool(self.data.original_encoding[1])

    def pixels(self) -> Pixels:
        """How the file stores its pixels."""
        data = self.data
        if not self._has_pixels():
            raise CorruptImageError.of(
                self.path, "the file ends before its pixel data; fetch it again"
            )
        floating = self.next_tag() != 0x7FE00010
        allocated = self.needed("BitsAllocated")
        stored = allocated if floating else self.needed("BitsStored")
        high = self.number(data, "HighBit", int)
        offset, length = self._extent()
        table = tuple(
            self.value(data, name, bytes)
            for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
        )
        pixels = Pixels(
            self.path,
            self.facts.st_size,
            self.facts.st_mtime_ns,
            self._syntax(),
            length < 0,
            not self.little,
            self.deflated,
            offset,
            length,
            self.number(data, "NumberOfFrames", int) or 1,
            self.needed("Rows"),
            self.needed("Columns"),
            allocated,
            stored,
            stored - 1 if high is None else high,
            bool(self.number(data, "PixelRepresentation", int)),
            floating,
            table if all(table) else None,  # type: ignore[arg-type]
        )
        self._check(pixels)
        return pixels

    def needed(self, name: str) -> int:
        """A positive number that has to be there."""
        found = self.number(self.data, name, int)
        if found is None or found <= 0:
            raise corrupt(self.path, f"{name} is {found}")
        return found

    def _syntax(self) -> str:
        """Transfer syntax; of files that do not say it the one that pydicom found."""
        uid = self.meta.get("TransferSyntaxUID") if self.meta is not None else None
        if uid:
            return str(uid)
        implicit, little = self.data.original_encoding
        return f"1.2.840.10008.1.2{'' if implicit else '.1' if little else '.2'}"

    def _extent(self) -> tuple[int, int]:
        """Where pixels begin, and how many bytes they have; -1 for encapsulated ones."""
        implicit = not self.deflated and self.data.original_encoding[0]
        place = slice(4, 8) if implicit else slice(8, 12)
        length = int.from_bytes(self.tag[place], "little" if self.little else "big")
        return self.start + place.stop, -1 if length == 0xFFFFFFFF else length

    def _check(self, p: Pixels) -> None:
        """Refuse impossible pixels, and sizes that the file cannot hold."""
        good = (8, 16, 32) if not p.floating else (32, 64)
        if p.allocated not in good or not 0 < p.stored <= p.high + 1 <= p.allocated:
            raise corrupt(
                self.path,
                f"pixels of {p.allocated} bits of which {p.stored} are stored, the highest is "
                f"{p.high}",
            )
        if p.frames < 1:
            raise corrupt(self.path, f"NumberOfFrames is {p.frames}")
        declared, there = p.frames * p.frame_bytes, p.size - (0 if p.deflated else p.offset)
        if p.encapsulated or p.deflated:
            impossible = declared > _MAX_RATIO * there + 2**24
            impossible |= p.encapsulated and p.frames * _ITEM > there
        else:  # a few rows may be missing: that is one bad slice
            impossible = declared > 2 * there + 2**20
        if impossible:
            raise CorruptImageError.of(
                self.path,
                f"it declares {p.frames} frames of {p.rows} x {p.columns} pixels, {declared} "
                f"bytes, and has {max(there, 0)} bytes of pixel data; fetch the file again",
            )

    # ------------------------------------------------------------------ one frame
    def _frame(self, pixels: Pixels, index: int, series: Series, places: list[Any]) -> Frame:
        axes = self.of(places, "ImageOrientationPatient", floats(6))
        position = self.of(places, "ImagePositionPatient", floats(3))
        if axes is not None:
            axes = self._unit(axes)
        if pixels.frames > 1 and not places:
            position = self._grid_position(index, position, axes)
        spacing = self.of(places, "PixelSpacing", floats(2))
        between = self.of(places, "SpacingBetweenSlices", float)
        thickness = self.of(places, "SliceThickness", float)
        if spacing is not None and min(spacing) <= 0:
            raise corrupt(self.path, f"PixelSpacing is {spacing}")
        kind = self.of_text(places, "FrameType") or self.text(self.data, "ImageType")
        slope, intercept = self._rescale(places)
        return Frame(
            pixels,
            index,
            series,
            self.number(self.data, "InstanceNumber", int) or 0,
            position if axes is not None else None,
            axes if position is not None else None,
            spacing,  # type: ignore[arg-type]
            next((abs(v) for v in (between, thickness) if v), None),
            slope,
            intercept,
            self._padding(pixels),
            "LOCALIZER" in kind.upper().split("\\"),
            self.of_text(places, "StackID"),
            tuple(self._traits(places, kind, pixels.frames)),
        )

    def _unit(self, axes: Vector) -> Vector:
        """Directions of unit length at a right angle, as the standard demands."""
        rows, columns = np.array(axes[:3]), np.array(axes[3:])
        lengths = np.linalg.norm(rows), np.linalg.norm(columns)
        if not all(abs(n - 1) < 0.01 for n in lengths) or abs(rows @ columns) > 0.01:
            raise corrupt(
                self.path, f"ImageOrientationPatient {axes} is no pair of perpendicular directions"
            )
        return tuple((rows / lengths[0]).tolist() + (columns / lengths[1]).tolist())

    def _grid_position(
        self, index: int, position: Vector | None, axes: Vector | None
    ) -> Vector | None:
        """Frames without functional groups have places where the file gives their offsets (dose
        grids)."""
        offsets = self.number(self.data, "GridFrameOffsetVector", lambda v: tuple(map(float, v)))
        if offsets is None or position is None or axes is None or len(offsets) <= index:
            return None
        normal = np.cross(axes[:3], axes[3:])
        return tuple((np.array(position) + (offsets[index] - offsets[0]) * normal).tolist())

    def _rescale(self, places: list[Any]) -> tuple[float, float]:
        slope = self.of(places, "RescaleSlope", float)
        dose = self.number(self.data, "DoseGridScaling", float)
        if slope is None:
            slope = dose
        if slope == 0:
            raise corrupt(self.path, "RescaleSlope is 0")
        return (
            1.0 if slope is None else slope,
            self.of(places, "RescaleIntercept", float) or 0.0,
        )

    def _padding(self, pixels: Pixels) -> int | None:
        """The padding value; written as unsigned by some although pixels are signed."""
        value = self.number(self.data, "PixelPaddingValue", int)
        top = 1 << pixels.stored
        if value is not None and pixels.signed and top // 2 <= value < top:
            value -= top
        if value is not None and pixels.signed and value >= 1 << (pixels.allocated - 1):
            value -= 1 << pixels.allocated
        return value

    def _traits(self, places: list[Any], kind: str, frames: int) -> Iterator[tuple[str, str]]:
        if places:
            yield from self._frame_traits(places, kind)
        else:
            for name in TRAITS:
                yield name, kind if name == "ImageType" else self.text(self.data, name)
        if frames > 1:  # a file per time point
            yield "InstanceNumber", self.text(self.data, "InstanceNumber")

    def _frame_traits(self, places: list[Any], kind: str) -> Iterator[tuple[str, str]]:
        yield "FrameType", kind
        for name in FRAME_TRAITS[1:]:
            yield name, self.of_text(places, name)
        dimensions = self.items("DimensionIndexSequence")
        content = self.value(places[0], "FrameContentSequence", list) or []
        values = self.value(content[0], "DimensionIndexValues", list_of) if content else None
        for number, dimension in enumerate(dimensions):
            pointer = self.value(dimension, "DimensionIndexPointer", int)
            if values is not None and number < len(values) and pointer not in _OF_SLICES:
                label = self.text(dimension, "DimensionDescriptionLabel")
                yield label or f"dimension {number}", str(values[number])


def _is_deflated(path: str, head: bytes) -> bool:
    if _DEFLATED.encode() not in head:
        return False
    return (
        str(_pydicom(".filereader").read_file_meta_info(path).get("TransferSyntaxUID")) == _DEFLATED
    )


def inflated(file: Any, limit: int) -> bytes:
    """The first bytes of the data set of a deflated file."""
    file.seek(132)
    head = file.read(12)
    if head[:6] != b"\x02\0\0\0UL":
        raise ValueError("the file does not say the length of its meta information")
    file.seek(144 + int.from_bytes(head[8:12], "little"))
    unpack, parts, left = zlib.decompressobj(-zlib.MAX_WBITS), [], limit
    while left > 0 and not unpack.eof:
        packed = unpack.unconsumed_tail or file.read(2**20)
        if not packed:
            break
        parts.append(unpack.decompress(packed, left))
        left -= len(parts[-1])
    return b"".join(parts)
