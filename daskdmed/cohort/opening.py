"""The image that a record names, opened, and seen at a resolution.

One place that tells slides, volumes and arrays apart, and says what each has not. Not covered:
which record of a patient is meant (`daskdmed.cohort.image`), and how pixels are read
(`daskdmed.images`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from daskdmed.cohort.options import SLIDE_OPTIONS, VOLUME_OPTIONS
from daskdmed.core.errors import DatasetError, ResolutionError
from daskdmed.core.places import using
from daskdmed.core.resolution import Resolution
from daskdmed.core.types import OnTileError
from daskdmed.core.view import ImageView
from daskdmed.images.channels import ChannelsLike, with_channels

if TYPE_CHECKING:
    from daskdmed.cohort.record import Record
    from daskdmed.images.slide import Slide
    from daskdmed.images.volumes.volume import Volume


def open_file(record: Record, spatial_ndim: int | None) -> Slide | Volume:
    """The slide or volume of a record of a file, as the record says that it is."""
    if _is_volume(record, spatial_ndim):
        return _volume(record)
    return _slide(record)


def _is_volume(record: Record, spatial_ndim: int | None) -> bool:
    """By its backend, by what is said of it, and else by the file."""
    from daskdmed.images.registry import get_backend, holds_volume, kind_of
    from daskdmed.images.source import normalize_uri

    if record.backend is not None:
        return kind_of(get_backend(record.backend)) == "volume"
    if any(name in VOLUME_OPTIONS for name in record.options):
        return True
    if record.space is not None or record.spacing is not None:
        return True
    if (spatial_ndim or record.spatial_ndim) == 3:
        return True
    with using(record.storage_options):
        return holds_volume(normalize_uri(str(record.uri)))


def _slide(record: Record) -> Slide:
    from daskdmed.images.opening import open_slide

    options = _options(record)
    channels, color = options.pop("channels", None), options.pop("color", None)
    slide = open_slide(str(record.uri), **options)
    slide = slide if record.mpp is None else slide.with_mpp(record.mpp)
    slide = slide if color is None else slide.to_srgb()
    return slide if channels is None else slide.with_channels(channels)


def _volume(record: Record) -> Volume:
    from daskdmed.images.volumes.volume import open_volume

    if record.mpp is not None:
        raise ResolutionError(f"{record.uri}: mpp= is for slides; volumes take spacing=")
    odd = [name for name in SLIDE_OPTIONS if name in record.options]
    if odd:
        raise DatasetError(f"{record.uri}: {odd[0]}= is for slides, this is opened as a volume")
    options = _options(record)
    channels = options.pop("channels", None)
    volume = open_volume(str(record.uri), **options)
    volume = volume if channels is None else volume.with_channels(channels)
    steps = record.spacing
    if steps is not None and len(steps) == 1:
        steps *= 3
    return volume.with_space(record.space, spacing=steps, background=record.background)


def _options(record: Record) -> dict[str, Any]:
    """What the file is opened with."""
    access = {"backend": record.backend, "storage_options": record.storage_options}
    return {**access, **record.options}


def view_of(
    image: Slide | Volume | Record,
    wanted: Resolution,
    *,
    spatial_ndim: int | None,
    orientation: str | None,
    tile_error: OnTileError,
    channels: ChannelsLike | None = None,
) -> ImageView:
    """What is open, or a record of an array, at a resolution; an error for what it has not."""
    from daskdmed.images.slide import Slide
    from daskdmed.images.volumes.view import view_of_array
    from daskdmed.images.volumes.volume import Volume

    if not isinstance(image, (Slide, Volume)):
        asked = Resolution(level=0) if wanted.spacing is not None else wanted
        view = _array_view(image, asked, spatial_ndim)
        view = view if channels is None else with_channels(view, channels)
        return view_of_array(view, wanted.spacing, orientation)
    if channels is not None:
        image = image.with_channels(channels)
    has = 2 if isinstance(image, Slide) else 3
    if spatial_ndim not in (None, has):
        raise DatasetError(
            f"{image.uri}: a {'slide' if has == 2 else 'volume'} has {has} spatial axes, asked for "
            f"{spatial_ndim}; give sizes with one number per axis"
        )
    if isinstance(image, Slide):
        if wanted.spacing is not None or orientation is not None:
            raise ResolutionError(
                f"{image.uri} is a slide: spacing= and orientation= are for volumes, slides take "
                "level=, mpp= or power="
            )
        level = wanted.level or 0
        return image.view(level=level, mpp=wanted.mpp, power=wanted.power, tile_error=tile_error)
    if wanted.mpp is not None or wanted.power is not None:
        raise ResolutionError(
            f"{image.uri} is a volume, asked for {wanted}; use spacing= or level="
        )
    return image.view(
        level=wanted.level or 0,
        spacing=wanted.spacing,
        orientation=orientation,
        tile_error=tile_error,
    )


def _array_view(record: Record, wanted: Resolution, spatial_ndim: int | None) -> ImageView:
    if wanted.level not in (None, 0):
        raise ResolutionError(f"{record!r} is an array and has level 0 only, asked for {wanted}")
    if wanted.power is not None:
        raise ResolutionError(
            f"{record!r} is an array and has no objective power, asked for {wanted}; use level=0"
        )
    if record.spatial_ndim and spatial_ndim and record.spatial_ndim != spatial_ndim:
        raise DatasetError(
            f"{record!r} says spatial_ndim={record.spatial_ndim}, asked for {spatial_ndim}; "
            "give sizes with one number per spatial axis"
        )
    from daskdmed.images.arrayview import ArrayView

    view = ArrayView(
        record.array,
        spatial_ndim or record.spatial_ndim or 2,
        record.mpp,
        spacing=record.spacing,
        space=record.space,
        background=record.background,
    )
    if wanted.mpp is not None and not _same_mpp(wanted.mpp, view.mpp):
        has = "no mpp" if view.mpp is None else f"mpp={view.mpp}"
        raise ResolutionError(
            f"{record!r} is an array with {has}, asked for {wanted}; arrays are not resampled: "
            "use level=0, give Record(array=..., mpp=...), or resample it with Dask first"
        )
    some = record.options.get("channels")
    return view if some is None else with_channels(view, some)


def _same_mpp(a: tuple[float, float], b: tuple[float, float] | None) -> bool:
    return b is not None and all(
        math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True)
    )
