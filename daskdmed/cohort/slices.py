"""A volume of which every slice is a file of its own, as one lazy array.

One Dask block per file, so that whoever reads a part opens the files of that part. Only the first
file is opened to learn what a slice is; one that differs says so when it is read. Not covered:
which files of a folder belong together (`daskdmed.cohort.scans`), DICOM series, which say
themselves how their slices lie (`daskdmed.open_volume`).
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from daskdmed.core.errors import (
    CorruptImageError,
    DaskdmedError,
    DatasetError,
    ImageError,
    UnsupportedImageError,
    listing,
)
from daskdmed.core.extras import extra
from daskdmed.core.places import local
from daskdmed.core.types import Array, PathLike
from daskdmed.images.source import fingerprint
from daskdmed.images.volumes.hdf5 import arrays_in, open_unlocked
from daskdmed.images.volumes.heaps import watched

_HDF5 = b"\x89HDF\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: what a user is told of formats
_FORMATS = "HDF5, .npy, TIFF, PNG and what else imagecodecs decodes"


def stack_files(paths: PathLike | Iterable[PathLike], axis: int, dataset: str | None) -> Any:
    """Slices in files as a lazy Dask array (z, y, x[, c]), see `Record.stack`."""
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph
    from dask.task_spec import Task

    if axis not in (0, 1, 2):
        raise DatasetError(f"axis={axis!r} is the axis along which slices lie: 0, 1 or 2")
    files = find_files(paths)
    marks = [fingerprint(file) for file in files]
    first = read_slice(files[0], dataset)
    kind = (first.shape, first.dtype)
    extents: list[Any] = [(n,) for n in first.shape]
    chunks = (*extents[:axis], (1,) * len(files), *extents[axis:])
    name = f"slices-{tokenize(list(zip(files, marks, strict=True)), axis, dataset)}"
    blank = [0] * len(chunks)
    graph = {}
    for number, (file, mark) in enumerate(zip(files, marks, strict=True)):
        key = (name, *blank[:axis], number, *blank[axis + 1 :])
        graph[key] = Task(key, _block, file, mark, dataset, axis, *kind)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=())
    return da.Array(layers, name, chunks, dtype=first.dtype)


def find_files(paths: PathLike | Iterable[PathLike]) -> list[str]:
    """Files of a pattern in natural order ("slice_2" before "slice_10"), or a list as it is."""
    if isinstance(paths, (str, os.PathLike)):
        pattern = str(local(paths, "slices in files", DatasetError))
        if not glob.has_magic(pattern):
            raise DatasetError(
                f"{pattern}: the files of a volume are given as a pattern, such as "
                "'scan/*.png', or as a list in order; one file is Record(path)"
            )
        files = sorted(glob.glob(pattern, recursive=True), key=natural)
        if not files:
            raise DatasetError(f"{pattern}: no file matches; check the folder and the pattern")
        return files
    files = [str(local(path, "slices in files", DatasetError)) for path in paths]
    twice = [file for file, n in Counter(files).items() if n > 1]
    if not files or twice:
        what = f"{listing(twice)} more than once" if twice else "no files"
        raise DatasetError(f"a volume is made of one file per slice, got {what}")
    return files


def natural(name: str) -> tuple[Any, ...]:
    """A key to sort names by, in which numbers count as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(p) if i % 2 else p.lower() for i, p in enumerate(parts)), name


def read_slice(path: str, dataset: str | None) -> Array:
    """A slice (y, x[, c]) in the machine's byte order; axes of one pixel behind (y, x) that stand
    for the missing third are left out, as MedSegPy's (y, x, 1[, c])."""
    try:
        found = _decode(path, dataset)
    except DaskdmedError:
        raise
    except Exception as error:
        raise CorruptImageError.of(path, f"{type(error).__name__}: {error}") from error
    if found.ndim > 2 and found.shape[2] == 1:
        found = found[:, :, 0]
    if found.ndim not in (2, 3) or 0 in found.shape or found.dtype.kind not in "biuf":
        raise UnsupportedImageError.of(
            path, f"a slice is numbers (y, x[, c]), not {found.dtype} of shape {found.shape}"
        )
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _decode(path: str, dataset: str | None) -> Array:
    with open(path, "rb") as file:
        head = file.read(8)
    if head == _HDF5:
        return _decode_hdf5(path, dataset)
    if dataset is not None:
        raise UnsupportedImageError.of(path, f"dataset={dataset!r} is for HDF5, this is none")
    if head.startswith(_NPY):
        values: Array = np.load(path, allow_pickle=False)
        return values
    if head.startswith(_TIFF):
        import tifffile

        return np.asarray(tifffile.imread(path))
    import imagecodecs

    try:
        return np.asarray(imagecodecs.imread(path))
    except Exception as error:
        raise UnsupportedImageError.of(path, f"{error}; slices are {_FORMATS}") from error


def _decode_hdf5(path: str, dataset: str | None) -> Array:
    extra("h5py", "volumes", f"{path} is HDF5, which needs")
    # looking is what HDF5 would not come back from where the file is damaged
    with watched(path) as file:
        names = [str(array.name).strip("/") for array in arrays_in(file)]
    if not names:
        raise UnsupportedImageError.of(path, "it has no array of numbers, (y, x) at least")
    if dataset is None and len(names) > 1:
        raise DatasetError(
            f"{path} holds {len(names)} arrays: {listing(names)}; say which with dataset="
        )
    chosen = (dataset or names[0]).strip("/")
    if chosen not in names:
        raise DatasetError(f"{path} has no array {chosen!r}; it has {listing(names)}")
    with open_unlocked(path) as file:
        return np.asarray(file[chosen][()])


def _block(
    path: str, mark: str, dataset: str | None, axis: int, shape: tuple[int, ...], dtype: Any
) -> Array:
    """A slice as a block of the array."""
    if fingerprint(path) != mark:
        raise ImageError.of(path, "the file changed since the record was made; make it anew")
    found = read_slice(path, dataset)
    if found.shape != shape or found.dtype != dtype:
        raise ImageError.of(
            path,
            f"the slice is {found.dtype} of shape {found.shape}, the first of its volume "
            f"{dtype} of {shape}; leave it out, or bring it to the others' form",
        )
    return np.expand_dims(found, axis)
