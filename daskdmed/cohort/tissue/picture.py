"""How a tissue mask looks: its picture, outlined, and its table in a notebook.

Not covered: figures (`daskdmed.plot`), pictures of slides (`daskdmed.cohort.tissue.html`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.html import below, beside, facts, page, times, title
from daskdmed.core.types import Array
from daskdmed.images.composite import display
from daskdmed.images.shown import Plane, shrunk

if TYPE_CHECKING:
    from daskdmed.cohort.tissue.mask import TissueMask

_SIDE = 160
_SHOWN = 320
_OUTLINE = (0, 160, 60)


def preview(picture: Array, axes: int) -> bytes:
    """A small JPEG of a picture; of volumes the brightest along the leading axes."""
    import imagecodecs

    if picture.ndim == axes:
        picture = picture[..., None]
    while picture.ndim > 3:
        picture = picture.max(axis=0)
    if picture.ndim < 3:
        return b""
    small = shrunk(picture, _SIDE)
    if small.shape[2] == 2:
        small = small[..., :1]
    rgb = np.ascontiguousarray(display(small))
    return bytes(imagecodecs.jpeg8_encode(rgb, level=80))


def outlined(picture: Array, mask: Array) -> Array:
    """A picture with the rest paled and the outline of the tissue drawn."""
    height, width = picture.shape[:2]
    rows = (np.arange(height) + 0.5) * mask.shape[0] / height
    columns = (np.arange(width) + 0.5) * mask.shape[1] / width
    inside = mask[np.ix_(rows.astype(np.intp), columns.astype(np.intp))]
    padded = np.pad(inside, 1, mode="edge")
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    shown = np.where(inside[..., None], picture, picture // 2 + 96).astype(np.uint8)
    shown[inside & ~surrounded] = _OUTLINE
    return shown


def mask_html(mask: TissueMask) -> str:
    """The mask over its picture, and its numbers."""
    import imagecodecs

    flat: Any = mask.data
    while flat.ndim > 2:
        flat = flat.any(axis=0)
    flat = np.atleast_2d(flat)
    if mask.picture:
        picture = np.asarray(imagecodecs.jpeg8_decode(mask.picture))
    else:
        picture = np.full((*_fit(flat.shape), 3), 200, np.uint8)
    step = max(1, _SHOWN // max(picture.shape[:2]))
    drawn = outlined(picture.repeat(step, axis=0).repeat(step, axis=1), flat)
    told = facts(
        [
            ("tissue", share_text(mask)),
            ("method", mask.method),
            ("mask", times(mask.shape)),
            ("image", times(mask.shape0)),
            ("scale", times(f"{s:.4g}" for s in mask.scale)),
        ]
    )
    shown = Plane(drawn, drawn.shape[:2]).html(max(drawn.shape[:2]), "tissue")
    return page(beside(shown, below(title("Tissue mask"), told)))


def _fit(shape: tuple[int, ...]) -> tuple[int, int]:
    ratio = _SIDE / max(shape)
    return max(1, round(shape[0] * ratio)), max(1, round(shape[1] * ratio))


def share_text(mask: TissueMask) -> str:
    """Share and area of the tissue, for people."""
    if mask.empty:
        return "none"
    area = mask.area_um2
    return f"{mask.fraction:.1%}" + ("" if area is None else f", {area / 1e6:.3g} mm\u00b2")
