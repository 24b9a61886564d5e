"""Which mutation knows a format, by its first bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tests.fuzz.directories import tiff
from tests.fuzz.draw import Draw
from tests.fuzz.headers import czi, dicom, markers, nifti, npy, png
from tests.fuzz.texts import json_values, xml

Mutation: TypeAlias = Callable[[bytes, Draw], tuple[bytes, str]]


def of(data: bytes) -> Mutation | None:
    """The mutation that knows what these bytes are; None where none does."""
    head = data[:4]
    if head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return tiff
    if data[128:132] == b"DICM":
        return dicom
    if data[344:348] in (b"n+1\0", b"ni1\0") or data[4:8] in (b"n+2\0", b"ni2\0"):
        return nifti
    if head == b"\x93NUM":
        return npy
    if head == b"\x89PNG":
        return png
    if head[:2] == b"\xff\xd8" or head in (b"\xff\x4f\xff\x51", b"\0\0\0\x0c"):
        return markers
    if data[:10] == b"ZISRAWFILE":
        return czi
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start in (b"{", b"["):
        return json_values
    if start == b"<" or data[:3] == b"\xff\xfe<":
        return xml
    return None
