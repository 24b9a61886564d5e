"""Rows of tiles, many of which are decoded by one call where that can be.

Of a local file the call reads too, so that neither reading nor decoding a tile waits for the GIL.
What it leaves alone, for whatever reason, is fetched and handed back.

Not covered: what is wanted of them, and what becomes of those that are left
(`daskdmed.images.tiff.decode`, `daskdmed.images.tiff.boxes`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from daskdmed.images.source import Source
from daskdmed.images.tiff.fetch import fetch_rows
from daskdmed.images.turbojpeg import Stored

#: tiles decoded by one call, about
AT_ONCE = 64
#: no file is as large
_MOST = 2**62

#: encoded bytes of each tile, None for a missing one
Parts: TypeAlias = list[bytes | Exception | None]
#: where the tiles of a row lie in the file, and of how many bytes each is
Places: TypeAlias = tuple[list[int], list[int]]
#: (number of a group, its tiles) -> which were decoded
DecodeGroup: TypeAlias = Callable[[int, Parts | Stored], list[bool]]


def decode_groups(
    source: Source, groups: Sequence[Sequence[Places]], limit: int, decode: DecodeGroup
) -> Iterator[list[tuple[Parts, list[bool]]]]:
    """Have groups of rows decoded, as far as `decode` can; of each row what its tiles are, and
    which are done. Tiles have at most `limit` bytes; what those are that are done, nobody asks."""
    local = source.descriptor is not None
    every = [row for group in groups for row in group]
    fetched = None if local else fetch_rows(source, every, limit)
    for number, group in enumerate(groups):
        if fetched is None:
            done = _by_row(decode(number, _stored(source, group, limit)), group)
            rows = _left(source, group, done, limit)
        else:
            rows = list(itertools.islice(fetched, len(group)))
            done = _by_row(decode(number, list(itertools.chain.from_iterable(rows))), group)
        yield list(zip(rows, done, strict=True))


def _stored(source: Source, group: Sequence[Places], limit: int) -> Stored:
    """What no file can have, which a damaged one may say, is left alone."""
    assert source.descriptor is not None
    both = [pair for row in group for pair in zip(*row, strict=True)]
    good = [pair if pair[0] < _MOST and pair[1] <= limit else (0, 0) for pair in both]
    offsets, counts = np.array(good, np.int64).T
    return Stored(source.descriptor, np.ascontiguousarray(offsets), np.ascontiguousarray(counts))


def _by_row(done: list[bool], group: Sequence[Places]) -> list[list[bool]]:
    each = iter(done)
    return [list(itertools.islice(each, len(offsets))) for offsets, _ in group]


def _left(
    source: Source, group: Sequence[Places], done: list[list[bool]], limit: int
) -> list[Parts]:
    """The bytes of tiles that are not done."""
    if all(map(all, done)):
        return [[None] * len(row) for row in done]
    rest = [
        ([0 if d else offset for offset, d in zip(offsets, row, strict=True)], counts)
        for (offsets, counts), row in zip(group, done, strict=True)
    ]
    return list(fetch_rows(source, rest, limit))
