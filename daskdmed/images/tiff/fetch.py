"""The encoded bytes of tiles, with few calls to the file.

Not covered: which tiles (`daskdmed.images.tiff.decode`), and how the file is reached
(`daskdmed.images.source`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from daskdmed.core.errors import ChangedImageError, RemoteError
from daskdmed.images.source import Source


class DecodeError(ValueError):
    """A tile's bytes do not decode to a tile; turned into TileError by the caller."""


def fetch_rows(
    source: Source, rows: Sequence[tuple[list[int], list[int]]], limit: int
) -> Iterator[list[bytes | Exception | None]]:
    """`fetch` of rows of tiles, one after the other; of remote files those of several rows are
    asked for together."""
    at = 0
    while at < len(rows):
        stop, nbytes = at + 1, sum(rows[at][1])
        while stop < len(rows) and (nbytes := nbytes + sum(rows[stop][1])) <= source.together:
            stop += 1
        some = rows[at:stop]
        offsets = [offset for row, _ in some for offset in row]
        found = iter(fetch(source, offsets, [count for _, row in some for count in row], limit))
        for row, _ in some:
            yield [next(found) for _ in row]
        at = stop


def fetch(
    source: Source, offsets: list[int], counts: list[int], limit: int
) -> list[bytes | Exception | None]:
    """Bytes of several tiles, with one call for neighbours in the file: None for a missing tile, an
    exception for an unreadable one."""
    found: list[bytes | Exception | None] = [None] * len(offsets)
    runs: list[list[int]] = []
    begin = end = -1
    for i, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        if not offset or not count:
            continue
        stop = offset + count
        if offset < 0 or stop > source.size or not 0 < count <= limit:
            found[i] = _bad_range(offset, count, source.size, limit)
            continue
        if runs and end <= offset <= end + source.gap and stop - begin <= source.run:
            runs[-1].append(i)
        else:
            runs.append([i])
            begin = offset
        end = stop
    spans = [(offsets[run[0]], offsets[run[-1]] + counts[run[-1]]) for run in runs]
    blobs: list[Any]
    try:
        blobs = source.read_many([a for a, _ in spans], [b - a for a, b in spans])
    except (RemoteError, ChangedImageError):
        raise  # no tile is to blame, and none is painted over
    except Exception as exc:
        blobs = [exc] * len(runs)
    for run, (begin, end), blob in zip(runs, spans, blobs, strict=True):
        if not isinstance(blob, Exception) and len(blob) < end - begin:
            blob = DecodeError(f"only {len(blob)} of {end - begin} bytes at offset {begin}")
        for i in run:
            at, whole = offsets[i] - begin, len(run) == 1 or isinstance(blob, Exception)
            found[i] = blob if whole else blob[at : at + counts[i]]
    return found


def _bad_range(offset: int, count: int, size: int, limit: int) -> DecodeError:
    if 0 < count <= limit:
        return DecodeError(
            f"its {count} bytes at offset {offset} lie outside the file of {size} bytes"
        )
    return DecodeError(f"it claims {count} bytes, more than the {limit} that a tile can have")
