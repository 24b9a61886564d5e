"""The levels of an image in a group: found, made, compressed, and the boxes of each write.

For both formats of Zarr. Not covered: lossy compressors; the pixels of a slide come back as
they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import zarr

from daskdmed.core.errors import StoreError, UsageError
from daskdmed.core.region import Region
from daskdmed.images.ngff.metadata import MALFORMED, Multiscale
from daskdmed.store.location import Location

#: a name, None for raw pixels, or a codec object
Compressor = Any
_NAMES = ("zstd", "blosc", "gzip")
_ZSTD_LEVEL, _GZIP_LEVEL = 3, 5


def compressors_for(compressor: Compressor, version: str) -> Any:
    """What ``create_array(compressors=...)`` takes. By name: Zstandard at level 3; the same with
    bytes shuffled, for samples of several bytes; gzip at level 5, which every reader has."""
    if compressor is None:
        return None
    if not isinstance(compressor, str):
        return compressor
    if compressor not in _NAMES:
        raise UsageError(f"compressor must be one of {_NAMES}, None or a codec, got {compressor!r}")
    if version == "0.4":
        import numcodecs  # type: ignore[import-untyped]

        if compressor == "zstd":
            return numcodecs.Zstd(level=_ZSTD_LEVEL)
        if compressor == "gzip":
            return numcodecs.GZip(level=_GZIP_LEVEL)
        return numcodecs.Blosc(cname="zstd", clevel=_ZSTD_LEVEL, shuffle=numcodecs.Blosc.SHUFFLE)
    import zarr.codecs as codecs

    if compressor == "zstd":
        return codecs.ZstdCodec(level=_ZSTD_LEVEL)
    if compressor == "gzip":
        return codecs.GzipCodec(level=_GZIP_LEVEL)
    return codecs.BloscCodec(cname="zstd", clevel=_ZSTD_LEVEL, shuffle="shuffle")


def create_level(
    group: zarr.Group,
    path: str,
    *,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: str,
    fill_value: float,
    axes: Sequence[str],
    shards: Sequence[int] | None = None,
    compressors: Any = "auto",
    overwrite: bool = False,
) -> zarr.Array[Any]:
    """The array of one level. In Zarr v3 its dimension names are the axes; in v2 its chunks are
    named as OME-Zarr 0.4 wants it."""
    optional: dict[str, Any] = {}
    if group.metadata.zarr_format == 2:
        optional["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    else:
        optional["dimension_names"] = tuple(axes)
    if shards is not None:
        optional["shards"] = tuple(shards)
    return group.create_array(
        path,
        shape=tuple(shape),
        chunks=tuple(chunks),
        dtype=dtype,
        fill_value=fill_value,
        compressors=compressors,
        overwrite=overwrite,
        **optional,
    )


def write_units(array: Any) -> Iterator[Region]:
    """The boxes that are one object each in the store: shards, else chunks."""
    return Region.of(array.shape).tiles(array.shards or array.chunks)


def stored_image(location: Location, group: zarr.Group) -> Multiscale:
    """The first multiscale image of a group, whose levels are there and say where they lie."""
    try:
        image = Multiscale.parse(group.attrs.asdict())
        if image is None:
            raise ValueError("it has no 'multiscales'")
        for level in image.levels:
            array: Any = group[level.path]
            if not len(level.scale) == len(array.shape) == len(image.axes):
                raise ValueError(
                    f"level {level.path!r} of shape {array.shape} has not {len(image.axes)} axes, "
                    "or no scale"
                )
    except MALFORMED as error:
        raise StoreError(
            f"{location} holds no OME-Zarr image with named axes ({type(error).__name__}: "
            f"{error}); results over one axis or more than three cannot have a pyramid"
        ) from error
    return image
