"""A CT series in a folder: HU values by place in the patient, and as 1 mm voxels in RAS.

python examples/dicom_series.py [--out FOLDER] [--folder SERIES]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from daskdmed import Volume, open_volume

#: millimeters from slice to slice, from row to row, from column to column
STEP, ROW, COLUMN = 2.5, 1.5, 1.5
AIR, LUNG, WATER, BONE = -1000, -800, 0, 900
#: what is known of the phantom, in RAS+ millimeters
KNOWN = {"water": (0, -40, 0), "left lung": (-38, 0, 10), "spine": (0, -62, -20)}


def phantom(lps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """HU at places (..., 3) in LPS millimeters: a body of water, two lungs, a spine."""
    x, y, z = np.moveaxis(lps, -1, 0)
    hu = np.where((x / 85) ** 2 + (y / 75) ** 2 < 1, WATER, AIR)
    for side in (-38, 38):
        inside = ((x - side) / 26) ** 2 + (y / 34) ** 2 + ((z - 5) / 42) ** 2 < 1
        hu = np.where(inside, LUNG, hu)
    return np.where(x**2 + (y - 62) ** 2 < 9**2, BONE, hu)


def write_series(folder: Path, slices: int, size: int) -> None:
    """One file per slice, as a scanner writes them: 12 bits, intercept -1024."""
    series = generate_uid()
    first = np.array([-COLUMN * (size - 1) / 2, -ROW * (size - 1) / 2, -STEP * (slices - 1) / 2])
    rows, columns = np.mgrid[:size, :size]
    for k in range(slices):
        place = first + np.array([0, 0, k * STEP])
        hu = phantom(place + np.stack([columns * COLUMN, rows * ROW, 0 * rows], axis=-1))
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
        data.Modality, data.SeriesInstanceUID, data.SeriesNumber = "CT", series, 1
        data.SeriesDescription, data.InstanceNumber = "phantom", slices - k
        data.Rows, data.Columns = hu.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.RescaleSlope, data.RescaleIntercept, data.PixelPaddingValue = 1, -1024, 0
        data.PixelSpacing, data.SliceThickness = [ROW, COLUMN], STEP
        data.ImagePositionPatient = [round(float(v), 4) for v in place]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelData = (hu + 1024).astype("<u2").tobytes()
        data.save_as(folder / f"{generate_uid()}.dcm", enforce_file_format=True)


def values_at(volume: Volume) -> dict[str, int]:
    """HU at the places that are known, each read as one voxel."""
    assert volume.space is not None
    found = {}
    for name, place in KNOWN.items():
        index = np.rint(volume.space.to_index(place)).astype(int)
        found[name] = int(volume.read(index.tolist(), (1, 1, 1))[0, 0, 0])
    return found


def picture(voxels: np.ndarray[Any, Any], path: Path) -> None:
    """The middle plane along each axis of 1 mm voxels (z, y, x) that grow to S, A, R."""
    import matplotlib.pyplot as plt

    z, y, x = (n // 2 for n in voxels.shape)
    planes = {
        f"axial, z = {z}": (voxels[z], "left to right", "posterior to anterior"),
        f"coronal, y = {y}": (voxels[:, y], "left to right", "inferior to superior"),
        f"sagittal, x = {x}": (voxels[:, :, x], "posterior to anterior", "inferior to superior"),
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    for axis, (title, (plane, across, up)) in zip(axes, planes.items(), strict=True):
        image = axis.imshow(plane, cmap="gray", vmin=-1000, vmax=1000, origin="lower")
        axis.set(title=title, xlabel=f"{across} [mm]", ylabel=f"{up} [mm]")
    figure.colorbar(image, ax=axes, label="HU", shrink=0.8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def show(folder: Path, out: Path, *, known: bool) -> None:
    volume = open_volume(folder)
    print(volume.space)
    print("orientation", volume.space and volume.space.orientation, "spacing", volume.spacing)
    print("values", volume.dtype, "outside", volume.background)
    if known:
        print("HU", values_at(volume))
    lazy = volume.to_dask(spacing=1, orientation="RAS", chunks=64)
    print("at 1 mm in RAS", lazy)
    picture(lazy.compute(), out / "planes.png")
    print("picture", out / "planes.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output/dicom_series"))
    parser.add_argument("--folder", type=Path, help="a series of your own")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.folder is not None:
        show(arguments.folder, arguments.out, known=False)
        return
    quick = bool(os.environ.get("DASKDMED_QUICK"))
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder), 24 if quick else 60, 128)
        show(Path(folder), arguments.out, known=True)


if __name__ == "__main__":
    main()
