"""Which backends there are, and which one opens a file.

Backends are found through the entry-point group ``daskdmed.readers``; the built-in ones are
there even when the package's metadata is stale. A backend that cannot be imported is
reported when it is needed, not before.

Not covered: what a backend does (`daskdmed.images.protocols`).
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.metadata import entry_points
from typing import Any, TypeAlias

from daskdmed.core.errors import (
    CorruptImageError,
    MissingExtraError,
    TileError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.core.places import is_remote
from daskdmed.core.region import Region
from daskdmed.images.protocols import Backend, Reader, SlideOptions, VolumeOptions
from daskdmed.images.refusals import FinalError
from daskdmed.images.source import fingerprint

_log = logging.getLogger("daskdmed.images")
#: what is opened of a file
What: TypeAlias = SlideOptions | VolumeOptions
#: what nobody says anything of
USUAL = SlideOptions()
GROUP = "daskdmed.readers"
_BUILT_IN = {
    "tiff": "daskdmed.images.tiff:TiffBackend",
    "zarr": "daskdmed.images.ngff:ZarrBackend",
    "zarr-volume": "daskdmed.images.ngff.volume:ZarrVolumeBackend",
    "openslide": "daskdmed.images.openslide:OpenSlideBackend",
    "raster": "daskdmed.images.raster:RasterBackend",
    "czi": "daskdmed.images.czi:CziBackend",
    "fastslide": "daskdmed.images.fastslide:FastSlideBackend",
    "dicom-slide": "daskdmed.images.dicomwsi:DicomSlideBackend",
    "npy": "daskdmed.images.volumes.npy:NpyBackend",
    "dicom": "daskdmed.images.volumes.dicom:DicomBackend",
    "tiff-volume": "daskdmed.images.volumes.tiff:TiffVolumeBackend",
    "hdf5": "daskdmed.images.volumes.hdf5:Hdf5Backend",
    "nifti": "daskdmed.images.volumes.nifti:NiftiBackend",
}


@lru_cache(maxsize=1)
def _targets() -> dict[str, str]:
    """Backend name -> "module:class"."""
    found = dict(_BUILT_IN)
    for point in entry_points(group=GROUP):
        found[point.name] = point.value
    return found


@cache
def _load(name: str, target: str) -> Backend:
    module, _, attribute = target.partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def backend_names() -> tuple[str, ...]:
    """Names of all registered backends, importable or not."""
    return tuple(sorted(_targets()))


def refresh() -> None:
    """Look for backends again, after a package was installed in a running session."""
    _targets.cache_clear()
    _load.cache_clear()


def get_backend(name: str) -> Backend:
    """A backend by its name; an error where there is none, or its module cannot be imported."""
    target = _targets().get(name)
    if target is None:
        raise UsageError(
            f"no backend {name!r}; there are {', '.join(backend_names())}. A package adds one "
            f"with an entry point in the group {GROUP!r}"
        )
    try:
        return _load(name, target)
    except (ImportError, AttributeError) as exc:
        raise MissingExtraError(
            f"the backend {name!r} ({target}) cannot be imported: {exc}; install what it needs, "
            f"for example pip install 'daskdmed[{name}]'"
        ) from exc


def kind_of(backend: Backend) -> str:
    """Whether a backend gives slides or volumes."""
    return getattr(backend, "kind", "slide")


def candidates(uri: str, kind: str = "slide") -> list[tuple[str, Backend]]:
    """Backends of slides or of volumes that accept a file, best first, with registered names."""
    found = []
    for name in backend_names():
        try:
            backend = get_backend(name)
        except MissingExtraError as exc:
            _log.debug("backend %s is not there: %s", name, exc)
            continue
        if kind_of(backend) == kind and backend.accepts(uri):
            found.append((backend.priority, name, backend))
    return [(name, backend) for _, name, backend in sorted(found, key=lambda f: f[:2])]


def choose_backend(uri: str, what: What = USUAL) -> tuple[str, Reader]:
    """The registered name and the open reader of the first backend that can open a file.

    The error of the first that knows the format counts; where none does, the message gives each
    one's reason.
    """
    kind = "volume" if isinstance(what, VolumeOptions) else "slide"
    if not is_remote(uri):
        fingerprint(uri)  # says plainly that the file is not there
        if os.path.isfile(uri) and os.path.getsize(uri) == 0:
            raise CorruptImageError.of(
                uri, "the file is empty (0 bytes); fetch it again from where it came"
            )
    reasons = []
    is_known = False
    tried = candidates(uri, kind)
    for name, backend in tried:
        try:
            reader = open_image(backend, uri, what)
            if is_known:
                _try_out(reader, uri)
            return name, reader
        except (UnsupportedImageError, MissingExtraError) as exc:
            if isinstance(exc, FinalError):
                raise
            is_known = is_known or isinstance(exc, UnsupportedImageError)
            reasons.append(f"{name}: {exc}")
        except CorruptImageError as exc:
            if not is_known:  # else it is sound, for a backend that knows the format better
                raise
            reasons.append(f"{name}: {exc}")
    if not tried and is_remote(uri):
        fingerprint(uri)
    rest = [n for n in _of_kind(kind) if n not in dict(tried)]
    if rest:
        reasons.append(f"{', '.join(rest)}: not a file of theirs, or not installed")
    raise UnsupportedImageError(
        f"{uri}: no backend reads this file. "
        + "; ".join(reasons)
        + f". Check that it is a {kind}; "
        + _REMEDIES[kind],
        uri=uri,
    )


_REMEDIES = {
    "slide": "vendor formats beyond TIFF need pip install 'daskdmed[openslide]'",
    "volume": "NIfTI, DICOM and HDF5 need pip install 'daskdmed[volumes]'",
}


def _of_kind(kind: str) -> list[str]:
    """Backends of slides or volumes; those that cannot be imported may be of either."""
    found = []
    for name in backend_names():
        try:
            if kind_of(get_backend(name)) == kind:
                found.append(name)
        except MissingExtraError:
            found.append(name)
    return found


def holds_volume(uri: str) -> bool:
    """Whether a file is for backends of volumes only, by its name and first bytes."""
    return not candidates(uri) and bool(candidates(uri, "volume"))


def _try_out(reader: Reader, uri: str) -> None:
    """Refuse a file that opens, and of which then no pixel can be read.

    OpenSlide opens any tiled TIFF, also one whose kind of samples neither backend reads.
    """
    try:
        for number, level in enumerate(reader.info.levels):
            middle = tuple(n // 2 for n in level.shape[:-1])
            reader.read(number, Region(middle, (1,) * len(middle)))
    except BaseException as exc:
        reader.close()
        if not isinstance(exc, TileError):
            raise
        cause = f"it opens, and cannot be read: {exc.__cause__}"
        raise UnsupportedImageError.of(uri, cause) from exc


def options_of(backend: Backend, text: str) -> What:
    """What was said of a slide or volume of this backend, from its text."""
    return (VolumeOptions if kind_of(backend) == "volume" else SlideOptions).parse(text)


def open_image(backend: Backend, uri: str, what: What) -> Reader:
    """Open a file, or one of the images in it, with a backend."""
    if isinstance(what, VolumeOptions) != (kind_of(backend) == "volume"):
        other = "open_slide" if isinstance(what, VolumeOptions) else "open_volume"
        raise UnsupportedImageError.of(
            uri, f"the backend {backend.name!r} reads {kind_of(backend)}s; use {other}"
        )
    if not what:
        return backend.open(uri)
    name = "open_volume" if isinstance(what, VolumeOptions) else "open_slide"
    opener: Callable[[str, What], Reader] | None = getattr(backend, name, None)
    if opener is not None:
        return opener(uri, what)
    return _open_named(backend, uri, what)


def _open_named(backend: Backend, uri: str, what: What) -> Reader:
    """With a backend that knows no planes, and perhaps no images."""
    opener: Callable[[str, str], Reader] | None = getattr(backend, "open_image", None)
    for option in ("plane", "image"):
        value = getattr(what, option, "")
        if value and (option == "plane" or opener is None):
            raise UnsupportedImageError.of(
                uri,
                f"the backend {backend.name!r} knows one {option} per file, {option}={value!r} is "
                f"none of it; leave {option}= away",
            )
    if opener is None:
        raise UnsupportedImageError.of(uri, f"the backend {backend.name!r} does not take {what}")
    return opener(uri, getattr(what, "image", ""))


def open_with(uri: str, backend: str | None, what: What = USUAL) -> tuple[str, Reader]:
    """Open a file with a named backend, or with the first that can."""
    if backend is None:
        return choose_backend(uri, what)
    return backend, open_image(get_backend(backend), uri, what)


def fingerprint_of(backend: Backend, uri: str, what: What = USUAL) -> str:
    """A backend's fingerprint of a file; of volumes also of which files are meant."""
    also: tuple[Any, ...] = (what,) if isinstance(what, VolumeOptions) else ()
    return backend.fingerprint(uri, *also)
