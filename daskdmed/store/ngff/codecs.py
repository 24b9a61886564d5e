"""Compressors by name, for both formats of Zarr.

Not covered: lossy ones; the pixels of a slide come back as they were.
"""

from __future__ import annotations

from typing import Any

from daskdmed.core.errors import UsageError

#: a name, None for raw pixels, or a codec object
Compressor = Any
_NAMES = ("zstd", "blosc", "gzip")
_ZSTD_LEVEL, _GZIP_LEVEL = 3, 5


def compressors_for(compressor: Compressor, version: str) -> Any:
    """What ``zarr.Group.create_array(compressors=...)`` takes.

    Parameters
    ----------
    compressor : {"zstd", "blosc", "gzip"}, None or codec
        By name: Zstandard at level 3; the same with bytes shuffled, for samples of several
        bytes; gzip at level 5, which every reader has.
    version : {"0.4", "0.5"}
        Of OME-Zarr.

    Raises
    ------
    UsageError
        An unknown name.
    """
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
