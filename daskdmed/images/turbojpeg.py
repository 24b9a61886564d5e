"""The TurboJPEG library, where there is one: JPEG decoded into rows at any distance.

imagecodecs decodes into memory without gaps, so a tile has to be copied to its place in a
block afterwards. TurboJPEG, the other interface of libjpeg-turbo, is told how far apart the
rows lie and writes them there at once. From version 3 on it also decodes a part of a picture
without the colours of the rest. The pixels are the same, which is checked when the library is
loaded; without it everything works as well, and blocks are read about a tenth slower. Where
`daskdmed.core.native` was built, it is called for many tiles at a time.

The library is searched for, in this order, at the path that ``DASKDMED_TURBOJPEG`` names
(``off`` for none at all), beside the interpreter (conda), where the system keeps it, and in
the wheel ``turbojpeg``, which the extra `turbo` installs.

Not covered: what a tile's stream has to be for this (`daskdmed.images.tiff.jpeg`).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.core import native
from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array

_log = logging.getLogger("daskdmed.images")
#: environment variable that names the library, or "off"
VARIABLE = "DASKDMED_TURBOJPEG"
_NAMES = {
    "darwin": ("libturbojpeg.0.dylib", "libturbojpeg.dylib"),
    "win32": ("turbojpeg.dll", "libturbojpeg.dll"),
}
_FOLDERS = {"darwin": ("lib", "/opt/homebrew/lib", "/usr/local/lib"), "win32": ("Library/bin",)}
#: columns of which colours are interpolated as they are in a wide picture
_FEW = 16
#: share of a tile up to which a part of it is worth being decoded alone
WORTH_PART = 7 / 8
#: TJPF_RGB and TJINIT_DECOMPRESS of turbojpeg.h
_RGB, _DECOMPRESS = 0, 1
#: with which a stream ends
_END = b"\xff\xd9"
#: rows, width, and the luma sampling factors (horizontal times 16 plus vertical)
Picture: TypeAlias = tuple[int, int, int]
#: first row, first column (which begins a block of samples, see `columns_of`), rows, columns
Box: TypeAlias = tuple[int, int, int, int]
#: before a tile's bytes, how many of these are left out, and behind them: together a whole stream
Frame: TypeAlias = tuple[bytes, int, bytes]


@dataclass(frozen=True, eq=False, slots=True)
class Stored:
    """Tiles in an open file: its descriptor, where each begins, (tiles,) of int64, and of how many
    bytes it is; 0 for one that is to be left alone."""

    file: int
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)

    def first(self) -> bytes | None:
        """The bytes of the first that is not to be left alone, as many as there are."""
        there = np.flatnonzero((self.counts > 0) & (self.offsets > 0))
        if not len(there):
            return None
        return os.pread(self.file, int(self.counts[there[0]]), int(self.offsets[there[0]]))


@dataclass(frozen=True, eq=False, slots=True)
class Wanted:
    """What is wanted of some tiles, and where it goes.

    `needed`, (tiles, 4) of int32: first and one past the last row of each tile, and column. `ends`,
    (tiles,) of int32: one past the last of its pieces. `pieces`, (pieces, 5) of int64: how many
    bytes behind the first of the output it begins, and first row, first column, one past the last
    row and column in its tile, all of them inside what is `needed`.
    """

    needed: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    pieces: npt.NDArray[np.int64]


class TurboJpeg:
    """A loaded library, by its path or a name that the loader finds. Safe to use from any
    thread."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        try:
            self._init, self._destroy = library.tjInitDecompress, library.tjDestroy
            self._decompress = library.tjDecompress2
        except AttributeError as exc:
            raise OSError(f"{path} is not the TurboJPEG library: {exc}") from exc
        pointer: Any = ctypes.c_void_p
        number: Any = ctypes.c_int
        stream: list[Any] = [ctypes.c_char_p, ctypes.c_ulong]
        self._init.restype, self._init.argtypes = pointer, []
        self._destroy.restype, self._destroy.argtypes = number, [pointer]
        self._decompress.restype = number
        self._decompress.argtypes = [pointer, *stream, pointer, *[number] * 5]
        self.path = path
        self._local = threading.local()
        self._part = _PartDecoder.of(library, ctypes.PyDLL(path))
        self._many: _ManyDecoder | None = None
        if self._part is not None and (function := native.tiles()) is not None:
            self._many = _ManyDecoder(library, self._part, function)

    @property
    def has_parts(self) -> bool:
        """Whether it decodes parts of pictures."""
        return self._part is not None

    @property
    def has_many(self) -> bool:
        """Whether it decodes many tiles in one call."""
        return self._many is not None

    def decode_part(self, stream: bytes, picture: Picture, box: Box, out: Array) -> bool:
        """Decode a part of a whole JPEG stream, which is known to be of this `picture`, as RGB.

        `out`, (rows, columns, 3) of any distance between rows, is what `box` has. False as for
        `decode`; faults of the stream below the part are not found.
        """
        return self._part is not None and self._part(stream, picture, box, out)

    def decode_many(
        self, tiles: Sequence[bytes | None] | Stored, head: bytes, frame: Frame, picture: Picture,
        wanted: Wanted, scratch: Array, out: Array, *, in_place: bool,
    ) -> list[bool]:  # fmt: skip
        """Decode what is `wanted` of tiles, all of which are known to be of this `picture`, as RGB
        to its places in `out`, whose rows may lie at any distance.

        `head` begins all their streams. Tiles in a file have to begin with it, and to end as a
        stream does, where `frame` leaves out bytes of theirs. `scratch` holds a tile; what is
        decoded in one piece goes to its place without it where `in_place` says so. Which tiles were
        decoded: none that is None, and none as for `decode`.
        """
        if self._many is None:
            return [False] * len(tiles)
        return self._many(tiles, head, frame, picture, wanted, scratch, out, in_place)

    def without_parts(self) -> None:
        """Never use `decode_part`, nor `decode_many`."""
        self._part = self._many = None

    def without_many(self) -> None:
        """Never use `decode_many`."""
        self._many = None

    def decode(self, stream: bytes, address: int, pitch: int, rows: int, width: int) -> bool:
        """Decode a whole JPEG stream, known to be of `rows` x `width` pixels, as RGB.

        The first sample goes to `address`, `pitch` bytes lie from one row to the next. False if the
        library refuses the stream or finds any fault in it, however small; some rows may have been
        written then.
        """
        handle = getattr(self._local, "handle", None)
        if handle is None:
            handle = self._local.handle = _Handle(self._init(), self._destroy)
        if not handle.pointer:
            return False
        status = self._decompress(
            handle.pointer, stream, len(stream), address, width, pitch, rows, _RGB, 0
        )
        return bool(status == 0)


class _PartDecoder:
    """The functions of version 3 that decode a part of a picture. For any thread.

    `quick`: the same library, for what is over before the GIL could be of use to another thread.
    """

    def __init__(self, library: Any, quick: Any) -> None:
        self._init, self._destroy = library.tj3Init, library.tj3Destroy
        self._header, self._crop = library.tj3DecompressHeader, quick.tj3SetCroppingRegion
        self._decompress = library.tj3Decompress8
        pointer: Any = ctypes.c_void_p
        number: Any = ctypes.c_int
        stream: list[Any] = [ctypes.c_char_p, ctypes.c_size_t]
        self._init.restype, self._init.argtypes = pointer, [number]
        self._destroy.restype, self._destroy.argtypes = None, [pointer]
        self._header.argtypes = [pointer, *stream]
        self._crop.argtypes = [pointer, _Crop]
        self._decompress.argtypes = [pointer, *stream, pointer, number, number]
        # of its own: what is cut once stays cut
        self._local = threading.local()

    @classmethod
    def of(cls, library: Any, quick: Any) -> _PartDecoder | None:
        """None for a library of an earlier version."""
        try:
            return cls(library, quick)
        except AttributeError:
            return None

    def handle(self, stream: bytes, picture: Picture) -> _Handle | None:
        """The decompressor of this thread, which has seen the header of a stream of this picture;
        None where that is not to be had."""
        handle: _Handle | None = getattr(self._local, "handle", None)
        if handle is None:
            handle = self._local.handle = _Handle(self._init(_DECOMPRESS), self._destroy)
        if not handle.pointer:
            return None
        if handle.picture != picture:
            if self._header(handle.pointer, stream, len(stream)):
                return None
            handle.picture = picture
        return handle

    def __call__(self, stream: bytes, picture: Picture, box: Box, out: Array) -> bool:
        handle = self.handle(stream, picture)
        if handle is None:
            return False
        pointer = handle.pointer
        top, left, rows, columns = box
        if handle.out is not out:  # mostly scratch memory of the thread
            handle.out = out
            handle.place = out.__array_interface__["data"][0], out.strides[0]
        place, pitch = handle.place
        failed = self._crop(pointer, _Crop(left, top, columns, rows))
        failed = failed or self._decompress(pointer, stream, len(stream), place, pitch, _RGB)
        if failed:
            handle.picture = None
        return not failed


class _Crop(ctypes.Structure):
    """tjregion of turbojpeg.h."""

    _fields_: ClassVar[Any] = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _ManyDecoder:
    """The compiled loop, with the functions and the decompressors of a `_PartDecoder`."""

    def __init__(self, library: Any, parts: _PartDecoder, function: Any) -> None:
        pointer: Any = ctypes.c_void_p
        number: Any = ctypes.c_int
        function.argtypes = [
            pointer, pointer, pointer, ctypes.POINTER(_Frame), ctypes.POINTER(_Form), number,
            ctypes.POINTER(_Source), *[pointer] * 6, ctypes.c_ssize_t, number, pointer,
        ]  # fmt: skip
        self._function, self._parts = function, parts
        self._crop = ctypes.cast(library.tj3SetCroppingRegion, pointer)
        self._decompress = ctypes.cast(library.tj3Decompress8, pointer)

    def __call__(
        self, tiles: Sequence[bytes | None] | Stored, head: bytes, frame: Frame, picture: Picture,
        wanted: Wanted, scratch: Array, out: Array, in_place: bool,
    ) -> list[bool]:  # fmt: skip
        count, (before, skip, behind) = len(tiles), frame
        handle = self._parts.handle(b"".join((before, head[skip:])) if skip else before, picture)
        if handle is None:
            return [False] * count
        if isinstance(tiles, Stored):
            ends = (head, len(head), _END, len(_END)) if skip else (b"", 0, b"", 0)
            source = _Source(None, tiles.file, _address(tiles.offsets), *ends)
            lengths = tiles.counts
        else:
            source = _Source((ctypes.c_char_p * count)(*tiles))
            lengths = np.array([0 if tile is None else len(tile) for tile in tiles], np.int64)
        rows, width, sampling = picture
        form = _Form(rows, width, 8 * (sampling >> 4), _FEW, round(8 * WORTH_PART))
        done = (ctypes.c_bool * count)()
        arrays = (lengths, wanted.needed, wanted.ends, wanted.pieces, scratch, out)
        decoded = self._function(
            self._crop, self._decompress, handle.pointer,
            _Frame(before, len(before), skip, behind, len(behind)), form, count,
            source, *(_address(array) for array in arrays), out.strides[-3], in_place, done,
        )  # fmt: skip
        if decoded < count:
            handle.picture = None
        return list(done)


class _Frame(ctypes.Structure):
    """Frame of tiles.c."""

    _fields_: ClassVar[Any] = [
        ("before", ctypes.c_char_p), ("before_length", ctypes.c_size_t),
        ("skip", ctypes.c_size_t), ("behind", ctypes.c_char_p), ("behind_length", ctypes.c_size_t),
    ]  # fmt: skip


class _Source(ctypes.Structure):
    """Source of tiles.c."""

    _fields_: ClassVar[Any] = [
        ("tiles", ctypes.POINTER(ctypes.c_char_p)), ("file", ctypes.c_int),
        ("offsets", ctypes.c_void_p), ("head", ctypes.c_char_p), ("head_length", ctypes.c_size_t),
        ("end", ctypes.c_char_p), ("end_length", ctypes.c_size_t),
    ]  # fmt: skip


class _Form(ctypes.Structure):
    """Picture of tiles.c."""

    _fields_: ClassVar[Any] = [
        (name, ctypes.c_int) for name in ("rows", "width", "block", "few", "worth")
    ]


def _address(array: Array) -> int:
    place: int = array.__array_interface__["data"][0]
    return place


class _Handle:
    """A decompressor of one thread, freed with it; `picture` is what it knows the header of, `out`
    the array that it has last decoded into, and `place` where that is."""

    __slots__ = ("_destroy", "out", "picture", "place", "pointer")

    def __init__(self, pointer: int | None, destroy: Callable[[int], Any]) -> None:
        self.pointer = pointer
        self.picture: Picture | None = None
        self.out: Array | None = None
        self.place = (0, 0)
        self._destroy = destroy

    def __del__(self) -> None:
        if self.pointer:
            self._destroy(self.pointer)


@functools.cache
def library() -> TurboJpeg | None:
    """The library of this process, found and checked once; None where there is none."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() in ("off", "0"):
        return None
    for path in [os.path.expanduser(named)] if named else _candidates():
        try:
            found = TurboJpeg(path)
        except OSError as exc:
            if named:
                raise UsageError(
                    f"{VARIABLE}={path} is no TurboJPEG library ({exc}); name its file, set off "
                    "to do without, or unset the variable to have it searched for"
                ) from exc
            continue
        if agrees(found):
            if not parts_agree(found):
                found.without_parts()
            elif not many_agree(found):
                found.without_many()
            _log.debug("JPEG tiles are decoded by %s", path)
            return found
        if named:
            raise UsageError(
                f"{VARIABLE}={path} decodes to other pixels than imagecodecs; name another "
                "library, or set off to do without"
            )
        _log.warning("%s decodes to other pixels than imagecodecs, and is not used", path)
    return None


def _candidates() -> Iterator[str]:
    """Paths and names, the most deliberate choice first."""
    names = _NAMES.get(sys.platform, ("libturbojpeg.so.0",))
    for prefix in dict.fromkeys((sys.prefix, sys.base_prefix)):
        for folder in _FOLDERS.get(sys.platform, ("lib",)):
            paths = [Path(prefix, folder, name) for name in names]
            yield from (str(p) for p in paths if p.exists())
    yield from names
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libturbojpeg"):
            yield str(file.locate())


def columns_of(begin: int, stop: int, width: int, sampling: int) -> tuple[int, int]:
    """The columns [first, last) to be decoded for those from `begin` to `stop` of a picture.

    They begin with a block of samples, and where colours are interpolated between columns, with
    one more on each side than is wanted: that at a border has no neighbour to take from. Of very
    few columns libjpeg-turbo interpolates none.
    """
    block = 8 * (sampling >> 4)
    first = max(min(begin - 1, width - _FEW), 0) // block * block
    return first, min(max(stop + 1, first + _FEW), width)


def agrees(library: TurboJpeg) -> bool:
    """Whether a library decodes small pictures, of every chroma subsampling that it is used
    for, to the pixels that imagecodecs gives, and touches nothing beside them."""
    margin = 3
    for stream, expected, _ in _samples():
        rows, width, _ = expected.shape
        around = np.full((rows, width + 2 * margin, 3), 7, np.uint8)
        place = around[:, margin:-margin]
        address = place.__array_interface__["data"][0]
        if not library.decode(stream, address, place.strides[0], rows, width):
            return False
        if not np.array_equal(place, expected) or (around[:, :margin] != 7).any():
            return False
        if (around[:, -margin:] != 7).any():
            return False
    return True


def parts_agree(library: TurboJpeg) -> bool:
    """The same of parts of them; False for a library that has none."""
    if not library.has_parts:
        return False
    for stream, expected, sampling in _samples():
        rows, width, _ = expected.shape
        for top, bottom in ((0, 16), (7, 23), (16, 48), (31, 32)):
            for begin, stop in ((0, 16), (15, 17), (16, 40), (33, 40)):
                first, last = columns_of(begin, stop, width, sampling)
                around = np.full((bottom - top + 1, last - first + 1, 3), 7, np.uint8)
                box = (top, first, bottom - top, last - first)
                place = around[:-1, :-1]
                if not library.decode_part(stream, (rows, width, sampling), box, place):
                    return False
                wanted = expected[top:bottom, begin:stop]
                if not np.array_equal(place[:, begin - first : stop - first], wanted):
                    return False
                if (around[-1] != 7).any() or (around[:, -1] != 7).any():
                    return False
    return True


def many_agree(library: TurboJpeg) -> bool:
    """The same of parts of many pictures at once; False for a library that does not do this."""
    if not library.has_many:
        return False
    for stream, expected, sampling in _samples():
        rows, width, _ = expected.shape
        # the whole of one, parts of others: at an edge, in the middle, in two pieces
        needed = [(0, rows, 0, width), (40, 48, 33, 40), (7, 23, 15, 17), (0, 20, 0, 24)]
        pieces = [(0, *needed[0]), (1, *needed[1]), (2, *needed[2])]
        pieces += [(3, 0, 8, 0, 24), (3, 10, 20, 3, 9)]
        out = np.full((4, rows + 1, width + 1, 3), 7, np.uint8)
        wanted = out.copy()
        for at, top, bottom, left, right in pieces:
            wanted[at, top:bottom, left:right] = expected[top:bottom, left:right]
        places = [
            (at * out.strides[0] + top * out.strides[1] + 3 * left, top, left, bottom, right)
            for at, top, bottom, left, right in pieces
        ]
        what = Wanted(np.array(needed, np.int32), np.array([1, 2, 3, 5], np.int32),
                      np.array(places, np.int64))  # fmt: skip
        scratch, frame = np.empty((rows, width, 3), np.uint8), (stream[:2], 2, b"")
        for in_place in (False, True):
            got = out.copy()
            done = library.decode_many(
                [stream] * 4, stream, frame, (rows, width, sampling), what, scratch, got,
                in_place=in_place,
            )  # fmt: skip
            if not all(done) or not np.array_equal(got, wanted):
                return False
    return True


def _samples() -> Iterator[tuple[bytes, Array, int]]:
    """Small streams, what imagecodecs makes of them, and their luma sampling factors."""
    import imagecodecs

    rng = np.random.default_rng(0)
    rows, width = 48, 40
    coarse = rng.integers(0, 256, (rows // 8, width // 8, 3), np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8)) // 2
    picture += rng.integers(0, 128, picture.shape, np.uint8)
    for subsampling, sampling in (("444", 0x11), ("422", 0x21), ("420", 0x22)):
        stream = bytes(imagecodecs.jpeg8_encode(picture, 90, subsampling=subsampling))
        yield stream, imagecodecs.jpeg8_decode(stream), sampling
