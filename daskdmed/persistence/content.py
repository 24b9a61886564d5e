"""What a user's big-chunk loader gives for a visit: regions to read, pixels of its own, an object.

Not covered: reading regions, and what becomes of failures (`daskdmed.persistence.reading`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from dask.sizeof import sizeof

from daskdmed.core.errors import GeometryError, LoaderError
from daskdmed.core.randomness import Purpose, generator
from daskdmed.core.region import Region
from daskdmed.core.types import Array

if TYPE_CHECKING:
    from daskdmed.persistence.reading import Job, LoadContext


@dataclass(frozen=True, slots=True)
class Content:
    """What a visit holds in place of pixels: any object, as a `BigChunkLoader` gives it.

    Parameters
    ----------
    value : object
        What the collector finds in ``bigchunk.data``. Shared by all draws of the visit: do not
        change it. On a cluster of processes it has to pickle.
    region : Region, optional
        Where it lies, in pixels of the view; default: the big chunk that the grid proposes.
    """

    value: Any
    region: Region | None = None

    def __repr__(self) -> str:
        where = "" if self.region is None else f", {self.region!r}"
        return f"Content({type(self.value).__name__}{where})"

    def __sizeof__(self) -> int:
        """Bytes, by which Dask counts it too."""
        own: int = sizeof(self.value)
        return own + int(sizeof(getattr(self.value, "__dict__", None)))


#: a region to read, or pixels of one
Part: TypeAlias = Region | tuple[Array, Region]


def choose(job: Job) -> Content | list[Part]:
    """Ask the user's loader, and check what it says; an empty list where there is nothing."""
    context, chooser = job.context, job.chooser
    assert context is not None
    assert chooser is not None
    rng = generator(job.rng_place[0], Purpose.LOAD, job.rng_place[1])
    given = chooser(job.view.read, context, rng)
    if given is None:
        return []
    if isinstance(given, np.ndarray):
        given = (given, context.region)
    if _is_pixels(given):
        return [_checked_pixels(job, *given)]
    if _are_regions(given, context):
        return list(_checked_regions(given, context))
    return _checked_content(job, given, context)


def _is_pixels(given: Any) -> bool:
    return (
        isinstance(given, tuple)
        and len(given) == 2
        and isinstance(given[0], np.ndarray)
        and isinstance(given[1], Region)
    )


def _are_regions(given: Any, context: LoadContext) -> bool:
    if isinstance(given, Region):
        return True
    if not isinstance(given, list | tuple):
        return False
    kinds = {isinstance(one, Region) for one in given}
    if kinds == {False}:
        return False
    if kinds != {True}:
        raise LoaderError(
            "the big-chunk loader must return a Region or a sequence of them, pixels, or an "
            f"object of its own, got {given!r:.200}",
            patient=context.patient,
            record=context.record,
        )
    return True


def _inside(region: Region, context: LoadContext) -> Region:
    if not region.size or not region.within(context.shape):
        raise GeometryError(f"{region} lies outside the image of {context.shape} pixels")
    return region


def _checked_regions(given: Region | Sequence[Region], context: LoadContext) -> Sequence[Region]:
    regions = [given] if isinstance(given, Region) else given
    for region in regions:
        _inside(region, context)
    allowed = math.prod(context.bigchunk_size)
    asked = sum(r.size for r in regions)
    if asked > allowed:
        raise GeometryError(
            f"the big-chunk loader chose {asked} pixels in {len(regions)} regions, but "
            f"bigchunk_size {context.bigchunk_size} allows {allowed}; choose less or raise "
            "bigchunk_size"
        )
    return regions


def _checked_pixels(job: Job, data: Array, region: Region) -> tuple[Array, Region]:
    context, view = job.context, job.view
    assert context is not None
    if job.around is not None:
        raise GeometryError(
            "a big-chunk loader that gives pixels of its own cannot be used with context=, which "
            "needs those around them; return a Region"
        )
    _checked_regions(region, context)
    wanted = (*region.shape, *view.channel_shape)
    if data.shape != wanted or data.dtype != view.dtype:
        raise GeometryError(
            f"the big-chunk loader gave pixels of shape {data.shape} {data.dtype}, those of "
            f"{region} have {wanted} {view.dtype}; bring them to that, or wrap what is no image "
            "of the region in daskdmed.Content"
        )
    return data, region


def _checked_content(job: Job, given: Any, context: LoadContext) -> Content:
    content = given if isinstance(given, Content) else Content(given)
    region = context.region if content.region is None else _inside(content.region, context)
    size = content.__sizeof__()
    allowed = math.prod((*context.bigchunk_size, *job.view.channel_shape))
    allowed *= job.view.dtype.itemsize
    if size > allowed:
        raise GeometryError(
            f"the big-chunk loader gave an object of {size} bytes, but the budget counts "
            f"{allowed} for a big chunk of {context.bigchunk_size}; load less or raise "
            "bigchunk_size"
        )
    return Content(content.value, region)
