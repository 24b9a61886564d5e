"""Writes small series as scanners do, by pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

ROWS, COLUMNS = 16, 20
#: from row to row, from column to column, from slice to slice
SPACING, STEP = (2.0, 1.0), 3.0
FLAT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
FIRST = np.array([-10.0, 5.0, 30.0])


def stored_values(count: int = 8, *, seed: int = 0, bits: int = 12, dtype: str = "u2") -> Any:
    """Random stored numbers (slices, rows, columns)."""
    low = 0 if dtype[0] == "u" else -(1 << bits - 1)
    high = (1 << bits) + low
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (count, ROWS, COLUMNS)).astype(dtype)


def data_set(pixels: Any, **elements: Any) -> Dataset:
    """One image in memory: (rows, columns), or (frames, rows, columns)."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(elements.pop("syntax", ExplicitVRLittleEndian))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber = "CT", "1.2.3", 5
    ds.SeriesDescription, ds.InstanceNumber = "Thorax", 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Rows, ds.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.PixelSpacing, ds.SliceThickness = list(SPACING), STEP
    ds.ImageOrientationPatient, ds.ImagePositionPatient = list(FLAT), FIRST.tolist()
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = min(12, ds.BitsAllocated)
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        if value is None:
            if name in ds:
                delattr(ds, name)
        elif name not in ("frames", "PixelData"):
            setattr(ds, name, value)
    if "HighBit" not in ds:
        ds.HighBit = ds.BitsStored - 1
    if "frames" in elements:
        ds.PixelData = encapsulate(elements["frames"])
    elif elements.get("PixelData", b"") is not None:
        order = ">" if ds.file_meta.TransferSyntaxUID.endswith("1.2.2") else "<"
        ds.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    if "PixelData" in ds:
        ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 or "frames" in elements else "OW"
    return ds


def write(path: Path, pixels: Any, **elements: Any) -> Path:
    """One file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data_set(pixels, **elements).save_as(path, enforce_file_format=True)
    return path


def positions(count: int, *, axes: Any = FLAT, step: Any = None) -> Any:
    """Of slices one behind the other, or `step` (a vector) apart."""
    if step is None:
        step = STEP * np.cross(axes[:3], axes[3:])
    return FIRST + np.arange(count)[:, None] * np.asarray(step)


def series(
    folder: Path,
    values: Any,
    *,
    where: Any = None,
    axes: Any = FLAT,
    prefix: str = "",
    each: Any = None,
    **elements: Any,
) -> Path:
    """A file per slice, in an order that neither names nor numbers tell. `each` gives elements of
    a slice by its number."""
    where = positions(len(values), axes=axes) if where is None else where
    order = np.random.default_rng(1).permutation(len(values))
    for number, k in enumerate(order):
        own = {} if each is None else each(int(k))
        facts = {
            "InstanceNumber": int(k) + 1,
            "ImagePositionPatient": [float(f"{v:.10g}") for v in where[k]],
            "ImageOrientationPatient": [float(f"{v:.10g}") for v in axes],
            **elements,
            **own,
        }
        write(folder / f"{prefix}{number:03d}.dcm", values[k], **facts)
    return folder


def functional_groups(where: Any, **each: Any) -> dict[str, Any]:
    """Elements of a multi-frame file whose frames lie at these positions; `each` are lists of
    (sequence, element) -> values per frame, written ``Sequence__Element=[...]``."""
    frames = []
    for k, position in enumerate(where):
        frame = Dataset()
        place = Dataset()
        place.ImagePositionPatient = [float(f"{v:.10g}") for v in position]
        frame.PlanePositionSequence = Sequence([place])
        for name, values in each.items():
            group, _, element = name.partition("__")
            item = getattr(frame, group)[0] if group in frame else Dataset()
            setattr(item, element, values[k])
            setattr(frame, group, Sequence([item]))
        frames.append(frame)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), STEP
    plane.ImageOrientationPatient = list(FLAT)
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    return {
        "SharedFunctionalGroupsSequence": Sequence([shared]),
        "PerFrameFunctionalGroupsSequence": Sequence(frames),
        **dict.fromkeys(("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")),
        "SliceThickness": None,
    }
