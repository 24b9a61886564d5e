"""What one file of a whole-slide image says of itself, before any pixel is read.

Not covered: where its frames lie (`daskdmed.images.dicomwsi.frames`), and what several files make
together (`daskdmed.images.dicomwsi.pyramid`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.images.dicomwsi.places import SlideHeader, read_places
from daskdmed.images.tiff.metadata import Mpp, plausible
from daskdmed.images.volumes.dicom.elements import corrupt, floats
from daskdmed.images.volumes.dicom.frames import Pixels
from daskdmed.images.volumes.dicom.header import WHOLE_SLIDE, read_header

#: for people
TOLD = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("SeriesDescription", "StudyDescription", "FrameOfReferenceUID", "PyramidUID", "Modality"),
    *("ContainerIdentifier", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"),
    *("SoftwareVersions", "AcquisitionDateTime", "ImageType", "PhotometricInterpretation"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
    *("VolumetricProperties", "FocusMethod", "ExtendedDepthOfField", "ImagedVolumeWidth"),
    *("ImagedVolumeHeight", "ImagedVolumeDepth", "DimensionOrganizationType", "BodyPartExamined"),
)
_READ = (
    *TOLD,
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("TotalPixelMatrixRows", "TotalPixelMatrixColumns", "TotalPixelMatrixFocalPlanes"),
    *("NumberOfOpticalPaths", "OpticalPathSequence", "SharedFunctionalGroupsSequence"),
    *("ConcatenationFrameOffsetNumber", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
#: tiles along one side of a level; more is damage
_MAX_SIDE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class OpticalPath:
    """One way of light, which gives one channel, or the colours."""

    identifier: str
    description: str = ""
    #: nanometers of the illumination
    wavelength: float | None = None
    power: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One file: a level, a part of one, or an image beside the slide."""

    pixels: Pixels
    uid: str
    series: str
    #: which of several pyramids of a series
    pyramid: str
    #: what people call its series
    description: str
    container: str
    #: VOLUME, LABEL, OVERVIEW, THUMBNAIL
    flavor: str
    #: of the whole level, (height, width)
    size: tuple[int, int]
    samples: int
    photometric: str
    planar: bool
    focal_planes: int
    paths: tuple[OpticalPath, ...]
    #: of each frame (optical path, focal plane, row, column); None where they are in order
    places: npt.NDArray[np.int64] | None
    #: number of its first frame among those of the level
    first: int
    mpp: Mpp | None
    icc_profile: bytes | None
    told: tuple[tuple[str, str], ...]

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of a frame."""
        return self.pixels.rows, self.pixels.columns

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of frames that cover the level."""
        return -(-self.size[0] // self.tile[0]), -(-self.size[1] // self.tile[1])


def read_instance(path: str) -> Instance | None:
    """What a file says; None of what is no whole-slide image. CorruptImageError for a damaged
    header."""
    return read_header(path, _READ, _read, SlideHeader)


def _read(file: SlideHeader) -> Instance | None:
    data = file.data
    if str(data.get("SOPClassUID")) != WHOLE_SLIDE:
        return None
    pixels = file.pixels()
    size = file.needed("TotalPixelMatrixRows"), file.needed("TotalPixelMatrixColumns")
    samples = file.number(data, "SamplesPerPixel", int) or 1
    if max(size) > _MAX_SIDE or samples not in (1, 3):
        raise corrupt(file.path, f"{size[1]} x {size[0]} pixels of {samples} samples")
    paths = _optical_paths(file)
    shared = file.items("SharedFunctionalGroupsSequence")
    kind = file.text(data, "ImageType").upper().split("\\")
    places, depth = read_places(file, pixels, [path.identifier for path in paths])
    return Instance(
        pixels,
        file.text(data, "SOPInstanceUID"),
        file.text(data, "SeriesInstanceUID"),
        file.text(data, "PyramidUID"),
        file.text(data, "SeriesDescription"),
        file.text(data, "ContainerIdentifier"),
        kind[2] if len(kind) > 2 else "VOLUME",
        size,
        samples,
        file.text(data, "PhotometricInterpretation").upper(),
        file.number(data, "PlanarConfiguration", int) == 1,
        depth,
        paths,
        places,
        file.number(data, "ConcatenationFrameOffsetNumber", int) or 0,
        _mpp(file, shared, size),
        _profile(file),
        tuple((f"dicom.{name}", text) for name in TOLD if (text := file.text(data, name))),
    )


def _optical_paths(file: SlideHeader) -> tuple[OpticalPath, ...]:
    found = [
        OpticalPath(
            file.text(one, "OpticalPathIdentifier"),
            file.text(one, "OpticalPathDescription"),
            file.number(one, "IlluminationWaveLength", float),
            file.number(one, "ObjectiveLensPower", float),
        )
        for one in file.items("OpticalPathSequence")
    ]
    return tuple(found) or (OpticalPath(""),)


def _profile(file: SlideHeader) -> bytes | None:
    for one in file.items("OpticalPathSequence"):
        found = file.value(one, "ICCProfile", bytes)
        if found:
            return found
    return None


def _mpp(file: SlideHeader, shared: list[Any], size: tuple[int, int]) -> Mpp | None:
    measures = file.value(shared[0], "PixelMeasuresSequence", list) if shared else None
    spacing = file.number(measures[0], "PixelSpacing", floats(2)) if measures else None
    if spacing is None:  # millimeters of the whole
        extent = [
            file.number(file.data, f"ImagedVolume{side}", float) for side in ("Height", "Width")
        ]
        if not all(extent):
            return None
        spacing = tuple((mm or 0.0) / n for mm, n in zip(extent, size, strict=True))
    return plausible(spacing[1] * 1000, spacing[0] * 1000)
