"""Writes small DICOM whole-slide images as scanners and converters do, with pydicom."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np

KIND = "1.2.840.10008.5.1.4.1.1.77.1.6"
JPEG = "1.2.840.10008.1.2.4.50"
JPEG2000 = "1.2.840.10008.1.2.4.90"
JPEGLS = "1.2.840.10008.1.2.4.80"
RLE = "1.2.840.10008.1.2.5"
NATIVE = "1.2.840.10008.1.2.1"
UID = "1.2.826.0.1.3680043.8.498.1"


def encode(tile, syntax):
    """One frame."""
    if syntax == JPEG:
        return imagecodecs.jpeg8_encode(tile, level=90)
    if syntax == JPEG2000:
        return imagecodecs.jpeg2k_encode(tile, codecformat="j2k", level=0, reversible=True)
    if syntax == JPEGLS:
        return imagecodecs.jpegls_encode(tile)
    if syntax == RLE:
        return _run_lengths(tile)
    return tile.tobytes()


def _run_lengths(tile):
    planes = [tile] if tile.ndim == 2 else [tile[..., i] for i in range(tile.shape[2])]
    segments = []
    for plane in planes:
        raw = b""
        for row in plane.astype(np.uint8):
            for i in range(0, len(row), 128):
                part = row[i : i + 128].tobytes()
                raw += bytes((len(part) - 1,)) + part
        segments.append(raw + b"\0" * (len(raw) % 2))
    places, at = [], 64
    for segment in segments:
        places.append(at)
        at += len(segment)
    places += [0] * (15 - len(places))
    return np.array([len(segments), *places], "<u4").tobytes() + b"".join(segments)


def decode(frame, syntax, like):
    """What the frame decodes to."""
    if syntax == JPEG:
        return imagecodecs.jpeg8_decode(frame)
    if syntax == JPEG2000:
        return imagecodecs.jpeg2k_decode(frame)
    return like


def tiles_of(image, tile):
    """((row, column), tile of full size) in order; what is beyond the image is 7."""
    rows, columns = -(-image.shape[0] // tile), -(-image.shape[1] // tile)
    padded = np.full((rows * tile, columns * tile, *image.shape[2:]), 7, image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    for r in range(rows):
        for c in range(columns):
            part = padded[r * tile : (r + 1) * tile, c * tile : (c + 1) * tile]
            yield (r, c), np.ascontiguousarray(part)


def write(
    path,
    image,
    *,
    tile=64,
    syntax=JPEG,
    sparse=False,
    skip=(),
    flavor="VOLUME",
    mpp=0.5,
    series="1",
    number=1,
    photometric=None,
    offsets="basic",
    fragments=1,
    paths=("0",),
    names=(),
    planes=1,
    part=None,
    icc=None,
    change=None,
):
    """Write one instance, and return the pixels that its frames decode to.

    `image` is (y, x[, 3]), or a list of them: one per optical path and, of each, focal plane.
    `skip` are tiles (row, column) that a sparse one has not. `part` is (first frame, last
    frame + 1, number, total) of a concatenation. `change` gets the data set before it is written.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate, encapsulate_extended
    from pydicom.sequence import Sequence

    images = image if isinstance(image, list) else [image]
    first = images[0]
    height, width = first.shape[:2]
    frames, where, seen = [], [], []
    for index, one in enumerate(images):
        shown = np.zeros_like(one)
        for (r, c), pixels in tiles_of(one, tile):
            if (r, c) in skip:
                shown[r * tile : (r + 1) * tile, c * tile : (c + 1) * tile] = 255
                continue
            data = encode(pixels, syntax)
            frames.append(data)
            where.append((r, c, index))
            found = decode(data, syntax, pixels)
            place = shown[r * tile : (r + 1) * tile, c * tile : (c + 1) * tile]
            place[...] = found[: place.shape[0], : place.shape[1]]
        seen.append(shown)
    if part is not None:
        frames, where = frames[part[0] : part[1]], where[part[0] : part[1]]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = KIND
    ds.file_meta.MediaStorageSOPInstanceUID = f"{UID}.{series}.{number}"
    ds.SOPClassUID, ds.SOPInstanceUID = KIND, f"{UID}.{series}.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID, f"{UID}.{series}"
    ds.FrameOfReferenceUID = f"{UID}.{series}.9"
    ds.Modality, ds.Manufacturer, ds.ContainerIdentifier = "SM", "made", f"slide-{series}"
    ds.SeriesNumber, ds.InstanceNumber = series, number
    ds.PatientID = ds.PatientName = "nobody"
    ds.ImageType = ["DERIVED", "PRIMARY", flavor, "RESAMPLED" if number > 1 else "NONE"]
    ds.Rows = ds.Columns = tile
    ds.NumberOfFrames = len(frames)
    ds.SamplesPerPixel = 1 if first.ndim == 2 else 3
    usual = {JPEG: "YBR_FULL_422", JPEG2000: "YBR_RCT"}.get(syntax, "RGB")
    ds.PhotometricInterpretation = photometric or (usual if first.ndim == 3 else "MONOCHROME2")
    if first.ndim == 3:
        ds.PlanarConfiguration = 0
    bits = first.dtype.itemsize * 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits, bits - 1, 0
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "01" if syntax == JPEG else "00"
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = height, width
    ds.TotalPixelMatrixFocalPlanes = planes
    ds.ImagedVolumeWidth, ds.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    ds.ImagedVolumeDepth, ds.FocusMethod, ds.ExtendedDepthOfField = 1, "AUTO", "NO"
    ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    ds.SpecimenLabelInImage = "YES" if flavor == "LABEL" else "NO"
    ds.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    ds.AcquisitionDateTime = "20260101120000"
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 10
    ds.TotalPixelMatrixOriginSequence = Sequence([origin])
    ds.NumberOfOpticalPaths = len(paths)
    described = []
    for i, name in enumerate(paths):
        one = Dataset()
        one.OpticalPathIdentifier = name
        one.ObjectiveLensPower = 20
        illumination = Dataset()
        illumination.CodeValue, illumination.CodingSchemeDesignator = "111744", "DCM"
        illumination.CodeMeaning = "Brightfield illumination"
        one.IlluminationTypeCodeSequence = Sequence([illumination])
        if names:
            one.OpticalPathDescription = names[i]
            one.IlluminationWaveLength = 405.0 + 83 * i
        if icc:
            one.ICCProfile = icc
        described.append(one)
    ds.OpticalPathSequence = Sequence(described)
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    measures.SpacingBetweenSlices = 0.001
    shared.PixelMeasuresSequence = Sequence([measures])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    if sparse:
        ds.PerFrameFunctionalGroupsSequence = Sequence(
            [_place(r, c, index, tile, paths, planes) for r, c, index in where]
        )
    if part is not None:
        ds.ConcatenationUID, ds.ConcatenationFrameOffsetNumber = f"{UID}.{series}.77", part[0]
        ds.InConcatenationNumber, ds.InConcatenationTotalNumber = part[2], part[3]
    if syntax == NATIVE:
        data = b"".join(frames)
        ds.PixelData = data + b"\0" * (len(data) % 2)
        ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    elif offsets == "extended":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(
            frames
        )
    else:
        ds.PixelData = encapsulate(
            frames, fragments_per_frame=fragments, has_bot=offsets == "basic"
        )
    if syntax != NATIVE:
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    if change is not None:
        change(ds)
    ds.save_as(Path(path), enforce_file_format=True)
    shown = [s if s.ndim == 3 else s[..., None] for s in seen]
    return np.concatenate(shown, -1) if len(shown) > 1 and planes == 1 else shown[0]


def _place(row, column, index, tile, paths, planes):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    group, at, optical = Dataset(), Dataset(), Dataset()
    at.ColumnPositionInTotalImagePixelMatrix = column * tile + 1
    at.RowPositionInTotalImagePixelMatrix = row * tile + 1
    at.XOffsetInSlideCoordinateSystem = at.YOffsetInSlideCoordinateSystem = 10
    at.ZOffsetInSlideCoordinateSystem = index % planes
    group.PlanePositionSlideSequence = Sequence([at])
    optical.OpticalPathIdentifier = paths[index // planes]
    group.OpticalPathIdentificationSequence = Sequence([optical])
    return group


def write_pyramid(folder, levels, **options):
    """A folder with one instance per level; what each decodes to."""
    Path(folder).mkdir(exist_ok=True)
    mpp, full = options.pop("mpp", 0.5), levels[0]
    found = []
    for i, level in enumerate(levels):
        own = mpp * full.shape[1] / level.shape[1]
        found.append(write(Path(folder) / f"level{i}.dcm", level, mpp=own, number=i + 1, **options))
    return found
