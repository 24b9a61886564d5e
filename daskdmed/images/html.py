"""How a slide, a volume or a view looks in a notebook.

What stands above this layer draws on the picture through the entry-point group
``daskdmed.slide_html``, or `register_overlay`. Not covered: how pictures are made
(`daskdmed.images.shown`), figures (`daskdmed.plot`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from daskdmed.core.errors import DaskdmedError, listing
from daskdmed.core.html import Html, below, beside, facts, page, soft, table, times, title
from daskdmed.core.types import Array
from daskdmed.images.shown import MOST, Plane, slide_plane, view_plane, volume_plane

if TYPE_CHECKING:
    from daskdmed.core.view import ImageView
    from daskdmed.images.slide import Slide
    from daskdmed.images.volumes.volume import Volume

_log = logging.getLogger("daskdmed.images")
OVERLAY_GROUP = "daskdmed.slide_html"
#: longer side of a picture
SIDE = 192
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


def slide_html(slide: Slide) -> str:
    """Thumbnail and a table of levels."""
    notes: list[str] = []
    picture = _picture_of(slide, lambda: slide_plane(slide, SIDE, MOST))
    if picture is not None and picture.pixels is not None:
        pixels, notes = _draw_overlays(slide, picture.pixels)
        picture = replace(picture, pixels=pixels)
    power = "" if slide.power is None else f", {slide.power:g}x"
    said = [f"{slide.info.vendor or 'unknown vendor'}{power}, {slide.dtype}, {slide.backend}"]
    said += [f"channels {listing(list(slide.channels))}"] if slide.channels else []
    said += [f"plane {slide.plane} of {len(slide.planes)}"] if slide.plane else []
    rows = []
    for number, level in enumerate(slide.levels):
        height, width, channels = level.shape
        mpp = "" if slide.mpp is None else f"{slide.mpp[0] * level.downsample[1]:.4g}"
        rows.append(
            (
                str(number),
                f"{width:,} x {height:,} x {channels}",
                f"{slide.level_downsamples[number]:.6g}",
                mpp,
                f"{level.tile_shape[1]} x {level.tile_shape[0]}",
            )
        )
    heads = ("level", "pixels", "downsample", Html("&micro;m/px"), "tile")
    told = below(title(slide.uri, *said, *notes), table(heads, rows))
    return page(beside(_shown(picture), told))


def volume_html(volume: Volume) -> str:
    """The middle slice and a table of levels."""
    rows = []
    for number, level in enumerate(volume.levels):
        steps = "" if volume.spacing is None else times(
            f"{s * d:.4g}" for s, d in zip(volume.spacing, level.downsample, strict=True)
        )  # fmt: skip
        rows.append((str(number), times(level.shape[:3]), steps, times(level.tile_shape)))
    channels = f", {volume.channels} channels" if volume.channels else ""
    kind = f"{volume.dtype}{channels}, {volume.backend}"
    where = "lies nobody knows where" if volume.space is None else f"axes to {volume.space.axcodes}"
    told = below(
        title(volume.uri, f"{kind}, {where}"),
        table(("level", "voxels (z, y, x)", "mm", "tile"), rows),
    )
    picture = _picture_of(volume, lambda: volume_plane(volume, SIDE, MOST))
    return page(beside(_shown(picture), told))


def view_html(view: ImageView) -> str:
    """One image at one resolution: its picture, where that is cheap, and what it is."""
    picture = _picture_of(view, lambda: view_plane(view, SIDE))
    background = None
    with suppress(DaskdmedError):
        background = ", ".join(f"{v:g}" for v in np.ravel(view.background)[:8].tolist())
    told = facts(
        [
            ("shape", times(view.shape)),
            ("type", view.dtype),
            ("level-0 pixels per pixel", times(f"{d:.6g}" for d in view.downsample)),
            (Html("&micro;m per pixel (x, y)"), view.mpp and times(f"{m:.4g}" for m in view.mpp)),
            ("mm per voxel", _millimeters(view)),
            ("axes to", view.space and view.space.axcodes),
            ("storage tile", times(view.tile_shape)),
            ("outside of it", background),
        ]
    )
    return page(beside(_shown(picture), below(title(view.name, type(view).__name__), told)))


def _millimeters(view: ImageView) -> str | None:
    steps = view.spacing if view.mpp is None else None
    return None if steps is None else times(f"{s:.4g}" for s in steps)


def _picture_of(image: Any, make: Callable[[], Plane]) -> Plane | None:
    """A picture, or None where the image cannot be read: the table is there all the same."""
    try:
        return make()
    except (DaskdmedError, OSError) as error:
        _log.warning("%s: no picture: %s", image.uri, error)
        return None


def _shown(picture: Plane | None) -> Html | str:
    if picture is None or picture.pixels is None:
        return ""
    return below(picture.html(SIDE, "thumbnail"), soft(picture.words) if picture.words else "")
