"""Writes small CZI files segment by segment: pyramids, which pylibCZIrw's own writer has not."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

#: pixel types of the format
GRAY8, GRAY16, BGR24 = 0, 1, 3


def _segment(name, body, size=None):
    used = len(body)
    allocated = -(-(size or used) // 32) * 32
    return struct.pack("<16sqq", name.encode(), allocated, used) + body.ljust(allocated, b"\0")


def _entry(tile, at):
    """Directory entry of (pixels, x, y, factor, scene, number, plane)."""
    pixels, x, y, factor, scene, number, plane = tile
    kind = BGR24 if pixels.ndim == 3 else GRAY16 if pixels.dtype == np.uint16 else GRAY8
    height, width = pixels.shape[:2]
    dimensions = [
        ("X", x, width * factor, width),
        ("Y", y, height * factor, height),
        *((letter, value, 1, 1) for letter, value in plane.items()),
        ("S", scene, 1, 1),
    ]
    if factor == 1:
        dimensions.append(("M", number, 1, 1))
    head = struct.pack(
        "<2siqiiB5xi", b"DV", kind, at, 0, 0, 0 if factor == 1 else 2, len(dimensions)
    )
    return head + b"".join(
        struct.pack("<4siifi", letter.encode(), start, size, float(start), stored)
        for letter, start, size, stored in dimensions
    )


def write(path, tiles, *, mpp=0.5, channels=(), extra="", xml=None):
    """Write tiles: (pixels RGB or gray, x, y, factor of the pyramid, scene, number, plane)."""
    first = tiles[0][0]
    kind = "Bgr24" if first.ndim == 3 else "Gray16" if first.dtype == np.uint16 else "Gray8"
    base = [t for t in tiles if t[3] == 1]
    width = max(t[1] + t[0].shape[1] for t in base) - min(t[1] for t in base)
    height = max(t[2] + t[0].shape[0] for t in base) - min(t[2] for t in base)
    named = "".join(
        f'<Channel Id="Channel:{i}" Name="{c}"><PixelType>{kind}</PixelType></Channel>'
        for i, c in enumerate(channels or ("bright",))
    )
    distances = "".join(
        f'<Distance Id="{axis}"><Value>{mpp * 1e-6}</Value></Distance>' for axis in "XY"
    )
    scenes = len({t[4] for t in tiles})
    text = xml or (
        '<?xml version="1.0"?><ImageDocument><Metadata><Information><Image>'
        f"<SizeX>{width}</SizeX><SizeY>{height}</SizeY><SizeS>{scenes}</SizeS>"
        f"<SizeM>{len(base)}</SizeM><PixelType>{kind}</PixelType>"
        f"<Dimensions><Channels>{named}</Channels>{extra}</Dimensions></Image>"
        '<Instrument><Objectives><Objective Id="Objective:1">'
        "<NominalMagnification>20</NominalMagnification></Objective></Objectives></Instrument>"
        f"</Information><Scaling><Items>{distances}</Items></Scaling></Metadata></ImageDocument>"
    )
    body = b""
    places = []
    start = 32 + 512
    for tile in tiles:
        at = start + len(body)
        places.append(at)
        pixels = tile[0][..., ::-1] if tile[0].ndim == 3 else tile[0]
        data = np.ascontiguousarray(pixels).tobytes()
        head = struct.pack("<iiq", 0, 0, len(data)) + _entry(tile, at)
        body += _segment("ZISRAWSUBBLOCK", head.ljust(256, b"\0") + data)
    directory_at = start + len(body)
    entries = b"".join(_entry(t, at) for t, at in zip(tiles, places, strict=True))
    body += _segment("ZISRAWDIRECTORY", struct.pack("<i124x", len(tiles)) + entries)
    metadata_at = start + len(body)
    encoded = text.encode()
    body += _segment("ZISRAWMETADATA", struct.pack("<ii248x", len(encoded), 0) + encoded)
    attachments_at = start + len(body)
    body += _segment("ZISRAWATTDIR", struct.pack("<i252x", 0))
    guid = bytes(range(16))
    file = struct.pack(
        "<iiii16s16siqqiq", 1, 0, 0, 0, guid, guid, 0, directory_at, metadata_at, 0, attachments_at
    )
    Path(path).write_bytes(_segment("ZISRAWFILE", file, 512) + body)


def mosaic(image, tile, *, x=0, y=0, factor=1, scene=0, number=0, plane=None):
    """Tiles of an image that lie side by side."""
    found = []
    for top in range(0, image.shape[0], tile):
        for left in range(0, image.shape[1], tile):
            part = image[top : top + tile, left : left + tile]
            place = x + left * factor, y + top * factor
            found.append((part, *place, factor, scene, number + len(found), plane or {"C": 0}))
    return found


def attach(path, files):
    """Add attachments: name -> (kind, bytes)."""
    data = bytearray(Path(path).read_bytes())
    table = b""
    for name, (kind, content) in files.items():
        entry = struct.pack(
            "<2s10xqi16s8s80s", b"A1", len(data), 0, bytes(16), kind.encode(), name.encode()
        )
        table += entry
        head = struct.pack("<i12x", len(content)) + entry
        data += _segment("ZISRAWATTACH", head.ljust(256, b"\0") + content)
    data[32 + 72 : 32 + 80] = struct.pack("<q", len(data))
    data += _segment("ZISRAWATTDIR", struct.pack("<i252x", len(files)) + table)
    Path(path).write_bytes(data)
