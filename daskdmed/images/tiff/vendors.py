"""How vendors arrange images in a TIFF file.

Which series is the slide, which pages are its levels, which are label, macro and thumbnail,
and which arrangements need a reader that stitches.

Not covered: what vendors write about the slide (`daskdmed.images.tiff.metadata`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np

from daskdmed.core.errors import UnsupportedImageError
from daskdmed.images.readers import ASSOCIATED_NAMES, choose_image
from daskdmed.images.tiff.series import arranged, plain

#: nanometres from the plane of best focus, in NDPI
_Z_OFFSET = 65424
#: aspect ratios of two levels of a pyramid differ by rounding only
_ASPECT_TOLERANCE = 0.05


def all_series(tif: Any) -> list[Any]:
    """Series as tifffile arranges them, or plain ones where pages contradict a description.

    A pyramid keeps the text of ImageJ, ScanImage or a vendor that its first page came with.
    """
    try:
        series = arranged(tif)
    except Exception:
        series = []
        if len(tif.pages) < 2:
            raise
    believed = not series or series[0].kind in ("imagej", "scanimage", "qpi")
    if believed and len(tif.pages) > 1 and all(len(s.levels) == 1 for s in series):
        alike = plain(tif)
        if not series or any(len(s.levels) > 1 for s in alike):
            return alike
    return series


def scans(series: list[Any]) -> list[Any]:
    """The series that may be the slide."""
    return [s for s in series if name_of(s).lower() not in ASSOCIATED_NAMES] or series


def main_series(
    uri: str, series: list[Any], spacing: dict[tuple[int, int], float], image: str
) -> Any:
    """The series that is the slide, or the one asked for; `spacing` is micrometres by size."""
    sizes = [(s.keyframe.imagewidth, s.keyframe.imagelength) for s in series]
    known = [spacing.get(size) for size in sizes]
    pixels = [w * h for w, h in sizes]
    return series[choose_image(uri, image, [name_of(s) for s in series], pixels, known)]


def name_of(series: Any) -> str:
    """The name under which an image of a file is shown and asked for."""
    return str(series.name).strip()


def plane_in_focus(pages: list[Any]) -> int:
    """Which of the planes of a stack is shown: Hamamatsu's in the middle of the focus, or 0."""
    offsets = [p.tags.valueof(_Z_OFFSET) if hasattr(p, "tags") else None for p in pages]
    distances = [abs(int(o)) for o in offsets if o is not None]
    return distances.index(min(distances)) if len(distances) == len(pages) else 0


def check_readable(tif: Any, main: Any, uri: str) -> None:
    """Refuse arrangements whose tiles would have to be stitched: overlapping tiles, or several
    scanned areas, which belong elsewhere than their tiles lie."""
    if main.kind == "bif":
        vendor, found = "Ventana", _ventana_stitching(tif)
    else:
        vendor, found = "Trestle", _trestle_overlap(main.keyframe)
    if found:
        raise UnsupportedImageError.of(
            uri,
            f"the tiles of this {vendor} slide {found} and have to be stitched, which "
            "the tiff backend does not do; install openslide-python, which does",
        )


def xmp_texts(tif: Any) -> Iterator[str]:
    """The XMP of each page that has some, in which Ventana keeps its XML."""
    for page in tif.pages:
        xmp = page.tags.valueof(700)
        if xmp is not None:
            yield xmp if isinstance(xmp, str) else bytes(xmp).decode("utf-8", "replace")


def _ventana_stitching(tif: Any) -> str:
    """What a Ventana slide's stitching table asks for; empty when tiles lie side by side."""
    for text in xmp_texts(tif):
        overlaps = re.findall(r'Overlap[XY]\s*=\s*"(-?[0-9.]+)"', text)
        if any(float(o) != 0 for o in overlaps):
            return "overlap"
        areas = len(re.findall(r'AOIScanned\s*=\s*"1"', text))
        if areas > 1:
            return f"are of {areas} areas with places of their own"
    return ""


def _trestle_overlap(page: Any) -> str:
    """What Trestle's MedScan says of its tiles; empty when they lie side by side."""
    if not str(page.software).startswith("MedScan"):
        return ""
    found = re.search(r"OverlapsXY=([0-9 ]*)", str(page.description))
    return "overlap" if found and any(int(n) for n in found.group(1).split()) else ""


def more_levels(main: Any, series: list[Any]) -> list[Any]:
    """Reduced pages that belong to the pyramid although tifffile leaves them out: their factor is
    unusual, or they are the second page of an Aperio file without a thumbnail, which tifffile takes
    for it. Aperio's thumbnails are striped, its levels tiled."""
    if main.kind not in ("generic", "uniform", "shaped", "svs"):
        return []
    key = main.keyframe
    sizes = {(lv.keyframe.imagelength, lv.keyframe.imagewidth) for lv in main.levels}
    found = []
    for other in (level for s in series if s is not main for level in s.levels):
        k = other.keyframe
        if not (k.is_tiled and (k.is_reduced or main.kind == "svs")) or k.is_subifd:
            continue
        if (k.imagelength, k.imagewidth) in sizes or k.imagewidth >= key.imagewidth:
            continue
        if (k.dtype, k.samplesperpixel) != (key.dtype, key.samplesperpixel):
            continue
        aspect = (k.imagewidth / k.imagelength) / (key.imagewidth / key.imagelength)
        if abs(aspect - 1) < _ASPECT_TOLERANCE:
            found.append(other)
    return found


def background(tif: Any, channels: int, dtype: np.dtype[Any], photometric: int) -> tuple[int, ...]:
    """Value outside the image: white for colour, 0 for fluorescence and other counts."""
    colour = photometric in (2, 6) and channels % 3 == 0
    if colour and np.dtype(dtype).kind == "u":
        return (int(np.iinfo(dtype).max),) * channels
    return (0,) * channels


def associated_pages(tif: Any, main: Any, series: list[Any]) -> dict[str, Any]:
    """Name -> page of label, macro, thumbnail."""
    if main.kind == "svs":
        return _aperio_associated(tif)
    found: dict[str, Any] = {}
    if main.kind == "qpi":
        for page in tif.pages:
            kind = re.search(r"<ImageType>\s*(\w+)\s*</ImageType>", page.description or "")
            name = ASSOCIATED_NAMES.get(kind.group(1).lower()) if kind else None
            if name:
                found.setdefault(name, page)
        return found
    for other in series:
        if other is main:
            continue
        text = name_of(other).lower()
        name = ASSOCIATED_NAMES.get(text)
        if name is None and main.kind == "scn" and not other.is_pyramidal:
            name = "macro"
        if name and len(other._pages) == 1:
            found.setdefault(name, other.keyframe)
    return found


def _aperio_associated(tif: Any) -> dict[str, Any]:
    """Striped pages: named by the second line of their description, else by their subfile type.

    GT450 scanners leave these descriptions empty. Without either it is the thumbnail.
    """
    found: dict[str, Any] = {}
    for number, page in enumerate(tif.pages):
        if page.is_tiled:
            continue
        lines = str(page.description).splitlines()
        word = lines[1].split(" ")[0].strip() if len(lines) > 1 else ""
        if not str(page.description).strip():
            word = {1: "label", 9: "macro"}.get(int(page.subfiletype), "")
        if word in ("label", "macro"):
            found.setdefault(word, page)
        elif number == 1:
            found.setdefault("thumbnail", page)
    return found


def named(root: Any, name: str) -> Iterator[Any]:
    """Elements below another by local name, whatever the namespace."""
    found: Iterator[Any] = root.iterfind(f".//{{*}}{name}")
    return found


def xml_root(text: str) -> Any | None:
    """Root of an XML text, None when it is none."""
    try:
        return ElementTree.fromstring(text.strip("\0 \r\n\t"))
    except (ElementTree.ParseError, ValueError):
        return None
