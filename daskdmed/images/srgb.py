"""Colours of a scanner as sRGB: by the ICC profile in the file, with Pillow's ImageCms.

The rendering intent is the profile's own, as in OpenSlide's documentation. Not covered: where a
file keeps its profile (readers), colours of stains (`daskdmed.transforms`).
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import UnsupportedImageError
from daskdmed.core.extras import extra
from daskdmed.core.types import Array

if TYPE_CHECKING:
    from daskdmed.images.filecache import FileKey
    from daskdmed.images.protocols import Reader

#: pixels that are converted at a time; Pillow holds 8 bytes of each beside them
_STRIP = 1 << 20
#: files whose transforms are remembered; the transforms of one scanner are one
_FILES = 256

_lock = threading.Lock()
_known: OrderedDict[FileKey, Any] = OrderedDict()


def transform_of(key: FileKey, reader: Reader) -> Any:
    """ImageCms's transform from the colours of an open file to sRGB; an UnsupportedImageError where
    it has no profile, or one that is of no use for RGB."""
    with _lock:
        known = _known.get(key)
    if known is not None:
        return known
    read = getattr(reader, "icc_profile", None)
    profile: bytes | None = None if read is None else read()
    if not profile:
        raise UnsupportedImageError.of(
            key.uri, "it holds no colour profile, so nobody knows its colours as sRGB; read it "
            "without that conversion"
        )  # fmt: skip
    try:
        made = _transform(profile)
    except ValueError as error:
        raise UnsupportedImageError.of(
            key.uri,
            f"its colour profile of {len(profile)} bytes is of no use for RGB: {error}; read it "
            "without the conversion to sRGB",
        ) from error
    with _lock:
        _known[key] = made
        if len(_known) > _FILES:
            _known.popitem(last=False)
    return made


def convert(values: Array, transform: Any) -> None:
    """Convert (height, width, 3) uint8 in place."""
    image: Any = extra("PIL.Image", "color", "colour profiles need")
    if not values.size:
        return
    rows = max(1, _STRIP // values.shape[1])
    for begin in range(0, len(values), rows):
        part = values[begin : begin + rows]
        part[...] = np.asarray(transform.apply(image.fromarray(np.ascontiguousarray(part))))


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> Any:
    """Kept, because making one takes longer than a block."""
    cms: Any = extra("PIL.ImageCms", "color", "colour profiles need")
    try:
        source = cms.ImageCmsProfile(io.BytesIO(profile))
        intent = cms.getDefaultIntent(source)
        return cms.buildTransform(source, cms.createProfile("sRGB"), "RGB", "RGB", intent)
    except (OSError, cms.PyCMSError) as error:
        raise ValueError(str(error)) from error
