"""Small slides as vendors arrange them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

JPEG = {
    "compression": "jpeg",
    "photometric": "rgb",
    "subsampling": (1, 1),
    "metadata": None,
}


def write_ndpi(path: Path, pages) -> None:
    """Hamamatsu: pages of (image, objective, MCUs between restart markers or None[, z in nm])."""
    out = bytearray(b"II*\0" + bytes(8))
    pointer = 4
    for page in pages:
        pointer = _ndpi_page(out, pointer, *page)
    path.write_bytes(out)


def _ndpi_page(
    out: bytearray, pointer: int, image: np.ndarray, lens: float, blocks, z: int = 0
) -> int:
    def put(data: bytes) -> int:
        out.extend(bytes(len(out) % 2))
        out.extend(data)
        return len(out) - len(data)

    file = io.BytesIO()
    options = {"restart_marker_blocks": blocks} if blocks else {}
    Image.fromarray(image).save(file, "JPEG", quality=85, subsampling=0, **options)
    jpeg = file.getvalue()
    if blocks and b"\xff\xdd" not in jpeg:
        pytest.skip("Pillow before 10.2 writes no restart markers")
    facts = b"Objective.Lens.Magnificant=20\r\nCreated=2020/01/02\r\n\0"
    height, width = image.shape[:2]
    lens_bits = struct.unpack("<I", struct.pack("<f", lens))[0]
    entries = [
        (254, 4, 1, 0), (256, 4, 1, width), (257, 4, 1, height),
        (258, 3, 3, put(struct.pack("<HHH", 8, 8, 8))), (259, 3, 1, 7), (262, 3, 1, 6),
        (271, 2, 10, put(b"Hamamatsu\0")), (272, 2, 9, put(b"C9600-12\0")),
        (273, 4, 1, put(jpeg)), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(jpeg)),
        (282, 5, 1, put(struct.pack("<II", 40000, 1))),
        (283, 5, 1, put(struct.pack("<II", 20000, 1))), (284, 3, 1, 1), (296, 3, 1, 3),
        (65420, 4, 1, 1), (65421, 11, 1, lens_bits), (65422, 9, 1, 100), (65423, 9, 1, 200),
        (65424, 9, 1, z & 0xFFFFFFFF), (65427, 2, 9, put(b"12345678\0")),
        (65449, 2, len(facts), put(facts)),
    ]  # fmt: skip
    if blocks:
        starts = _restarts(jpeg)
        entries.append((65426, 4, len(starts), put(struct.pack(f"<{len(starts)}I", *starts))))
    here = put(b"")
    struct.pack_into("<Q", out, pointer, here)
    out += struct.pack("<H", len(entries))
    for entry in sorted(entries):
        out += struct.pack("<HHII", *entry)
    out += bytes(8 + 4 * len(entries))
    return here + 2 + 12 * len(entries)


def _restarts(jpeg: bytes) -> list[int]:
    at = 2
    while True:
        marker, length = struct.unpack(">HH", jpeg[at : at + 4])
        at += 2 + length
        if marker == 0xFFDA:
            break
    starts = [at]
    while (at := jpeg.find(b"\xff", at)) >= 0 and jpeg[at + 1] != 0xD9:
        if 0xD0 <= jpeg[at + 1] <= 0xD7:
            starts.append(at + 2)
        at += 2
    return starts


def _attribute(name: str, value: str) -> str:
    return f'<Attribute Name="{name}" Group="0x0028" Element="0x0030" PMSVR="x">{value}</Attribute>'


def _spacing(factor: float) -> str:
    value = f"&quot;{0.000226 * factor:g}&quot; &quot;{0.000227 * factor:g}&quot;"
    return _attribute("DICOM_PIXEL_SPACING", value)


def write_philips(path: Path, images, macro, label) -> None:
    """Philips: levels padded to whole tiles, sizes to be had from the pixel spacing."""
    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{_spacing(2**i)}'
        + _attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", str(i))
        + "</DataObject>"
        for i in range(len(images))
    )
    scanned = (
        '<DataObject ObjectType="DPScannedImage">'
        + _spacing(1)
        + _attribute("PIM_DP_IMAGE_TYPE", "WSI")
        + _attribute("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", f"<Array>{levels}</Array>")
        + "</DataObject>"
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + _attribute("DICOM_MANUFACTURER", "PHILIPS")
        + _attribute("PIM_DP_SCANNED_IMAGES", f"<Array>{scanned}</Array>")
        + "</DataObject>"
    )
    options = {**JPEG, "software": "Philips DP v1.0"}
    with tifffile.TiffWriter(path) as tif:
        for number, image in enumerate(images):
            tif.write(
                image,
                tile=(256, 256),
                description=f"level={number}" if number else xml,
                subfiletype=1 if number else 0,
                **options,
            )
        for name, image in (("Macro", macro), ("Label", label)):
            tif.write(image, description=name, rowsperstrip=len(image), **options)


def write_leica(path: Path, macro, images, *, offset=(0, 0), canvas=None, areas=1) -> None:
    """Leica: a macro of the whole slide, and a main image at an offset (x, y) in pixels."""
    height, width = images[0].shape[:2]
    canvas_w, canvas_h = canvas or (width, height)

    def image(name, view, objective, dims):
        (x, y), (w, h) = view
        dimensions = "".join(
            f'<dimension sizeX="{dw}" sizeY="{dh}" r="{r}" ifd="{ifd}"/>'
            for r, (ifd, dw, dh) in enumerate(dims)
        )
        return (
            f'<image name="{name}" uuid="{name}"><creationDate>2011-10-13T00:00:00Z</creationDate>'
            '<device model="Leica SCN400" version="1.4"/>'
            f'<pixels sizeX="{dims[0][1]}" sizeY="{dims[0][2]}">{dimensions}</pixels>'
            f'<view sizeX="{w * 250}" sizeY="{h * 250}" offsetX="{x * 250}" offsetY="{y * 250}" '
            'spacingZ="0"/><scanSettings><objectiveSettings>'
            f"<objective>{objective}</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.65</numericalAperture>"
            "<illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    dims = [(1 + i, a.shape[1], a.shape[0]) for i, a in enumerate(images)]
    parts = [
        image(f"main{n}", ((offset[0], offset[1] + n * height), (width, height)), 40, dims)
        for n in range(areas)
    ]
    whole = ((0, 0), (canvas_w, canvas_h))
    parts.insert(0, image("macro", whole, 0.6, [(0, macro.shape[1], macro.shape[0])]))
    xml = (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" uuid="x" sizeX="{canvas_w * 250}" sizeY="{canvas_h * 250}">'
        f"<barcode>abc</barcode>{''.join(parts)}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(macro, tile=(256, 256), description=xml, **JPEG)
        for level in images:
            tif.write(level, tile=(256, 256), **JPEG)


def write_ventana(path: Path, images, label, overlap: int, areas: int = 1) -> None:
    """Ventana: tiles whose overlap, and the number of whose areas, is written in XMP."""
    rows, columns = (-(-n // 256) for n in images[0].shape[:2])
    joints = "".join(
        f'<TileJointInfo FlagJoined="1" Direction="RIGHT" Tile1="{n}" Tile2="{n + 1}" '
        f'OverlapX="{overlap}" OverlapY="0"/>'
        for n in range(1, rows * columns)
    )
    stitch = (
        '<EncodeInfo Ver="2"><SlideStitchInfo>'
        + f'<ImageInfo AOIScanned="1" NumRows="{rows}" NumCols="{columns}">'
        f"{joints}</ImageInfo>" * areas + "</SlideStitchInfo></EncodeInfo>"
    )
    scan = '<Metadata><iScan Magnification="40" ScanRes="0.2325" UnitNumber="BI14"/></Metadata>'
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(
            label,
            description="Label Image",
            rowsperstrip=len(label),
            extratags=[(700, 1, None, scan.encode(), True)],
            **JPEG,
        )
        for number, image in enumerate(images):
            extra = [(700, 1, None, stitch.encode(), True)] if number == 0 else []
            tif.write(
                image,
                tile=(256, 256),
                description=f"level={number} mag={40 >> number} quality=95",
                extratags=extra,
                **JPEG,
            )
