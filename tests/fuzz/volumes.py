"""Seeds of volumes: NIfTI, DICOM, HDF5, NumPy."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
from nibabel.testing import data_path

from tests.fuzz.seeds import Seed
from tests.images import _make

#: of pydicom's own
DICOM = (
    "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG2000.dcm",
    "JPGExtended.dcm", "rtdose.dcm", "rtdose_rle.dcm", "image_dfl.dcm",
    "CT_small.dcm", "JPEGLSNearLossless_16.dcm",
)  # fmt: skip


def make(folder: Path) -> Iterator[Seed]:
    yield from _nifti(folder)
    yield from _dicom(folder)
    yield from _hdf5(folder)
    path = folder / "volume.npy"
    np.save(path, np.arange(5 * 8 * 9, dtype="<i2").reshape(5, 8, 9))
    yield Seed.of("npy/volume", "volume", path)
    path = folder / "fortran.npy"
    np.save(path, np.asfortranarray(np.arange(5 * 8 * 9, dtype=">f4").reshape(5, 8, 9)))
    yield Seed.of("npy/fortran", "volume", path)


def _nifti(folder: Path) -> Iterator[Seed]:
    values = np.random.default_rng(0).integers(-900, 900, (9, 8, 6)).astype("i2")
    affine = np.array([[-1.5, 0, 0, 20], [0, 1.0, 0.1, -7], [0, -0.1, 3, 5], [0, 0, 0, 1.0]])
    kinds = {
        "plain": nib.Nifti1Image(values, affine),
        "two": nib.Nifti2Image(values, affine),
        "floats": nib.Nifti1Image(values.astype("f4"), affine),
        "big-endian": nib.Nifti1Image(values, affine, nib.Nifti1Header(endianness=">")),
        "scaled": nib.Nifti1Image(values.astype("u1"), affine),
        "unplaced": nib.Nifti1Image(values, None),
    }
    kinds["scaled"].header.set_slope_inter(0.5, -3)
    for name, image in kinds.items():
        path = folder / f"{name}.nii"
        image.to_filename(path)
        yield Seed.of(f"nifti/{name}", "volume", path)
    for name in ("plain", "two", "scaled"):
        path = folder / f"{name}.nii.gz"
        path.write_bytes(gzip.compress((folder / f"{name}.nii").read_bytes(), mtime=0))
        yield Seed.of(f"nifti/{name}-gz", "volume", path)
    series = nib.Nifti1Image(np.stack([values] * 3, -1), affine)
    series.to_filename(path := folder / "times.nii")
    yield Seed.of("nifti/times", "volume", path, time=1)
    colours = np.zeros((9, 8, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(colours, affine).to_filename(path := folder / "colours.nii")
    yield Seed.of("nifti/colours", "volume", path)
    for name in ("resampled_anat_moved.nii", "functional.nii", "example_nifti2.nii.gz"):
        options = {} if "anat" in name else {"time": 0}
        yield Seed.of(f"nifti/real-{name}", "volume", Path(data_path) / name, **options)
    (folder / "pair").mkdir()
    nib.Nifti1Pair(values, affine).to_filename(folder / "pair" / "scan.hdr")
    files = {p.name: p.read_bytes() for p in sorted((folder / "pair").iterdir())}
    yield Seed("nifti/pair", "volume", "scan.hdr", files)


def _dicom(folder: Path) -> Iterator[Seed]:
    for name in DICOM:
        path = Path(pydicom.data.get_testdata_file(name, download=False))
        yield Seed.of(f"dicom/real-{path.stem}", "volume", path)
    from tests.images.volumes.dicom import made

    values = made.stored_values(4)
    yield Seed.of("dicom/series", "volume", made.series(folder / "series", values), share=2)
    where = made.positions(4)
    path = made.write(folder / "frames.dcm", values, **made.functional_groups(where))
    yield Seed.of("dicom/frames", "volume", path, share=2)
    path = made.write(folder / "implicit.dcm", values[0], syntax="1.2.840.10008.1.2")
    yield Seed.of("dicom/implicit", "volume", path)


def _hdf5(folder: Path) -> Iterator[Seed]:
    data = np.stack([_make.picture(20, 24, 0, "uint16", seed=n) for n in range(4)])
    for name, options in {
        "plain": {},
        "chunked": {"chunks": (2, 10, 12), "compression": "gzip", "shuffle": True},
        "checked": {"chunks": (4, 20, 24), "compression": "lzf", "fletcher32": True},
    }.items():
        path = folder / f"{name}.h5"
        with h5py.File(path, "w", libver="latest" if name == "checked" else None) as file:
            array = file.create_dataset("scan/raw", data=data, track_times=False, **options)
            array.attrs["element_size_um"] = (3.0, 1.0, 1.0)
            for dim, label in zip(array.dims, "zyx"):
                dim.label = label
        yield Seed.of(f"hdf5/{name}", "volume", path)
