"""How a slide or a volume looks in a notebook.

What stands above this layer draws on the picture through the entry-point group
``daskdmed.slide_html``, or `register_overlay`. Not covered: figures (`daskdmed.plot`).
"""

from __future__ import annotations

import base64
import html
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from daskdmed.core.errors import listing
from daskdmed.core.types import Array
from daskdmed.images.composite import display

if TYPE_CHECKING:
    from daskdmed.images.slide import Slide
    from daskdmed.images.volumes.volume import Volume

_log = logging.getLogger("daskdmed.images")
OVERLAY_GROUP = "daskdmed.slide_html"
#: from a slide and its (h, w, 3) uint8 picture to another picture and a line of text, or None
#: when there is nothing to show; it must not compute anything
Overlay: TypeAlias = "Callable[[Slide, Array], tuple[Array, str] | None]"
_overlays: dict[str, Overlay] = {}


def register_overlay(name: str, overlay: Overlay) -> None:
    """Let something draw on the pictures of slides; the same name replaces it."""
    _overlays[name] = overlay


@lru_cache(maxsize=1)
def _installed() -> dict[str, Overlay]:
    found: dict[str, Overlay] = {}
    for point in entry_points(group=OVERLAY_GROUP):
        try:
            found[point.name] = point.load()
        except (ImportError, AttributeError) as error:
            _log.warning("the overlay %r cannot be imported: %s", point.value, error)
    return found


def _draw_overlays(slide: Slide, picture: Array) -> tuple[Array, list[str]]:
    """The picture and lines of text, after all overlays."""
    notes = []
    for name, overlay in {**_installed(), **_overlays}.items():
        try:
            drawn = overlay(slide, picture)
        # somebody else's code must not take the table of the slide away
        except Exception as error:
            _log.warning("%s: the overlay %r failed: %s", slide.uri, name, error)
            continue
        if drawn is not None:
            picture, note = drawn
            notes.append(note)
    return picture, notes


def slide_html(slide: Slide, picture: Array | None) -> str:
    """Thumbnail (h, w, c) of any dtype, and a table of levels."""
    notes: list[str] = []
    if picture is not None:
        shown = display(picture, slide.info)
        picture, notes = _draw_overlays(slide, shown)
    if slide.channels:
        notes.insert(0, listing(list(slide.channels)))
    rows = []
    for number, level in enumerate(slide.levels):
        height, width, channels = level.shape
        mpp = "" if slide.mpp is None else f"{slide.mpp[0] * level.downsample[1]:.4g}"
        cells = (
            str(number),
            f"{width} x {height} x {channels}",
            f"{slide.level_downsamples[number]:.6g}",
            mpp,
            f"{level.tile_shape[1]} x {level.tile_shape[0]}",
        )
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = "".join(
        f"<th>{name}</th>" for name in ("level", "pixels", "downsample", "&micro;m/px", "tile")
    )
    power = "" if slide.power is None else f", {slide.power:g}x"
    facts = f"{slide.info.vendor or 'unknown vendor'}{power}, {slide.dtype}, {slide.backend}"
    said = "<br>".join(html.escape(text) for text in (facts, *notes))
    return (
        '<div style="display:flex;gap:1em;align-items:flex-start">'
        f"{_image(picture)}<div><b>{html.escape(slide.uri)}</b><br>{said}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def volume_html(volume: Volume, picture: Array | None) -> str:
    """A slice (h, w, c) of any dtype, and a table of levels."""
    rows = []
    for number, level in enumerate(volume.levels):
        steps = "" if volume.spacing is None else " x ".join(
            f"{s * d:.4g}" for s, d in zip(volume.spacing, level.downsample, strict=True)
        )  # fmt: skip
        cells = (str(number), _times(level.shape[:3]), steps, _times(level.tile_shape))
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    names = ("level", "voxels (z, y, x)", "mm", "tile")
    head = "".join(f"<th>{name}</th>" for name in names)
    channels = f", {volume.channels} channels" if volume.channels else ""
    facts = f"{volume.dtype}{channels}, {volume.backend}"
    shown = None if picture is None else display(picture, volume.info)
    where = "lies nobody knows where" if volume.space is None else f"axes to {volume.space.axcodes}"
    return (
        '<div style="display:flex;gap:1em;align-items:flex-start">'
        f"{_image(shown)}<div><b>{html.escape(volume.uri)}</b><br>{html.escape(facts)}, {where}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _times(extent: Sequence[int]) -> str:
    return " x ".join(map(str, extent))


def _image(picture: Array | None) -> str:
    if picture is None:
        return ""
    import imagecodecs

    png = imagecodecs.png_encode(np.ascontiguousarray(display(picture)))
    code = base64.b64encode(png).decode("ascii")
    return f'<img alt="thumbnail" src="data:image/png;base64,{code}">'
