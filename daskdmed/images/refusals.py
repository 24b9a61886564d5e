"""Refusals after which no other backend is asked, and the bound of a single read."""

from __future__ import annotations

from daskdmed.core.errors import UnsupportedImageError

#: read at most this much with one call, so that one damaged number cannot ask for terabytes
MAX_READ = 2**31


class FinalError(UnsupportedImageError):
    """What no other backend is asked, because it would open the file and give other pixels."""


class RangeError(FinalError):
    """A server sends other bytes than the range it was asked for, as a rule the whole file."""
