"""The encoded bytes of tiles, with few calls to the file.

Not covered: which tiles (`daskdmed.images.tiff.decode`), and how the file is reached
(`daskdmed.images.source`).
"""

from __future__ import annotations

from daskdmed.images.source import Source


class DecodeError(ValueError):
    """A tile's bytes do not decode to a tile; turned into TileError by the caller."""


#: neighbours in the file closer than this are read with one call...
GAP = 64 * 1024
#: ... as long as that reads no more than this
RUN = 8 * 2**20


def fetch(
    source: Source, offsets: list[int], counts: list[int], limit: int
) -> list[bytes | Exception | None]:
    """Bytes of several tiles, with one call for neighbours in the file: None for a missing tile, an
    exception for an unreadable one."""
    found: list[bytes | Exception | None] = [None] * len(offsets)
    runs: list[tuple[int, int, list[int]]] = []
    size = source.size
    begin = end = -1
    members: list[int] = []
    for i, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        if not offset or not count:
            continue
        stop = offset + count
        if offset < 0 or stop > size or not 0 < count <= limit:
            found[i] = _bad_range(offset, count, size, limit)
            continue
        if members and end <= offset <= end + GAP and stop - begin <= RUN:
            members.append(i)
            end = stop
        else:
            if members:
                runs.append((begin, end, members))
            begin, end, members = offset, stop, [i]
    if members:
        runs.append((begin, end, members))
    try:
        blobs = source.read_many([r[0] for r in runs], [r[1] - r[0] for r in runs])
    except Exception as exc:
        for _, _, members in runs:
            for i in members:
                found[i] = exc
        return found
    for (begin, end, members), blob in zip(runs, blobs, strict=True):
        if len(blob) < end - begin:
            short = DecodeError(f"only {len(blob)} of {end - begin} bytes at offset {begin}")
            for i in members:
                found[i] = short
        elif len(members) == 1:
            found[members[0]] = blob
        else:
            for i in members:
                at = offsets[i] - begin
                found[i] = blob[at : at + counts[i]]
    return found


def _bad_range(offset: int, count: int, size: int, limit: int) -> DecodeError:
    if 0 < count <= limit:
        return DecodeError(
            f"its {count} bytes at offset {offset} lie outside the file of {size} bytes"
        )
    return DecodeError(f"it claims {count} bytes, more than the {limit} that a tile can have")
