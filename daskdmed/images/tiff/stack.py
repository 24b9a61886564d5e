"""Which pages of an image are its channels, in one plane of a stack.

The axes of pages are channels, or such along which one plane is read: focal planes, time points.

Not covered: where the tiles of a page lie (`daskdmed.images.tiff.index`), and the choice of one of
several images in a file (`daskdmed.images.tiff.vendors`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError, listing
from daskdmed.images.readers import Planes, choose_planes
from daskdmed.images.refusals import FinalError
from daskdmed.images.source import Source
from daskdmed.images.tiff import series, vendors

#: planes along an axis without a name that are channels; a stack of more is none of channels
MAX_CHANNELS = 256


def choose(level: Any, plane: str, source: Source) -> Planes:
    """The plane that is read of an image: the one asked for, else that in focus, or the first."""
    letters, extents = axes_of_pages(level)
    count = int(np.prod(extents, dtype=np.int64))
    numbers = np.arange(count).reshape(extents)
    lengths, usual = {}, {}
    for axis in stacked_axes(level):
        letter = letters[axis].lower()
        lengths[letter] = extents[axis]
        usual[letter] = _in_focus(level, numbers, axis) if extents[axis] > 1 else 0
    depth = int(level.keyframe.imagedepth)
    if depth > 1:
        lengths["z"] = depth
    return choose_planes(source.uri, plane, lengths, usual)


def pages_of(level: Any, at: Mapping[str, int], source: Source) -> list[Any]:
    """The pages of a level that are channels of one plane, `at` as `choose` gave it.

    Axes count by their order: those of lower levels need not have the letters of the first.
    """
    letters, extents = axes_of_pages(level)
    count = int(np.prod(extents, dtype=np.int64))
    pick: npt.NDArray[Any] = np.arange(count).reshape(extents)
    axes = stacked_axes(level)
    numbered = zip(axes, [*at.values(), *(0 for _ in axes)], strict=False)
    for axis, number in reversed(list(numbered)):
        if number >= extents[axis]:
            raise CorruptImageError.of(
                source.uri,
                f"a level has {extents[axis]} planes along {letters[axis]!r}, plane {number} is "
                "missing; the copy may be incomplete, fetch it again from where it came",
            )
        pick = np.asarray(pick.take(number, axis=axis))
    numbers = pick.ravel().tolist()
    if max(numbers) >= len(level._pages):
        raise UnsupportedImageError.of(
            source.uri,
            f"{count} planes are stored behind one directory (ImageJ "
            "hyperstack); save the file as OME-TIFF",
        )
    return [page_of(level, number, source) for number in numbers]


def stacked_axes(level: Any) -> list[int]:
    """Which axes of pages are no channels."""
    letters, extents = axes_of_pages(level)
    single = level.keyframe.samplesperpixel == 1

    def is_channel(letter: str, extent: int) -> bool:
        return letter == "C" or (letter in "IQS" and single and extent <= MAX_CHANNELS)

    axes = enumerate(zip(letters, extents, strict=True))
    return [i for i, (letter, extent) in axes if not is_channel(letter, extent)]


def axes_of_pages(level: Any) -> tuple[str, tuple[int, ...]]:
    """Letters and extents of the axes along which a level has pages."""
    axes, shape = series.axes(level), series.extents(level)
    keyframe = level.keyframe
    lead = len(axes) - len(keyframe.shape)
    if axes[lead:] != keyframe.axes:
        # grey pages of generic series have a sample axis appended
        lead = len(axes) - len(keyframe.shape) - (1 if axes.endswith("S") else 0)
    return axes[:lead], shape[:lead]


def page_of(level: Any, number: int, source: Source) -> Any:
    """A page of a level that is in this file."""
    page = level[number]
    if level.kind == "ome" and (page is None or page.parent.filehandle.closed):
        text = level.keyframe.parent.ome_metadata or ""
        named = set(re.findall(r'FileName="([^"]+)"', text))
        elsewhere = sorted(named - {os.path.basename(source.uri)})
        if elsewhere or page is not None:
            raise FinalError.of(
                source.uri,
                f"plane {number} of the image lies in another file; its OME-XML "
                f"names {listing(elsewhere)}; convert them to one file (bfconvert)",
            )
    if page is None:
        raise CorruptImageError.of(source.uri, f"plane {number} is missing")
    return page


def _in_focus(level: Any, pages: npt.NDArray[Any], axis: int) -> int:
    numbers = np.moveaxis(pages, axis, 0).reshape(pages.shape[axis], -1)[:, 0].tolist()
    if max(numbers) >= len(level._pages):
        return 0
    return vendors.plane_in_focus([level[n] for n in numbers])
