"""What a tissue mask is made from: any image as a small picture on the grid of the mask.

Slides are read from the nearest coarse level, everything else slab by slab with exact area
means, so that memory does not grow with the image. Not covered: what is tissue
(`daskdmed.cohort.tissue.methods`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskdmed.cohort.sources import Image
from daskdmed.core.errors import GeometryError, ResolutionError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array, OnTileError
from daskdmed.core.view import ImageView
from daskdmed.images.filecache import cache
from daskdmed.images.protocols import SlideInfo
from daskdmed.images.resample import area_means
from daskdmed.images.slide import Slide
from daskdmed.images.view import SlideView
from daskdmed.images.volumes.volume import Volume

#: micrometers per mask pixel, unless the slide is very large or very small
DEFAULT_UM = 8.0
#: what counts as the resolution of level 0 where none is known, for the default grid only
ASSUMED_UM = 0.5
#: longest and shortest a mask is by default along its longer side
LONGEST, SHORTEST = 2048, 256
#: most pixels of a mask
MAX_PIXELS = 2**25
#: pixels of a mask of a volume by default
VOLUME_PIXELS = 2**23


@dataclass(frozen=True)
class Source:
    """An image that a mask is made of.

    `bright`: three uint8 channels on a bright background, a stained slide. `token` names the
    content for the cache; None: of no use in another process. `levels` are the downsamples
    below level 0, finest first. `read` makes a picture of about a shape of the whole image.
    """

    name: str
    shape0: tuple[int, ...]
    mpp: tuple[float, float] | None
    background: Array
    bright: bool
    token: str | None
    levels: tuple[tuple[float, ...], ...]
    read: Callable[[tuple[int, ...]], Array]
    #: of level 0, of a volume
    space: Space | None = None
    #: of a slide, for whoever shows it
    info: SlideInfo | None = None

    def um(self, shape: tuple[int, ...]) -> float | None:
        """Micrometers per pixel of a picture, the mean of both axes; None when unknown."""
        if self.mpp is None or len(shape) != 2:
            return None
        steps = [e / n * m for e, n, m in zip(self.shape0, shape, self.mpp[::-1], strict=True)]
        return math.sqrt(steps[0] * steps[1])


def source_of(image: Image) -> Source:
    """An image as a source."""
    opened = image.open()
    if isinstance(opened, Slide):
        return _from_slide(opened, image.request.tile_error)
    if isinstance(opened, SlideView):
        return _from_slide(_slide_of(opened), opened.tile_error)
    return _from_view(opened.view() if isinstance(opened, Volume) else opened)


def _slide_of(view: SlideView) -> Slide:
    with cache.lease(view.key) as reader:
        info = reader.info
    info = info if view.channels is None else info.picked(view.channels)
    if view.srgb:
        info = replace(info, background=view.background_value)
    if view.mpp is None:
        return Slide(view.key, info, None, view.channels, view.srgb)
    own = (view.mpp[0] / view.downsample[1], view.mpp[1] / view.downsample[0])
    same = info.mpp is not None and np.allclose(own, info.mpp, rtol=1e-9, atol=0)
    return Slide(view.key, info, None if same else own, view.channels, view.srgb)


def _from_slide(slide: Slide, tile_error: OnTileError = "raise") -> Source:
    width, height = slide.dimensions
    channels = slide.levels[0].shape[2]
    background = np.asarray(slide.background, slide.dtype)
    # level-0 pixels as the unit of length: any downsample can be asked for
    unit = slide.with_mpp((1.0, 1.0))

    def read(shape: tuple[int, ...]) -> Array:
        view = unit.view(mpp=(width / shape[1], height / shape[0]), tile_error=tile_error)
        return view.read(Region((0, 0), view.shape[:2]))

    return Source(
        name=slide.uri,
        shape0=(height, width),
        mpp=slide.mpp,
        background=background,
        bright=_bright(slide.dtype, channels, background),
        # what was filled in for damaged tiles is no content
        token=slide.token if tile_error == "raise" else None,
        levels=tuple(level.downsample for level in slide.levels[1:]),
        read=read,
        info=slide.info,
    )


def _from_view(view: ImageView) -> Source:
    axes = view.spatial_ndim
    channels = view.shape[axes] if len(view.shape) > axes else 0
    # nothing is padded here: intensities are measured from 0 where nothing else was said
    background = view.as_labels().background
    shape0 = tuple(
        max(1, round(n * d)) for n, d in zip(view.shape[:axes], view.downsample, strict=True)
    )
    mpp = view.mpp
    if mpp is not None and axes >= 2:
        mpp = (mpp[0] / view.downsample[-1], mpp[1] / view.downsample[-2])
    if 0 in view.shape:
        raise GeometryError(f"{view!r}: an image of shape {view.shape} has no pixels")
    return Source(
        name=view.uri or repr(view),
        shape0=shape0,
        mpp=mpp,
        background=background,
        bright=axes == 2 and _bright(view.dtype, channels, background),
        token=None,
        levels=(),
        read=lambda shape: area_means(view, shape),
        # of a volume that was resampled already nobody knows what level 0 was
        space=view.space if set(view.downsample) == {1} else None,
    )


def _bright(dtype: np.dtype[Any], channels: int, background: Array) -> bool:
    return channels == 3 and dtype == np.uint8 and int(background.min()) > 127


# -------------------------------------------------------------------- the grid of the mask
def grid_shape(
    source: Source, resolution: float | None = None, downsample: float | None = None
) -> tuple[int, ...]:
    """Shape of the mask, from micrometers or level-0 pixels per mask pixel."""
    if resolution is not None and downsample is not None:
        raise UsageError("resolution= and downsample= say the same thing; give one of them")
    for name, value in (("resolution", resolution), ("downsample", downsample)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ResolutionError(f"{name} must be a positive number, got {value!r}")
    axes = len(source.shape0)
    if resolution is not None:
        if source.mpp is None or axes != 2:
            raise ResolutionError(
                f"{source.name}: resolution={resolution:g} um means nothing, the image has no "
                "mpp for its axes; give it, Record(..., mpp=0.5), or say downsample= in level-0 "
                "pixels"
            )
        steps = [resolution / m for m in source.mpp[::-1]]
    elif downsample is not None:
        steps = [float(downsample)] * axes
    else:
        steps = _default_steps(source)
    # a mask pixel is never smaller than a pixel
    shape = tuple(
        max(1, math.ceil(n / max(1.0, s) - 1e-6)) for n, s in zip(source.shape0, steps, strict=True)
    )
    if math.prod(shape) > MAX_PIXELS:
        raise UsageError(
            f"{source.name}: a tissue mask of {shape} pixels is larger than {MAX_PIXELS}; ask "
            f"for a coarser one, now it is {tuple(round(s, 3) for s in steps)} level-0 pixels "
            "per mask pixel"
        )
    return shape


def _default_steps(source: Source) -> list[float]:
    if len(source.shape0) != 2:
        step = max(1.0, (math.prod(source.shape0) / VOLUME_PIXELS) ** (1 / len(source.shape0)))
        return [float(math.ceil(step - 1e-6))] * len(source.shape0)
    longest = max(source.shape0)
    pair = source.mpp[::-1] if source.mpp else (ASSUMED_UM, ASSUMED_UM)
    steps = [DEFAULT_UM / m for m in pair]
    # not fewer than SHORTEST pixels on a small image, not more than LONGEST on a large one
    shrink = min(1.0, longest / SHORTEST / max(steps))
    grow = max(1.0, longest / LONGEST / min(steps))
    steps = [s * shrink * grow for s in steps]
    return _on_a_level(steps, source.levels)


def _on_a_level(steps: list[float], levels: tuple[tuple[float, ...], ...]) -> list[float]:
    """Whole multiples of the nearest level, which are cheap to read; never of level 0."""
    if not levels:
        return steps
    fine = [d for d in levels if all(x <= 1.25 * s for x, s in zip(d, steps, strict=True))]
    level = fine[-1] if fine else levels[0]
    times = max(1, round(min(s / d for s, d in zip(steps, level, strict=True))))
    return [d * times for d in level]
