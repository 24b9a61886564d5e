"""`read_annotations`: files of annotations, by content, in bounded time and memory.

Here it is decided whose a document is. Not covered: what the formats say
(`daskdmed.cohort.annotations.geojson`, `.asap`, `.imagescope`, `.ndpa`), and how shapes are
repaired (`.drafts`).
"""

from __future__ import annotations

import functools
import gc
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from daskdmed.cohort.annotations.annotation import Annotation
from daskdmed.cohort.annotations.asap import parse_asap
from daskdmed.cohort.annotations.drafts import Checker, OnInvalid, Parsed, extent_of, offset_of
from daskdmed.cohort.annotations.geojson import parse_geojson
from daskdmed.cohort.annotations.imagescope import parse_imagescope
from daskdmed.cohort.annotations.markup import root_of, walk
from daskdmed.cohort.annotations.ndpa import frame_of, parse_ndpa
from daskdmed.cohort.annotations.table import Annotations
from daskdmed.core.errors import AnnotationError, AnnotationNotFoundError, UsageError
from daskdmed.core.places import local
from daskdmed.core.types import PathLike

#: a file is refused when it holds, or unpacks to, more than this
MAX_BYTES = 2**30
_GZIP = b"\x1f\x8b"
_READ = (
    "GeoJSON (QuPath, TIAToolbox, LazySlide...), and the XML of ASAP (<ASAP_Annotations>), of "
    "Aperio ImageScope (<Annotations>) and of Hamamatsu (NDPA, <annotations>)"
)


def read_annotations(
    source: PathLike | bytes,
    *,
    offset: Any = None,
    mpp: float | tuple[float, float] | None = None,
    class_property: str | None = None,
    label_map: Mapping[str | None, str | None] | None = None,
    on_invalid: OnInvalid = "repair",
    extent: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Annotations:
    """Read annotations: GeoJSON, or the XML of ASAP, Aperio ImageScope, HALO or Hamamatsu.

    The format is told from the content; gzip is unpacked. Coordinates become level-0 pixels,
    (x, y). The whole reading of the formats is described in
    `daskdmed.cohort.annotations.geojson`, ``.asap``, ``.imagescope`` and ``.ndpa``.

    Parameters
    ----------
    source : path, str or bytes
        A file, or the document itself (a str that begins with ``{``, ``[`` or ``<``).
    offset : (x, y) or Slide, optional
        Added to every coordinate. QuPath crops MRXS and other slides to their
        ``openslide.bounds-x`` and ``-y``: give the slide, and these are taken from it (0
        when it has none). NDPA needs the slide, unless it lies beside the file, or where the
        centre of the glass lies together with `mpp`.
    mpp : float or (float, float), optional
        Micrometers per level-0 pixel, for NDPA without its slide.
    class_property : str, optional
        Which property names the class: "properties.type", "measurements.grade"... Default:
        QuPath's ``classification``, or where no object of a GeoJSON document has one and
        QuPath has not written it, ``type``; the group (ASAP), layer (ImageScope) or title
        (NDPA). Numbers become texts.
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
    with _no_search_for_cycles():
        # the document is gone when it ends
        items, notes = _collected(
            content, uri, offset, mpp, class_property, extent, on_invalid, dict(label_map or {})
        )
    return Annotations(items, source=uri, notes=notes)


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Documents are millions of lists without cycles, which would be searched again and again."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


def _collected(
    content: bytes,
    uri: str,
    offset: Any,
    mpp: Any,
    class_property: str | None,
    extent: Any,
    on_invalid: OnInvalid,
    label_map: Mapping[str | None, str | None],
) -> tuple[list[Annotation], list[str]]:
    start = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    root = root_of(content, uri) if start == b"<" else ""
    if root == "annotations":
        scale, offset, slide = frame_of(uri, offset, mpp)
        extent = slide if extent is None else extent
        parsed = parse_ndpa(content, uri, class_property, scale)
    elif mpp is not None:
        raise UsageError(
            f"{uri or 'annotations'}: mpp= is for NDPA, whose coordinates are lengths; these are "
            "in level-0 pixels already"
        )
    elif start in (b"{", b"["):
        parsed = parse_geojson(content, uri, class_property)
    elif start == b"<":
        parsed = _parse_xml(root, content, uri, class_property)
    else:
        raise _unknown(content, uri)
    checker = Checker(uri, on_invalid, offset_of(offset), extent_of(extent), label_map)
    return checker.collect(parsed), checker.notes


def _parse_xml(root: str, content: bytes, uri: str, class_property: str | None) -> Parsed:
    # programs that write ASAP's elements do not all write its root
    if root == "ASAP_Annotations" or (root == "Annotations" and b"<Coordinate " in content):
        return parse_asap(content, uri, class_property)
    if root == "Annotations":
        return parse_imagescope(content, uri, class_property)
    for _ in walk(content, uri):  # XML that is wrong is called so first
        pass
    raise AnnotationError(
        f"{uri or 'annotations'}: is XML, but no annotations that are known: the root is "
        f"<{root}>; read are {_READ}",
        uri=uri,
    )


def _unknown(content: bytes, uri: str) -> AnnotationError:
    what = "is empty" if not content.strip() else f"begins with {content[:16]!r}"
    return AnnotationError(
        f"{uri or 'annotations'}: {what}, which is neither GeoJSON nor XML; read are {_READ}",
        uri=uri,
    )


def annotations_of(path: str) -> Annotations:
    """Annotations of a file with default options, kept while the file stays as it is."""
    path = str(local(path, "annotations", AnnotationError))
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
        try:
            return _unpacked(source.encode("utf-8"), "", limit), ""
        except UnicodeEncodeError as error:
            raise AnnotationError(f"annotations: the text is none: {error}") from error
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"annotations are read from a path or a text, got {source!r}")
    path = local(source, "annotations", AnnotationError)
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
