"""Series of pages as tifffile arranges them, the same of its old and its new versions.

From 2026.5.2 on ``tif.series`` is called to be told axes of length 1 too, in series that are other
objects than without; before, each series told both, and plain ones had a private name.

Not covered: which series is the slide (`daskdmed.images.tiff.vendors`), and which pages of it are
read (`daskdmed.images.tiff.stack`).
"""

from __future__ import annotations

from typing import Any


def arranged(tif: Any) -> list[Any]:
    """The series of a file, the same objects each time."""
    series = tif.series
    return list(series(squeeze=False) if callable(series) else series)


def plain(tif: Any) -> list[Any]:
    """Pages that are alike as one series each, whatever a description says of them."""
    older = getattr(tif, "_series_generic", None)
    found = tif.series(kind="generic", squeeze=False) if older is None else older()
    return list(found or ())


def axes(level: Any) -> str:
    """Letters of all axes of a series, or of a level of it."""
    return str(level.get_axes(False) if hasattr(level, "get_axes") else level.axes)


def extents(level: Any) -> tuple[int, ...]:
    """Lengths of all axes of a series, or of a level of it."""
    return tuple(level.get_shape(False) if hasattr(level, "get_shape") else level.shape)


def shown(level: Any) -> str:
    """Axes and lengths for messages, those of length 1 left out."""
    every = zip(axes(level), extents(level), strict=True)
    kept = [(letter, extent) for letter, extent in every if extent != 1 or letter in "YX"]
    return f"{''.join(letter for letter, _ in kept)} {tuple(extent for _, extent in kept)}"
