"""Files compressed by gzip, decoded whole: once, never from the middle.

A stream has no entry points, so that a block in it costs all that lies before. How much is
decoded is bounded by what the caller says the file holds, so that a bomb is harmless, and the
end is always checked: a truncated file is an error also for who wants its beginning only.

Not covered: what is decoded (`daskdmed.images.volumes.nifti`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from daskdmed.core.errors import CorruptImageError
from daskdmed.core.types import Array
from daskdmed.images.source import Source

MAGIC = b"\x1f\x8b"
#: a deflated byte becomes at most so many
MAX_RATIO = 1032
#: bytes after those that are wanted which a file may have
SLACK = 1 << 20
#: compressed bytes read, and decoded bytes given, at once
_READ = 1 << 20
_PIECE = 4 << 20
_GZIP = 31  # zlib: a header of gzip, and its checksum at the end


def is_gzip(source: Source) -> bool:
    """Whether a file begins as gzip does."""
    return source.read(0, 2) == MAGIC


def head(source: Source, count: int) -> bytes:
    """The first bytes of what is compressed, or fewer where there are no more."""
    decoder = zlib.decompressobj(_GZIP)
    try:
        return decoder.decompress(source.read(0, _READ), count)
    except zlib.error as error:
        raise _damaged(source, f"{error}") from error


def check_size(source: Source, nbytes: int) -> None:
    """Refuse a file that cannot hold so many bytes, however well it is compressed."""
    if nbytes > source.size * MAX_RATIO:
        raise CorruptImageError.of(
            source.uri,
            f"its header declares {nbytes} bytes of voxels; {source.size} compressed bytes hold "
            f"at most {source.size * MAX_RATIO}; the file is damaged or incomplete",
        )


def decode(source: Source, nbytes: int) -> Array:
    """The first so many decoded bytes, in memory; the whole file is decoded and checked."""
    import imagecodecs

    check_size(source, nbytes)
    # twice as fast as zlib; it does not say what is wrong, and knows one member only
    if source.size <= nbytes + SLACK:
        buffer = np.empty(nbytes + SLACK, np.uint8)
        data = source.read(0, source.size)
        try:
            found = imagecodecs.gzip_decode(data, out=buffer.data)
        except imagecodecs.DeflateError:
            found = b""
        if len(found) >= nbytes:
            return buffer[:nbytes]
        del buffer, data
    whole, at = np.empty(nbytes, np.uint8), 0
    for piece in pieces(source, nbytes):
        whole[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    return whole


def pieces(source: Source, nbytes: int) -> Iterator[bytes]:
    """The first so many decoded bytes in order, in bounded memory; all of the file is decoded and
    checked before the iteration ends."""
    check_size(source, nbytes)
    total = 0
    for piece in _decoded(source):
        wanted = piece[: max(0, nbytes - total)]
        total += len(piece)
        if total > nbytes + SLACK:
            raise _damaged(source, f"more than the {nbytes} bytes that its header declares come")
        if wanted:
            yield wanted
    if total < nbytes:
        raise _damaged(source, f"{total} of {nbytes} bytes are there")


def _decoded(source: Source) -> Iterator[bytes]:
    """Every decoded byte of all members."""
    decoder, at, data = zlib.decompressobj(_GZIP), 0, b""
    while True:
        if not data:
            data = source.read(at, _READ) if at < source.size else b""
            at += len(data)
            if not data:
                raise _damaged(source, "the compressed data end too early")
        try:
            piece = decoder.decompress(data, _PIECE)
        except zlib.error as error:
            raise _damaged(source, f"{error}") from error
        if piece:
            yield piece
        data = decoder.unconsumed_tail
        if decoder.eof:
            data = decoder.unused_data
            if len(data) < 2:
                more = source.read(at, _READ) if at < source.size else b""
                data, at = data + more, at + len(more)
            if data[:2] != MAGIC:  # padding
                return
            decoder = zlib.decompressobj(_GZIP)


def _damaged(source: Source, what: str) -> CorruptImageError:
    return CorruptImageError.of(
        source.uri,
        f"the gzip file is damaged: {what} ({source.size} compressed bytes); the copy is "
        "incomplete or broken, fetch it again from where it came",
    )
