"""`open_slide` and `open_slides`: from a place to a `Slide`.

The file is opened by the first backend that reads it, looked at, and kept in this process's cache
for whoever reads. Not covered: what a slide is and how it is read (`daskdmed.images.slide`), which
backends there are (`daskdmed.images.registry`), volumes (`daskdmed.images.volumes`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

from daskdmed.core.errors import ImageError, UsageError, listing
from daskdmed.core.places import StorageOptions, using
from daskdmed.core.types import PathLike
from daskdmed.images.filecache import FileKey, cache
from daskdmed.images.protocols import SlideInfo, SlideOptions
from daskdmed.images.registry import get_backend, open_with
from daskdmed.images.slide import Slide
from daskdmed.images.source import normalize_uri

_log = logging.getLogger("daskdmed.images")


def open_slide(
    uri: PathLike,
    *,
    backend: str | None = None,
    image: int | str | None = None,
    plane: int | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Slide:
    """Open a slide.

    Parameters
    ----------
    uri : str or path-like
        Local path (``~`` allowed), ``file://`` or any fsspec URL.
    backend : str, optional
        "tiff", "openslide", "zarr" or a registered one; default: the first that reads the file.
    image : int or str, optional
        Number or name of one of several images in the file, see `Slide.images`. Default: the
        scan, which is the one with most pixels unless that is an overview.
    plane : int or str, optional
        A focal plane or time point of a stack: its number among `Slide.planes`, or "z=3", "t=2",
        "z=3,t=2", counted from 0. Default: the plane in focus where the file says it, else the
        first; which one is in the log (``daskdmed.images``).
    storage_options : mapping, optional
        For the file system of a URL: credentials, endpoint, headers, as fsspec's of that protocol
        takes them. They travel to the workers of a cluster with what reads, and are in no repr,
        token, log or message.

    Returns
    -------
    Slide
        A light value; the open file is kept in a bounded per-process cache.

    Raises
    ------
    ImageNotFoundError, ImagePermissionError, UnsupportedImageError, CorruptImageError
        Naming the file and a remedy.

    Notes
    -----
    JPEG tiles of TIFF slides are decoded by the TurboJPEG library where it is found, which
    reads blocks a tenth faster, to the same pixels. The environment variable
    ``DASKDMED_TURBOJPEG`` names its file, or is ``off``; every process that reads goes by
    its own.

    Examples
    --------
    >>> slide = open_slide("slide.svs")  # doctest: +SKIP
    >>> slide.dimensions  # doctest: +SKIP
    (2220, 2967)
    """
    path = normalize_uri(uri)
    options = SlideOptions(*("" if said is None else str(said) for said in (image, plane)))
    told = StorageOptions.of(path, storage_options)
    with using(told):
        return _open(path, backend, options, told)


def _open(
    path: str, backend: str | None, options: SlideOptions, told: StorageOptions | None
) -> Slide:
    asked = options.plane
    name, reader = open_with(path, backend, options)
    try:
        info = reader.info
        if options.plane and info.plane:  # one name for what can be said in several ways
            options = replace(options, plane=info.plane)
        key = FileKey(path, name, get_backend(name).fingerprint(path), options.text, told)
    except BaseException:
        reader.close()
        raise
    cache.put(key, reader)
    _say_plane(path, info, asked)
    return Slide(key, info)


def _say_plane(uri: str, info: SlideInfo, said: str) -> None:
    """Tell which plane of a stack is read, where the user did not say it, or in part."""
    axes = info.plane.count("=")
    if info.plane and not (said.isdecimal() or said.count("=") == axes):
        whole = "; open_volume, or Record(..., spatial_ndim=3), reads all z" * ("z=" in info.plane)
        named = listing(info.planes) + whole
        _log.warning("%s: reads the plane %r; plane= chooses, of %s", uri, info.plane, named)


def open_slides(
    uris: Iterable[PathLike],
    *,
    backend: str | None = None,
    max_workers: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    storage_options: Mapping[str, Any] | None = None,
) -> list[Slide]:
    """Open many slides in parallel threads, with a bounded number of open files.

    Parameters
    ----------
    uris, backend
        Of each slide, as in `open_slide`.
    max_workers : int, optional
        Threads; default 8.
    on_error : {"raise", "skip"}
        Raise the first error, or leave out the slides that cannot be opened and log them.
    storage_options : mapping, optional
        Of all of them, as in `open_slide`.

    Returns
    -------
    list of Slide
        In the order of `uris`, without those skipped.
    """
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error must be 'raise' or 'skip', got {on_error!r}")

    def attempt(uri: PathLike) -> Slide | None:
        try:
            return open_slide(uri, backend=backend, storage_options=storage_options)
        except ImageError as exc:
            if on_error == "raise":
                raise
            _log.warning("skipped: %s", exc)
            return None

    with ThreadPoolExecutor(max_workers or 8, thread_name_prefix="open-slides") as pool:
        return [slide for slide in pool.map(attempt, uris) if slide is not None]
