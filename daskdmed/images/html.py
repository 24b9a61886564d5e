"""How a slide looks in a notebook.

Not covered: figures (`daskdmed.plot`).
"""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

import numpy as np

from daskdmed.types import Array

if TYPE_CHECKING:
    from daskdmed.images.slide import Slide


def slide_html(slide: Slide, picture: Array | None) -> str:
    """Thumbnail and a table of levels.

    Parameters
    ----------
    slide : Slide
        The slide.
    picture : ndarray or None
        (h, w, c) thumbnail of any dtype.
    """
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
    return (
        '<div style="display:flex;gap:1em;align-items:flex-start">'
        f"{_image(picture)}<div><b>{html.escape(slide.uri)}</b><br>{html.escape(facts)}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _image(picture: Array | None) -> str:
    if picture is None:
        return ""
    import imagecodecs

    png = imagecodecs.png_encode(np.ascontiguousarray(display_rgb(picture)))
    code = base64.b64encode(png).decode("ascii")
    return f'<img alt="thumbnail" src="data:image/png;base64,{code}">'


def display_rgb(picture: Array) -> Array:
    """Any picture as (h, w, 3) uint8: RGB as it is, other channels stretched to grey."""
    if picture.shape[2] == 3 and picture.dtype == np.uint8:
        return picture
    grey = picture[..., :3].max(axis=2).astype(np.float64)
    low, high = float(grey.min()), float(grey.max())
    scaled = (grey - low) * (255 / (high - low)) if high > low else np.zeros_like(grey)
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, axis=2)
