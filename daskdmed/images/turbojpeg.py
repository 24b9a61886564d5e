"""The TurboJPEG library, where there is one: JPEG decoded into rows at any distance.

imagecodecs decodes into memory without gaps, so a tile has to be copied to its place in a
block afterwards. TurboJPEG, the other interface of libjpeg-turbo, is told how far apart the
rows lie and writes them there at once. The pixels are the same, which is checked when the
library is loaded; without it everything works as well, and blocks are read about a tenth slower.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from daskdmed.core.errors import UsageError

_log = logging.getLogger("daskdmed.images")
#: environment variable that names the library, or "off"
VARIABLE = "DASKDMED_TURBOJPEG"
_NAMES = {
    "darwin": ("libturbojpeg.0.dylib", "libturbojpeg.dylib"),
    "win32": ("turbojpeg.dll", "libturbojpeg.dll"),
}
_FOLDERS = {"darwin": ("lib", "/opt/homebrew/lib", "/usr/local/lib"), "win32": ("Library/bin",)}
#: TJPF_RGB of turbojpeg.h
_RGB = 0


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


class _Handle:
    """A decompressor of one thread, freed with it."""

    __slots__ = ("_destroy", "pointer")

    def __init__(self, pointer: int | None, destroy: Callable[[int], Any]) -> None:
        self.pointer = pointer
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


def agrees(library: TurboJpeg) -> bool:
    """Whether a library decodes small pictures, of every chroma subsampling that it is used
    for, to the pixels that imagecodecs gives, and touches nothing beside them."""
    import imagecodecs

    rng = np.random.default_rng(0)
    rows, width, margin = 48, 40, 3
    coarse = rng.integers(0, 256, (rows // 8, width // 8, 3), np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8)) // 2
    picture += rng.integers(0, 128, picture.shape, np.uint8)
    for subsampling in ("444", "422", "420"):
        stream = bytes(imagecodecs.jpeg8_encode(picture, 90, subsampling=subsampling))
        around = np.full((rows, width + 2 * margin, 3), 7, np.uint8)
        place = around[:, margin:-margin]
        address = place.__array_interface__["data"][0]
        if not library.decode(stream, address, place.strides[0], rows, width):
            return False
        expected = np.full_like(around, 7)
        expected[:, margin:-margin] = imagecodecs.jpeg8_decode(stream)
        if not np.array_equal(around, expected):
            return False
    return True
