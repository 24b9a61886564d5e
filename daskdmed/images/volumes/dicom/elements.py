"""Elements of a DICOM header: which are read, where those of a frame stand, what damaged ones are.

Not covered: what they mean (`daskdmed.images.volumes.dicom.header`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numpy as np

from daskdmed.core.errors import CorruptImageError
from daskdmed.core.extras import extra
from daskdmed.images.volumes.dicom.frames import Vector

T = TypeVar("T")

#: for people, of one slice
TOLD = (
    "Modality",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "StudyInstanceUID",
    "StudyDescription",
    "FrameOfReferenceUID",
    "SOPClassUID",
    "ProtocolName",
    "BodyPartExamined",
    "PatientPosition",
    "Manufacturer",
    "ManufacturerModelName",
    "MagneticFieldStrength",
    "RepetitionTime",
    "EchoTime",
    "FlipAngle",
    "KVP",
    "ConvolutionKernel",
    "SliceThickness",
    "GantryDetectorTilt",
    "Units",
    "RescaleType",
    "PhotometricInterpretation",
    "WindowCenter",
    "WindowWidth",
)
#: elements that may tell apart volumes of one series, the most telling first
TRAITS = (
    "ImageType",
    "EchoTime",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TriggerTime",
    "AcquisitionNumber",
    "AcquisitionTime",
)
READ = (
    *TRAITS,
    "SOPClassUID",
    "Modality",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "InstanceNumber",
    "PhotometricInterpretation",
    "SliceThickness",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "DoseGridScaling",
    "GridFrameOffsetVector",
    "DimensionIndexSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
#: of frames: element -> the functional groups that may hold it
GROUPS = {
    "ImagePositionPatient": ("PlanePositionSequence",),
    "ImageOrientationPatient": ("PlaneOrientationSequence",),
    "PixelSpacing": ("PixelMeasuresSequence",),
    "SliceThickness": ("PixelMeasuresSequence",),
    "SpacingBetweenSlices": ("PixelMeasuresSequence",),
    "RescaleSlope": ("PixelValueTransformationSequence",),
    "RescaleIntercept": ("PixelValueTransformationSequence",),
    "StackID": ("FrameContentSequence",),
    "FrameType": (
        "MRImageFrameTypeSequence",
        "CTImageFrameTypeSequence",
        "PETFrameTypeSequence",
        "MRSpectroscopyFrameTypeSequence",
        "XAXRFFrameCharacteristicsSequence",
    ),
    "EffectiveEchoTime": ("MREchoSequence",),
    "TemporalPositionIndex": ("FrameContentSequence",),
    "DiffusionBValue": ("MRDiffusionSequence",),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence",),
}
FRAME_TRAITS = (
    "FrameType",
    "EffectiveEchoTime",
    "TemporalPositionIndex",
    "DiffusionBValue",
    "NominalCardiacTriggerDelayTime",
)


def corrupt(path: str, what: str, error: BaseException | None = None) -> CorruptImageError:
    """The error of a header that makes no sense."""
    cause = f"{what}{': ' if what else ''}{type(error).__name__}: {error}" if error else what
    return CorruptImageError.of(
        path, f"its DICOM header cannot be read ({cause}); fetch the file again, or take it away"
    )


@cache
def tag_of(name: str) -> Any:
    """The tag of an element, for pydicom."""
    return extra("pydicom.tag", "volumes", "DICOM files need").Tag(name)


class Elements:
    """Checked values of a data set."""

    path: str
    data: Any

    def value(self, place: Any, name: str, convert: Callable[[Any], T]) -> T | None:
        """An element of a data set; None where it is missing or empty."""
        try:
            tag = tag_of(name)
            if tag not in place:  # `get` would ask by exceptions
                return None
            found = place[tag].value
            if found is None or (hasattr(found, "__len__") and not len(found)):
                return None
            return convert(found)
        except Exception as error:  # conversions are made when values are asked for
            raise corrupt(self.path, name, error) from error

    def number(self, place: Any, name: str, convert: Callable[[Any], T]) -> T | None:
        """The same, of what must be finite numbers."""
        found = self.value(place, name, convert)
        if found is not None and not np.isfinite(np.asarray(found, np.float64)).all():
            raise corrupt(self.path, f"{name} is {found}")
        return found

    def text(self, place: Any, name: str) -> str:
        """The same as text; several values with a backslash between, as in files."""
        return self.value(place, name, _text) or ""

    def items(self, name: str) -> list[Any]:
        """Items of a sequence."""
        return self.value(self.data, name, list) or []

    def of(self, places: list[Any], name: str, convert: Callable[[Any], T]) -> T | None:
        """Numbers of a frame: of its functional groups, of those shared, of the data set."""
        for place in places:
            for group in GROUPS.get(name, ()):
                items = self.value(place, group, list)
                if items and (found := self.number(items[0], name, convert)) is not None:
                    return found
        return self.number(self.data, name, convert)

    def of_text(self, places: list[Any], name: str) -> str:
        """Text of the functional groups of a frame."""
        for place in places:
            for group in GROUPS[name]:
                items = self.value(place, group, list)
                if items and (found := self.text(items[0], name)):
                    return found
        return ""


def list_of(value: Any) -> list[Any]:
    """Of one value or several."""
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]


def _text(value: Any) -> str:
    return "\\".join(str(v) for v in list_of(value)).strip()


def floats(count: int) -> Callable[[Any], Vector]:
    """Converts to so many finite numbers."""

    def convert(value: Any) -> Vector:
        found = tuple(float(v) for v in value)
        if len(found) != count or not all(map(math.isfinite, found)):
            raise ValueError(f"{count} finite numbers are needed, not {list(value)}")
        return found

    return convert
