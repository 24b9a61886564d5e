"""Pictures in a notebook: what a part of an image looks like, as a PNG in HTML.

Nothing large is decoded for a picture: whoever asks says how many samples it may cost. Not
covered: the tables beside them (`daskdmed.images.html`), figures (`daskdmed.plot`).
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import dask
import numpy as np
from dask.highlevelgraph import MaterializedLayer

from daskdmed.core.html import Html, safe
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.composite import display
from daskdmed.images.view import SlideView
from daskdmed.images.volumes.view import VolumeView

if TYPE_CHECKING:
    from daskdmed.core.space import Space
    from daskdmed.core.view import ImageView
    from daskdmed.images.slide import Slide
    from daskdmed.images.volumes.volume import Volume

#: samples that may be decoded for the picture of what a user looks at, and for one of many
MOST, CHEAP = 2**28, 2**25
#: channels that are composed; of more, the first
_CHANNELS = 16
#: what is drawn on a picture is told from it, whatever its colours
_HALO = "filter:drop-shadow(0 0 1px #fff)"
#: most blocks of an array that are looked at
_BLOCKS = 2**12


# ------------------------------------------------------------------------- pictures as text
def data_uri(picture: Array, most: int | None = None) -> str:
    """(h, w, 3 or 4) uint8 as a PNG in a URI, exact; as a JPEG where that takes more than `most`
    bytes."""
    import imagecodecs

    if picture.size == picture.shape[2]:  # no encoder takes a single pixel
        picture = picture.repeat(2, axis=0).repeat(2, axis=1)
    grey = picture.shape[2] == 3 and bool((picture == picture[..., :1]).all())
    coded = imagecodecs.png_encode(np.ascontiguousarray(picture[..., 0] if grey else picture))
    kind = "png"
    for level in (85, 60, 30, 5):
        if most is None or len(coded) <= most:
            break
        opaque = np.ascontiguousarray(picture[..., :3])
        coded, kind = imagecodecs.jpeg8_encode(opaque, level=level), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(coded).decode('ascii')}"


@dataclass(frozen=True)
class Plane:
    """What is shown of an image: a picture, and how it lies.

    Parameters
    ----------
    pixels : ndarray or None
        (h, w, 3 or 4) uint8; None where only the outline is shown.
    extent : (float, float)
        What is shown, (y, x) in level-0 pixels.
    aspect : float
        Height of a pixel by its width.
    mirrored : (bool, bool)
        Whether rows are shown from the bottom up, columns from right to left.
    words : str
        What is up and what is left, of volumes.
    """

    pixels: Array | None
    extent: tuple[float, float]
    aspect: float = 1.0
    mirrored: tuple[bool, bool] = (False, False)
    words: str = ""

    def size(self, side: int) -> tuple[int, int]:
        """(width, height) on the page, the longer one as given."""
        height, width = self.extent[0] * self.aspect, self.extent[1]
        scale = side / max(height, width, 1e-9)
        return max(4, round(width * scale)), max(4, round(height * scale))

    def html(
        self, side: int, alt: str, drawn: str = "", most: int | None = None, hint: str = ""
    ) -> Html:
        """The picture, with SVG over it in the frame of `extent`; `hint` where the mouse rests."""
        width, height = self.size(side)
        parts = []
        if self.pixels is not None:
            crisp = "image-rendering:pixelated;" * (max(self.pixels.shape[:2]) < side)
            parts.append(
                f'<img alt="{safe(alt)}" src="{data_uri(self.pixels, most)}" '
                # pages have rules for pictures of their own; what is drawn over it must meet it
                f'style="{crisp}width:{width}px;height:{height}px;padding:0;max-width:none">'
            )
        if drawn:
            box = f"0 0 {self.extent[1]:g} {self.extent[0]:g}"
            parts.append(
                f'<svg viewBox="{box}" preserveAspectRatio="none" style="{_HALO};position:absolute;'
                f'left:0;top:0;width:{width}px;height:{height}px">{drawn}</svg>'
            )
        turned = ",".join("-1" if mirrored else "1" for mirrored in reversed(self.mirrored))
        style = f"width:{width}px;height:{height}px"
        if any(self.mirrored):
            style += f";transform:scale({turned})"
        if self.pixels is None:
            style += ";background:rgba(128,128,128,.18)"
        told = f' title="{safe(hint)}"' if hint else ""
        return Html(f'<div class="dkm-pic" style="{style}"{told}>{"".join(parts)}</div>')


# ------------------------------------------------------------------------- of what is there
def shrunk(picture: Array, side: int, *, labels: bool = False) -> Array:
    """(h, w, c) averaged over squares until it is no larger than `side`; labels: one of each."""
    step = max(1, -(-max(picture.shape[:2]) // side))
    if step == 1:
        return picture
    if labels or picture.dtype.kind == "b":
        return picture[::step, ::step]
    height, width = (max(1, n // step) for n in picture.shape[:2])
    # a side shorter than one step is taken as it is
    rows, columns = (min(step, n) for n in picture.shape[:2])
    blocks = picture[: height * rows, : width * columns]
    blocks = blocks.reshape(height, rows, width, columns, -1)
    mean: Array = blocks.mean(axis=(1, 3)).astype(picture.dtype)
    return mean


def flat(values: Array, axes: int) -> Array:
    """(h, w, c) of ``(*space[, c])`` with so many axes of space: of volumes the middle slice."""
    if values.ndim == axes:
        values = values[..., None]
    while values.ndim > 3:
        values = values[len(values) // 2]
    while values.ndim < 3:
        values = values[None]
    return values[..., :_CHANNELS]


def upright(space: Space | None, extent: tuple[float, float]) -> Plane:
    """An empty plane along the last two axes, as people who read scans look at it: superior or
    anterior is up, and the patient's right, or anterior, is left."""
    if space is None:
        return Plane(None, extent)
    aspect = space.spacing[1] / space.spacing[2]
    rows, columns = space.axcodes[1], space.axcodes[2]
    mirrored = rows in "SA", columns in "RA"
    opposite = dict(zip("RLAPSI", "LRPAIS", strict=True))
    up = rows if mirrored[0] else opposite[rows]
    left = columns if mirrored[1] else opposite[columns]
    return Plane(None, extent, aspect, mirrored, f"{up} is up, {left} is left")


# ------------------------------------------------------------------------- of images
def cost(view: ImageView, region: Region) -> int:
    """Samples that have to be decoded for a region."""
    tiles = region.cells(view.tile_shape).times(view.tile_shape).clip(view.spatial_shape)
    if view.uri is not None and view.uri.endswith(".gz"):  # a stream: all that lies before, too
        tiles = Region.of(view.spatial_shape)
    scale = getattr(view, "scale", None) or (1.0,)
    return round(tiles.size * math.prod(scale) * math.prod(view.channel_shape))


def slide_picture(slide: Slide, side: int, most: int = CHEAP) -> Array | None:
    """A small picture (h, w, c) as `Slide.get_thumbnail`; None where it would cost too much."""
    width, height = slide.dimensions
    ratio = max(1.0, width / side, height / side)
    level = slide.levels[slide.get_best_level_for_downsample(ratio)]
    if math.prod(level.shape) <= most:
        return slide.get_thumbnail((side, side))
    # what lies next to it is too large, so that a coarser one has to do
    if math.prod(slide.levels[-1].shape) > most:
        return None
    view = slide.view(level=slide.level_count - 1)
    return view.read(Region.of(view.spatial_shape))


def slide_plane(slide: Slide, side: int, most: int = CHEAP) -> Plane:
    """A slide and where its pixels lie; only an outline where a picture would cost too much."""
    width, height = slide.dimensions
    picture = slide_picture(slide, side, most)
    shown = None if picture is None else display(picture[..., :_CHANNELS], slide.info)
    return Plane(shown, (height, width))


def volume_plane(
    volume: Volume, side: int, most: int = CHEAP, orientation: str | None = None
) -> Plane:
    """The middle slice of a volume, as it is stored or in another orientation."""
    whole = volume.view(orientation=orientation)
    plane = upright(whole.space, (whole.shape[1], whole.shape[2]))
    view = volume.view(level=len(volume.levels) - 1, orientation=orientation)
    values = middle(view, side, most)
    return plane if values is None else replace(plane, pixels=display(values, volume.info))


def view_plane(view: ImageView, side: int, most: int = CHEAP) -> Plane:
    """Any image at one resolution, of three axes the middle slice; extent in its own pixels."""
    height, width = (1, *view.spatial_shape)[-2:]
    space = view.space if view.spatial_ndim == 3 else None
    plane, values = upright(space, (height, width)), middle(view, side, most)
    return plane if values is None else replace(plane, pixels=display(values))


def middle(view: ImageView, side: int, most: int = CHEAP) -> Array | None:
    """(h, w, c) of the middle of a view, as a picture no larger than `side`; None where that would
    cost too much, or nobody knows what it costs."""
    if not all(view.shape) or view.spatial_ndim not in (2, 3) or not _known(view):
        return None
    height, width = view.spatial_shape[-2:]
    lead = tuple(n // 2 for n in view.spatial_shape[:-2])
    if isinstance(view, ArrayView):
        step = -(-max(height, width) // side)
        part = view.array[(*lead, slice(None, None, step), slice(None, None, step))]
        return flat(np.asarray(part.compute(scheduler=dask.get)), 2)
    region = Region((*lead, 0, 0), (*(1 for _ in lead), height, width))
    if cost(view, region) > most:
        return None
    values = flat(view.read(region), view.spatial_ndim)
    coloured = values.shape[2] == 3 and values.dtype == np.uint8
    return shrunk(values, side, labels=not coloured)


def _known(view: ImageView) -> bool:
    """Whether it is known what reading costs: of files, and of arrays that lie in memory. Others
    have to be computed."""
    if isinstance(view, VolumeView):
        return _known(view.source)
    if isinstance(view, SlideView):
        return True
    array = view.array if isinstance(view, ArrayView) else None
    if array is None or array.npartitions > _BLOCKS or len(array.dask.layers) > 1:
        return False
    layer = array.dask.layers.get(array.name)
    blocks = layer.values() if isinstance(layer, MaterializedLayer) else [None]
    return all(isinstance(getattr(b, "value", b), np.ndarray) for b in blocks)
