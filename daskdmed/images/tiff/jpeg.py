"""JPEG tiles: abbreviated streams whose tables are in the file's directory.

`make_jpeg` gives the ways to decode the tiles of a page: into an array without gaps by
imagecodecs, and, where the TurboJPEG library is there, into rows of a larger array, parts of
tiles, and parts of many at once. The latter are only used for streams whose header leaves no
doubt that all give the same; all others, and all with any fault, take the first, which alone
decides what is an error.

Not covered: other compressions (`daskdmed.images.tiff.codecs`). A stream that is cut off, or
no JPEG, is an error; bytes changed in the middle of one may decode to wrong pixels without
any sign, as with every libjpeg-based reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import imagecodecs

from daskdmed.core.types import Array
from daskdmed.images import turbojpeg
from daskdmed.images.tiff.fetch import DecodeError
from daskdmed.images.turbojpeg import Stored, Wanted

#: libjpeg's colour spaces
GREY, RGB, YCBCR = 1, 2, 3
_END = b"\xff\xd9"
#: (marker, body, where it ends)
_Segment = tuple[int, bytes, int]
#: (bytes, address, pitch, rows, width) -> whether it was decoded, see `Painter`
Paint = Callable[[bytes, int, int, int, int], bool]
#: (bytes, scratch of the tile, its rows and its columns that are wanted) -> these, or None
Part = Callable[[bytes, Array, tuple[int, int], tuple[int, int]], Array | None]
#: (tiles, what is wanted of them, scratch of a tile, output, whether to its place at once) -> which
#: were decoded. What is no bytes, or cannot be decoded without doubt, is left alone
Many = Callable[
    [Sequence[bytes | Exception | None] | Stored, Wanted, Array, Array, bool], list[bool]
]
_Decode = Callable[[bytes, Array], Array]
#: kind and number
_Table = tuple[str, int]
#: sampling factors of luma (horizontal, vertical) for which all versions of libjpeg-turbo
#: since 1.5 give the same pixels; chroma is 1 x 1
_SAMPLING = {0x11, 0x21, 0x22}


@dataclass(frozen=True, slots=True)
class Ways:
    """How the tiles of a page are decoded: into an array without gaps, and where TurboJPEG is of
    use, to their place, parts of them, and those of many at once."""

    decode: _Decode
    paint: Paint | None = None
    part: Part | None = None
    many: Many | None = None


def make_jpeg(
    *, samples: int, space: int | None, outspace: int | None,
    tables: bytes | None, header: bytes | None, trust_jfif: bool = False,
) -> Ways:  # fmt: skip
    """How the JPEG tiles of a page are decoded.

    `space` and `outspace` are libjpeg's colour spaces of the stream, whatever its markers say, and
    of the pixels. `tables` is the stream of tables that all tiles share; `header` begins every
    tile, of which the file holds only what comes behind. With `trust_jfif` tiles that begin with a
    JFIF marker are YCbCr, whatever `space` says.
    """
    if trust_jfif and space == RGB:
        return _by_marker(
            make_jpeg(samples=samples, space=RGB, outspace=outspace, tables=tables, header=header),
            make_jpeg(
                samples=samples, space=YCBCR, outspace=outspace, tables=tables, header=header
            ),
        )
    jpeg8 = imagecodecs.jpeg8_decode
    single = samples == 1
    paint = None
    library = turbojpeg.library()
    if library is not None and samples == 3 and outspace == RGB and space in (RGB, YCBCR):
        paint = Painter(library, space, tables, header)

    def decode(data: bytes, out: Array) -> Array:
        if header is None and data[-2:] != _END:
            data = _trimmed(data)
        if paint is not None:
            place = out.__array_interface__["data"][0]
            if paint(data, place, out.strides[0], out.shape[0], out.shape[1]):
                return out
        if header is not None:
            data = b"".join((header, data, _END))
        try:
            jpeg8(
                data,
                tables=tables,
                colorspace=space,
                outcolorspace=outspace,
                out=out[..., 0] if single else out,
            )
        except ValueError as exc:
            if "out.shape" not in str(exc):
                raise
        else:
            return out
        _check_size(data, out.shape)
        small = jpeg8(data, tables=tables, colorspace=space, outcolorspace=outspace)
        return small.reshape((*small.shape[:2], -1))

    if paint is None or library is None:
        return Ways(decode)
    return Ways(
        decode,
        paint,
        paint.part if library.has_parts else None,
        paint.many if library.has_many else None,
    )


def _by_marker(plain: Ways, jfif: Ways) -> Ways:
    """For each tile the way that its own first marker asks for."""

    def way(data: bytes) -> Ways:
        return jfif if data[2:4] == b"\xff\xe0" and data[6:10] == b"JFIF" else plain

    def decode(data: bytes, out: Array) -> Array:
        return way(data).decode(data, out)

    def paint(data: bytes, address: int, pitch: int, rows: int, width: int) -> bool:
        chosen = way(data).paint
        return chosen is not None and chosen(data, address, pitch, rows, width)

    def part(
        data: bytes, scratch: Array, band: tuple[int, int], columns: tuple[int, int]
    ) -> Array | None:
        chosen = way(data).part
        return None if chosen is None else chosen(data, scratch, band, columns)

    return Ways(
        decode, None if plain.paint is None else paint, None if plain.part is None else part
    )


class Painter:
    """Decodes whole tiles to where they belong, in rows at any distance; arguments as of
    `make_jpeg`."""

    def __init__(
        self, library: turbojpeg.TurboJpeg, space: int, tables: bytes | None, header: bytes | None
    ) -> None:
        self._library = library
        self._space = space
        self._header = header
        # TurboJPEG goes by the markers: one of Adobe's, behind the start, says what it is
        start = b"\xff\xd8" + _adobe(space) + _shared_tables(tables)
        self._start = start if header is None else start + header[2:]
        self._shared = _table_names(segments(tables or b""))
        #: the last header that was looked at and found good, and its picture
        self._known: tuple[bytes, int, int, int] | None = None

    def __call__(self, data: bytes, address: int, pitch: int, rows: int, width: int) -> bool:
        """Decode a tile as it is in the file; arguments as of `TurboJpeg.decode`. False if it was
        not decoded, and has to be by other means."""
        stream = self._stream(data, rows, width)
        return stream is not None and self._library.decode(stream, address, pitch, rows, width)

    def part(
        self, data: bytes, scratch: Array, band: tuple[int, int], columns: tuple[int, int]
    ) -> Array | None:
        """Decode the rows and columns of a tile that are wanted, into `scratch`, which is as large
        as the tile: where they are in there. None if they were not decoded."""
        (rows, width), (top, bottom) = scratch.shape[:2], band
        stream = self._stream(data, rows, width)
        known = self._known
        if stream is None or known is None:
            return None
        picture = rows, width, known[3]
        left, right = turbojpeg.columns_of(*columns, width, picture[2])
        box = top, left, bottom - top, right - left
        if not self._library.decode_part(stream, picture, box, scratch):
            return None
        return scratch[: bottom - top, columns[0] - left : columns[1] - left]

    def many(
        self, tiles: Sequence[bytes | Exception | None] | Stored, wanted: Wanted, scratch: Array,
        out: Array, in_place: bool,
    ) -> list[bool]:  # fmt: skip
        """Decode what is wanted of tiles as they are in the file, see `TurboJpeg.decode_many`."""
        rows, width = scratch.shape[:2]
        known, header = self._known, self._header
        if known is None or known[1:3] != (rows, width) or not isinstance(tiles, Stored):
            if isinstance(tiles, Stored):
                first = tiles.first()
            else:
                first = next((tile for tile in tiles if isinstance(tile, bytes)), None)
            if first is None or self._stream(first, rows, width) is None:
                return [False] * len(tiles)
            known = self._known
        if known is None or known[1:3] != (rows, width):  # maybe another thread has seen others
            return [False] * len(tiles)
        head = known[0]
        if isinstance(tiles, Stored):
            good: list[bytes | None] | Stored = tiles
        else:
            good = [
                tile
                if isinstance(tile, bytes)
                and (header is not None or (tile.startswith(head) and tile.endswith(_END)))
                else None
                for tile in tiles
            ]
        frame = (self._start, 2, b"") if header is None else (self._start, 0, _END)
        return self._library.decode_many(
            good, head, frame, (rows, width, known[3]), wanted, scratch, out, in_place=in_place
        )

    def _stream(self, data: bytes, rows: int, width: int) -> bytes | None:
        """A whole stream, known to be of `rows` x `width` pixels; None for one that is not."""
        header = self._header
        known = self._known
        if header is not None:
            fits = known is not None and known[1:3] == (rows, width)
        else:
            # padding behind the end is for the caller to judge
            if data[-2:] != _END:
                return None
            fits = known is not None and known[1:3] == (rows, width) and data.startswith(known[0])
        if not fits and not self._learn(data if header is None else header, rows, width):
            return None
        if header is None:
            return b"".join((self._start, memoryview(data)[2:]))
        return b"".join((self._start, data, _END))

    def _learn(self, data: bytes, rows: int, width: int) -> bool:
        """Whether a stream's header is one that both ways read alike."""
        head = Header.parse(data)
        good = (
            head is not None
            and (head.rows, head.width) == (rows, width)
            # not progressive: tables between its scans cannot be checked here
            and head.frame in (0xC0, 0xC1)
            and head.precision == 8
            and len(head.sampling) == head.scanned == 3
            and head.sampling[0] in _SAMPLING
            and head.sampling[1:] == (0x11, 0x11)
            and head.space in (None, self._space)
            # in place of a missing table the library would take that of the tile before
            and head.needs <= self._shared | head.brings
        )
        if good and head is not None:
            self._known = data[: head.length], rows, width, head.sampling[0]
        return good


@dataclass(frozen=True, slots=True)
class Header:
    """A JPEG stream up to its first scan.

    `length` counts the header of that scan too, `frame` is the second byte of the frame's marker
    (0xC0 baseline, 0xC2 progressive...), `sampling` has per component the horizontal factor times
    16 plus the vertical one. `space` is what the stream's own markers name, 0 for one that is not
    covered. `scanned` are components of the scan, `needs` the tables that it and the frame name,
    `brings` those that come with them.
    """

    length: int
    frame: int
    precision: int
    rows: int
    width: int
    sampling: tuple[int, ...]
    space: int | None
    scanned: int
    needs: frozenset[_Table]
    brings: frozenset[_Table]

    @classmethod
    def parse(cls, data: bytes) -> Header | None:
        """Read a header; None where it is not one."""
        parts = segments(data)
        bodies = {marker: body for marker, body, _ in parts}
        scan = bodies.get(0xDA, b"")
        frames = [m for m in bodies if 0xC0 <= m <= 0xCF and m not in (0xC4, 0xC8, 0xCC)]
        if len(frames) != 1 or not scan or len(scan) < 1 + 2 * scan[0]:
            return None
        frame = bodies[frames[0]]
        if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
            return None
        components = frame[6 : 6 + 3 * frame[5]]
        quantisation = {("quantisation", n) for n in components[2::3]}
        dc = {("huffman", n >> 4) for n in scan[2 : 2 + 2 * scan[0] : 2]}
        ac = {("huffman", 0x10 | (n & 15)) for n in scan[2 : 2 + 2 * scan[0] : 2]}
        return cls(
            length=parts[-1][2],
            frame=frames[0],
            precision=frame[0],
            rows=int.from_bytes(frame[1:3]),
            width=int.from_bytes(frame[3:5]),
            sampling=tuple(components[1::3]),
            space=_named_space(parts),
            scanned=scan[0],
            needs=frozenset(quantisation | dc | ac),
            brings=_table_names(parts),
        )


def _named_space(parts: list[_Segment]) -> int | None:
    """What the markers say of the colours; a JFIF marker outweighs Adobe's."""
    named = None
    for marker, body, _ in parts:
        if marker == 0xE0 and body[:4] == b"JFIF":
            return YCBCR
        if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            named = {0: RGB, 1: YCBCR}.get(body[11], 0)
    return named


def _table_names(parts: list[_Segment]) -> frozenset[_Table]:
    """Tables that segments define; of Huffman's, 0x10 and more are those for AC."""
    found: set[_Table] = set()
    for marker, body, _ in parts:
        at = 0
        while marker == 0xDB and at < len(body):
            found.add(("quantisation", body[at] & 15))
            at += 65 + 64 * (body[at] >> 4 != 0)
        while marker == 0xC4 and at < len(body):
            found.add(("huffman", body[at]))
            at += 17 + sum(body[at + 1 : at + 17])
    return frozenset(found)


def segments(data: bytes) -> list[_Segment]:
    """(marker, body, end) of the segments up to the first scan, the last of them."""
    found = []
    position = 2
    while data[:2] == b"\xff\xd8" and position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if marker == 0xD9 or end > len(data):
            break
        found.append((marker, data[position + 4 : end], end))
        if marker == 0xDA:
            break
        position = end
    return found


def _shared_tables(tables: bytes | None) -> bytes:
    """Quantisation and Huffman tables of a stream of tables; nothing else of it lasts."""
    return b"".join(
        b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2) + body
        for marker, body, _ in segments(tables or b"")
        if marker in (0xDB, 0xC4)
    )


def _adobe(space: int) -> bytes:
    """A marker that names the colour space."""
    body = b"Adobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if space == RGB else b"\x01")
    return b"\xff\xee" + (len(body) + 2).to_bytes(2) + body


def _trimmed(data: bytes) -> bytes:
    """Up to the end marker; libjpeg would paint a stream without one, that is cut off, grey."""
    end = data.rfind(_END)
    if end >= 0 and data[end + 2 :].strip(b"\0\xff"):
        end = _end_of(data)  # what lies behind is no padding, and may hold what looks like one
    if end < 0:
        raise DecodeError(
            f"the JPEG stream of {len(data)} bytes has no end marker, so it is cut off"
        )
    return data[: end + 2]


def _end_of(data: bytes) -> int:
    """Where the end marker is, found from the beginning; -1 without one."""
    position = 2
    while 0 <= position < len(data) - 1:
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD7:
            position = data.find(b"\xff", position + 1)  # entropy-coded data
        elif marker == 0xD9:
            return position
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return -1


def _check_size(data: bytes, shape: tuple[int, ...]) -> None:
    """Refuse a JPEG larger than its tile before memory is spent on it. Smaller ones pass: some
    writers store edge tiles at the size of what is left of the image."""
    head = Header.parse(data)
    if head is None:
        raise DecodeError("the JPEG stream has no frame header")
    if not (0 < head.rows <= shape[0] and 0 < head.width <= shape[1]):
        raise DecodeError(
            f"the JPEG stream holds {head.width} x {head.rows} pixels, the tile "
            f"{shape[1]} x {shape[0]}"
        )
