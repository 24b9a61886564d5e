"""Refusals after which no other backend is asked, and bounds of extents and of a single read."""

from __future__ import annotations

from collections.abc import Sequence

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError

#: read at most this much with one call, so that one damaged number cannot ask for terabytes
MAX_READ = 2**31
#: the longest axis of an array: places on it are exact as floats
MAX_EXTENT = 2**53


class FinalError(UnsupportedImageError):
    """What no other backend is asked, because it would open the file and give other pixels."""


class RangeError(FinalError):
    """A server sends other bytes than the range it was asked for, as a rule the whole file."""


def check_extents(uri: str, shape: Sequence[int], chunks: Sequence[int] = ()) -> None:
    """Refuse arrays that are empty, or longer than anything can be that was ever written."""
    if 0 in shape:
        raise CorruptImageError.of(uri, f"the array is empty: {tuple(shape)}")
    if 0 in chunks:
        raise CorruptImageError.of(uri, f"the array has empty chunks: {tuple(chunks)}")
    if max(shape, default=1) > MAX_EXTENT:
        raise CorruptImageError.of(
            uri, f"the array claims {tuple(shape)} values, of which no axis has over {MAX_EXTENT}"
        )
