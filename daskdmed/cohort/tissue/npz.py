"""The file of a tissue mask: NumPy's ``.npz`` without pickles.

It appears whole or not at all, and is read in bounded memory whatever it claims to hold. Not
covered: masks of other programs (`daskdmed.cohort.tissue.files`).
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from daskdmed.core.errors import CorruptImageError, DaskdmedError, ImageNotFoundError
from daskdmed.core.files import new_file
from daskdmed.core.places import local
from daskdmed.core.space import Space
from daskdmed.core.types import Array, PathLike
from daskdmed.images.volumes.npy import MALFORMED

_MEMBER_BYTES = 2**26
_OF_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def write_npz(
    path: PathLike,
    data: Array,
    shape0: tuple[int, ...],
    mpp: tuple[float, float] | None,
    affine: Array | None,
    method: str,
    picture: bytes,
) -> None:
    """Write what makes up a mask, in place of a file that is there."""
    with new_file(path, overwrite=True) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            packed=np.packbits(data),
            shape=np.asarray(data.shape, np.int64),
            shape0=np.asarray(shape0, np.int64),
            mpp=np.asarray(mpp or (), np.float64),
            affine=np.zeros((0, 4)) if affine is None else affine,
            method=np.asarray(method),
            picture=np.frombuffer(picture, np.uint8),
        )


def read_npz(path: PathLike) -> dict[str, Any]:
    """Read what `write_npz` wrote, as arguments of `TissueMask`."""
    name = str(local(path, "a tissue mask"))
    if not os.path.exists(name):
        raise ImageNotFoundError(f"{name}: there is no such tissue mask", uri=str(name))
    try:
        return _read(Path(name))
    except (OSError, *MALFORMED, DaskdmedError, *_OF_ZIP) as error:
        raise CorruptImageError(
            f"{name}: not a tissue mask of this library, or damaged "
            f"({type(error).__name__}: {error}); delete it and make it again",
            uri=str(name),
        ) from error


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        largest = max((m.file_size for m in archive.infolist()), default=0)
    if largest > _MEMBER_BYTES:
        raise ValueError(f"an entry of {largest} bytes")
    with np.load(path, allow_pickle=False) as found:
        shape = tuple(int(n) for n in found["shape"])
        packed = found["packed"]
        if not shape or min(shape) < 1 or -(-math.prod(shape) // 8) != packed.size:
            raise ValueError(f"{packed.size} bytes of pixels for the shape {shape}")
        shape0 = tuple(int(n) for n in found["shape0"])
        if len(shape0) != len(shape) or min(shape0) < 1:
            raise ValueError(f"a mask of {shape} pixels over an image of {shape0}")
        mpp = tuple(float(v) for v in found["mpp"])
        # files of earlier releases have none
        affine = found["affine"] if "affine" in found.files else ()
        return {
            "space": Space(affine, shape0) if len(affine) else None,
            "data": np.unpackbits(packed, count=math.prod(shape)).reshape(shape),
            "shape0": shape0,
            "method": str(found["method"][()]),
            "mpp": (mpp[0], mpp[1]) if mpp else None,
            "picture": found["picture"].tobytes(),
        }
