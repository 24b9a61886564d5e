"""What a result looks like in a notebook: its values in colours, where it lies, whose it is.

Not covered: results over their slides (`daskdmed.plot`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

from daskdmed.core.html import Html, below, beside, facts, page, soft, times, title
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.shown import Plane

if TYPE_CHECKING:
    from daskdmed.store.results.finished import Heatmap

logger = logging.getLogger("daskdmed.store")
#: values that are read for a picture, channels that are shown, longer side of each picture
_MOST, _CHANNELS, _SIDE = 2**22, 4, 192
#: colours from the lowest to the highest value, of equal steps of lightness (matplotlib's magma)
_MAGMA = np.array(
    [(0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191)]
)


def coloured(values: Array) -> Array:
    """(h, w) as (h, w, 4) uint8 from the lowest value to the highest; transparent where there is
    none."""
    known = np.isfinite(values)
    low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 1.0)
    scaled = np.where(known, (values - low) / ((high - low) or 1.0), 0.0) * (len(_MAGMA) - 1)
    steps = np.arange(len(_MAGMA))
    shown = [np.interp(scaled, steps, channel) for channel in _MAGMA.T]
    made: Array = np.stack([*shown, np.where(known, 255, 0)], axis=-1).round().astype(np.uint8)
    return made


def heatmap_html(heatmap: Heatmap) -> str:
    """Pictures of the first channels, and what is known."""
    place = heatmap.georeference
    names = ", ".join(heatmap.channel_names[:8]) + ("..." if len(heatmap.channel_names) > 8 else "")
    told = facts(
        [
            ("windows", times(f"{n:,}" for n in heatmap.counts)),
            ("values per window", f"{heatmap.channels}, {heatmap.dtype}"),
            ("channels", names or None),
            ("window", times(place.kernel_size)),
            ("stride", times(place.stride)),
            ("level-0 pixels per pixel", times(f"{d:.6g}" for d in place.downsample)),
        ]
    )
    try:
        shown = _pictures(heatmap)
    # damaged or gone: told when it is used
    except Exception as error:
        logger.debug("%s: no picture: %s", heatmap.name, error)
        shown = []
    return page(title(heatmap.name or "Heatmap"), beside(*shown, told))


def _pictures(heatmap: Heatmap) -> list[Html]:
    """Of what is stored or in memory and small, and flat; nothing is computed for a picture."""
    count = heatmap.channels * int(np.prod(heatmap.counts))
    if isinstance(heatmap.array, da.Array) or len(heatmap.counts) != 2 or not 0 < count <= _MOST:
        return []
    values = heatmap.read(Region.of(heatmap.counts))
    shown = []
    for number in range(min(heatmap.channels, _CHANNELS)):
        plane = np.asarray(values[number], np.float64)
        step = max(1, -(-max(plane.shape) // (2 * _SIDE)))
        picture = Plane(coloured(plane[::step, ::step]), (plane.shape[0], plane.shape[1]))
        known = plane[np.isfinite(plane)]
        ends = f"{known.min():.4g} to {known.max():.4g}" if known.size else "no values"
        name = f"{heatmap.channel_names[number]}: " if heatmap.channel_names else ""
        shown.append(below(picture.html(_SIDE, "heatmap"), soft(f"{name}{ends}")))
    return shown
