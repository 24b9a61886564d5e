"""`read_annotations`: files of annotations, by content, in bounded time and memory.

Not covered: what the formats say (`daskdmed.cohort.annotations.geojson`, `.asap`), and how
shapes are repaired (`.drafts`).
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from daskdmed.cohort.annotations.asap import parse_asap
from daskdmed.cohort.annotations.drafts import Checker, OnInvalid, extent_of, offset_of
from daskdmed.cohort.annotations.geojson import parse_geojson
from daskdmed.cohort.annotations.table import Annotations
from daskdmed.core.errors import AnnotationError, AnnotationNotFoundError, UsageError
from daskdmed.core.types import PathLike

#: a file is refused when it holds, or unpacks to, more than this
MAX_BYTES = 2**30
_GZIP = b"\x1f\x8b"


def read_annotations(
    source: PathLike | bytes,
    *,
    offset: Any = None,
    label_map: Mapping[str | None, str | None] | None = None,
    on_invalid: OnInvalid = "repair",
    extent: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Annotations:
    """Read annotations of QuPath (GeoJSON) or ASAP (XML).

    The format is told from the content; gzip is unpacked. Coordinates are level-0 pixels,
    (x, y). The whole reading of the formats is described in
    `daskdmed.cohort.annotations.geojson` and ``.asap``.

    Parameters
    ----------
    source : path, str or bytes
        A file, or the document itself (a str that begins with ``{``, ``[`` or ``<``).
    offset : (x, y) or Slide, optional
        Added to every coordinate. QuPath crops MRXS and other slides to their
        ``openslide.bounds-x`` and ``-y``: give the slide, and these are taken from it (0
        when it has none).
    label_map : mapping, optional
        Label to new label; labels that it does not name stay, None as the new label leaves
        the objects out, None as the old one is "without a label".
    on_invalid : {"repair", "raise", "skip"}
        What happens to shapes that are wrong.

        - ``"repair"`` mends what has an obvious meaning, and notes it in
          `Annotations.notes` and the log: open rings are closed; polygons that cross
          themselves are made valid (shapely's ``make_valid`` with ``method="structure"``,
          which joins what overlaps); what reaches beyond `extent` is cut off; colours that
          are none are dropped; shapes of which nothing is left, and objects without a
          geometry, are left out. What makes no sense (coordinates that are not finite
          numbers, unknown types) is an error.
        - ``"raise"`` makes all of these errors, except objects without a geometry.
        - ``"skip"`` leaves all of these objects out, and notes them.
    extent : (width, height) or Slide, optional
        Level-0 extent of the slide, to find shapes that lie outside. Taken from `offset`
        when that is a slide.
    max_bytes : int
        A document larger than this, packed or unpacked, is refused.

    Returns
    -------
    Annotations
        In the order of the file; `notes` says what was repaired or left out.

    Raises
    ------
    AnnotationError
        The document is truncated, of no format that is known, too large, holds XML
        entities, or an object of it is wrong: the message names the file, the object's
        position in it, the cause and the remedy.
    AnnotationNotFoundError
        There is no such file.
    UsageError
        An argument is wrong.
    """
    if on_invalid not in get_args(OnInvalid):
        raise UsageError(f'on_invalid is "repair", "raise" or "skip", got {on_invalid!r}')
    content, uri = _content(source, max_bytes)
    if extent is None and hasattr(offset, "dimensions"):
        extent = offset
    checker = Checker(
        uri=uri,
        on_invalid=on_invalid,
        offset=offset_of(offset),
        extent=extent_of(extent),
        label_map=dict(label_map or {}),
    )
    start = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start in (b"{", b"["):
        items = checker.collect(parse_geojson(content, uri))
    elif start == b"<":
        items = checker.collect(parse_asap(content, uri))
    else:
        raise _unknown(content, uri)
    return Annotations(items, source=uri, notes=checker.notes)


def _unknown(content: bytes, uri: str) -> AnnotationError:
    what = "is empty" if not content.strip() else f"begins with {content[:16]!r}"
    return AnnotationError(
        f"{uri or 'annotations'}: {what}, which is neither GeoJSON nor XML; export the "
        "annotations as GeoJSON from QuPath, or as XML from ASAP",
        uri=uri,
    )


def annotations_of(path: str) -> Annotations:
    """Annotations of a file with default options, kept while the file stays as it is."""
    try:
        found = os.stat(path)
        state = (found.st_mtime_ns, found.st_size)
    except OSError:
        state = (0, 0)
    return _kept(path, state)


@functools.lru_cache(maxsize=32)
def _kept(path: str, state: tuple[int, int]) -> Annotations:
    return read_annotations(path)


def _content(source: Any, limit: int) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return _unpacked(source, "", limit), ""
    if isinstance(source, str) and source.lstrip("\ufeff \t\r\n")[:1] in ("{", "[", "<"):
        return _unpacked(source.encode("utf-8"), "", limit), ""
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"annotations are read from a path or a text, got {source!r}")
    path = Path(source)
    uri = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise AnnotationNotFoundError(f"{uri}: there is no such file", uri=uri) from None
    except (OSError, ValueError) as error:
        raise AnnotationError(f"{uri}: cannot be read: {error}", uri=uri) from error
    return _unpacked(content, uri, limit), uri


def _unpacked(content: bytes, uri: str, limit: int) -> bytes:
    """The document, out of its gzip, refused when it is larger than `limit`."""
    unpacked = content
    if content[:2] == _GZIP and len(content) <= limit:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            unpacked = unpacker.decompress(content, limit + 1)
        except zlib.error as error:
            raise AnnotationError(
                f"{uri or 'annotations'}: the gzip is damaged: {error}", uri=uri
            ) from error
        if not unpacker.eof and len(unpacked) <= limit:
            raise AnnotationError(f"{uri or 'annotations'}: the gzip is truncated", uri=uri)
    if len(unpacked) > limit:
        raise AnnotationError(
            f"{uri or 'annotations'}: holds more than {limit} bytes; raise max_bytes= if that "
            "is meant",
            uri=uri,
        )
    return unpacked
