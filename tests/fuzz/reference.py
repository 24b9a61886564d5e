"""The same bytes by others: tifffile, nibabel, pydicom, NumPy, h5py, zarr and shapely.

A comparison is made where it is defined: the other reader gives values without an error or a
complaint of its own, and means the same by them. Where the library has a reason to differ (white
that is 0, blended alpha, a choice among images), nothing is compared.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tests.fuzz.judge import Finding, Trial, _same


def agrees(trial: Trial) -> bool:
    """Whether another reader gives the same; a `Finding` where it gives something else."""
    if trial.opened is None:
        return False
    compare = _COMPARE.get(_kind(trial))
    return compare is not None and compare(trial)


def _kind(trial: Trial) -> str:
    backend = getattr(trial.opened, "backend", "")
    return str(backend) if backend else trial.seed.opener


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


@contextlib.contextmanager
def _listening() -> Iterator[Callable[[], bool]]:
    """Whether anything was logged or warned of meanwhile."""
    handler = _Complaints()
    logging.getLogger().addHandler(handler)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            yield lambda: bool(handler.count or warned)
        finally:
            logging.getLogger().removeHandler(handler)


def _others(read: Callable[[], Any]) -> Any:
    """What another reader gives; None where it raises or complains."""
    with _listening() as complained:
        try:
            found = read()
        except Exception:
            return None
        return None if complained() else found


def _differs(trial: Trial, who: str, ours: Any, theirs: Any) -> Finding:
    count = ""
    if np.shape(ours) == np.shape(theirs):
        count = f", {np.count_nonzero(np.asarray(ours) != theirs)} values of {np.size(ours)} differ"
    return Finding("pixels", f"{who} gives {_about(theirs)}, the library {_about(ours)}{count}")


def _about(values: Any) -> str:
    a = np.asarray(values)
    return f"{a.shape} {a.dtype} {a.ravel()[:4].tolist()}..."


# -------------------------------------------------------------------- TIFF
def _tiff(trial: Trial) -> bool:
    import tifffile

    def read() -> list[Any]:
        with tifffile.TiffFile(trial.path) as tif:
            return [level for s in tif.series for level in map(_tiff_level, s.levels) if level]

    found = _others(read)
    if not found:
        return False
    compared = 0
    for ours in trial.levels.values():
        alike = [a for key, a in found if a.shape == ours.shape and a.dtype == ours.dtype]
        if not alike:
            continue
        compared += 1
        if not any(_same(ours, a) for a in alike):
            raise _differs(trial, "tifffile", ours, alike[0])
    return compared > 0


def _tiff_level(level: Any) -> tuple[Any, Any] | None:
    """Pixels of a level as (y, x, c), where the library means the same by them."""
    key = level.keyframe
    pages = [p for p in level.pages if p is not None]
    if int(key.photometric) not in (1, 2, 6) or key.extrasamples or key.is_ndpi or key.is_scn:
        return None
    if not all(all(p.dataoffsets) and all(p.databytecounts) for p in pages):
        return None  # tiles that are not there are the background here, 0 there
    if key.is_tiled and max(key.tilewidth, key.tilelength) > 1024:
        return None  # tifffile makes noise of a JPEG that is smaller
    if int(key.compression) == 7 and key.is_jfif and int(key.photometric) == 2:
        return None  # the tag counts here, as with OpenSlide; there the marker
    if int(key.compression) in (33003, 33004, 33005) or len(pages) != len(level.pages):
        return None
    if int(key.compression) == 50001 and not key.is_tiled and _is_wider(pages[0]):
        return None  # cut at the right, as libtiff does it; there rows are joined
    if any(0 in p.databytecounts or 0 in p.dataoffsets for p in pages) or level.size > 1 << 21:
        return None
    axes = level.get_axes(True) if hasattr(level, "get_axes") else level.axes
    found = level.asarray()
    if found.ndim != len(axes):
        return None
    if axes == "YX":
        return key, found[..., None]
    if axes == "YXS":
        return key, found
    if axes in ("SYX", "CYX"):
        return key, np.moveaxis(found, 0, -1)
    return None


def _is_wider(page: Any) -> bool:
    """Whether the stream of a WebP strip is wider than the image."""
    import imagecodecs

    page.parent.filehandle.seek(page.dataoffsets[0])
    strip = imagecodecs.webp_decode(page.parent.filehandle.read(page.databytecounts[0]))
    return bool(strip.shape[1] > page.keyframe.imagewidth)


def _raster(trial: Trial) -> bool:
    """Pictures that Pillow shows as they are stored."""
    from PIL import Image

    def read() -> Any:
        with Image.open(trial.path) as image:
            turned = image.getexif().get(0x0112, 1) != 1
            if image.mode not in ("RGB", "L") or turned or "transparency" in image.info:
                return None
            return np.atleast_3d(np.asarray(image))

    found, ours = _others(read), trial.levels.get(0)
    if found is None or ours is None or found.shape != ours.shape or found.dtype != ours.dtype:
        return False
    # lossy formats are decoded by other versions of the same libraries
    lossy = trial.path.suffix in (".jpg", ".jp2", ".j2k", ".webp")
    apart = np.abs(found.astype(int) - ours).max(initial=0)
    if apart > (8 if lossy else 0):
        raise _differs(trial, "Pillow", ours, found)
    return True


# -------------------------------------------------------------------- volumes
def _nifti(trial: Trial) -> bool:
    import nibabel as nib

    if 0 not in trial.levels:
        return False

    def read() -> Any:
        image: Any = nib.load(trial.path)
        values = np.asanyarray(image.dataobj)
        time = trial.seed.options.get("time")
        return values[..., time] if time is not None and values.ndim == 4 else values

    found = _others(read)
    if found is None or found.dtype.names or found.ndim < 3 or not _begins(trial):
        return False
    ours = trial.levels[0]
    theirs = (
        found.reshape(found.shape[:3]) if found.ndim > 3 and found[0, 0, 0].size == 1 else found
    )
    theirs = theirs.T
    if theirs.shape != ours.shape:
        return False
    with np.errstate(all="ignore"):
        theirs = theirs.astype(ours.dtype)
    if not np.allclose(ours, theirs, rtol=1e-5, atol=0, equal_nan=True):
        raise _differs(trial, "nibabel", ours, theirs)
    return True


def _begins(trial: Trial) -> bool:
    """Whether the header says where voxels begin; without, nibabel takes the header for voxels."""
    data = trial.seed.files[trial.seed.main]
    head = zlib.decompressobj(31).decompress(data, 400) if data[:2] == b"\x1f\x8b" else data
    first = head[108:112] if head[344:347] in (b"n+1", b"ni1") else head[168:176]
    return bool(first.strip(b"\0\x80")) or trial.path.name.endswith(".hdr")


def _dicom(trial: Trial) -> bool:
    import pydicom

    if 0 not in trial.levels or len(trial.seed.files) > 1:
        return False
    if trial.path.read_bytes().count(b"\xe0\x7f\x10\0") > 1:
        return False  # of two that are the pixels it is the other there

    def read() -> Any:
        data = pydicom.dcmread(trial.path)
        if "PerFrameFunctionalGroupsSequence" in data or "GridFrameOffsetVector" in data:
            return None  # frames have an order, and values, of their own
        if data.HighBit + 1 != data.BitsStored or _signs_differ(data):
            return None  # pydicom takes the lowest bits, and shifts what is signed
        values = data.pixel_array
        slope = float(data.get("RescaleSlope") or data.get("DoseGridScaling") or 1)
        return values * slope + float(data.get("RescaleIntercept") or 0)

    found = _others(read)
    ours = trial.levels[0]
    if found is None or found.size != ours.size:
        return False
    if not np.allclose(ours, found.reshape(ours.shape), rtol=1e-5, equal_nan=True):
        raise _differs(trial, "pydicom", ours, found.reshape(ours.shape))
    return True


def _signs_differ(data: Any) -> bool:
    """Whether a JPEG 2000 stream and the header contradict each other about the sign."""
    at = data.PixelData.find(b"\xff\x4f\xff\x51")
    return at >= 0 and data.PixelData[at + 42] >> 7 != data.PixelRepresentation


def _npy(trial: Trial) -> bool:
    found = _others(lambda: np.load(trial.path, allow_pickle=False))
    return _whole(trial, "numpy", found)


def _hdf5(trial: Trial) -> bool:
    import h5py

    def read() -> Any:
        with h5py.File(trial.path, "r", locking=False) as file:
            return file[trial.opened.properties["hdf5.dataset"]][()]

    return _whole(trial, "h5py", _others(read))


def _whole(trial: Trial, who: str, found: Any) -> bool:
    """Of arrays that are the volume as they are."""
    ours = trial.levels.get(0)
    if found is None or ours is None or found.size != ours.size:
        return False
    theirs = found.reshape(ours.shape)
    if not _same(ours, theirs.astype(ours.dtype)):
        raise _differs(trial, who, ours, theirs)
    return True


def _zarr(trial: Trial) -> bool:
    import zarr

    if trial.path.is_file() or any(map(_leaves_memory, trial.seed.files.values())):
        return False
    compared = 0
    for ours in trial.levels.values():
        found, again = (
            _others(lambda: _arrays(zarr.open(str(trial.path), mode="r"))) for _ in "ab"
        )
        if found is None or again is None or not all(map(np.array_equal, found, again)):
            continue
        alike = []
        for array in found or ():
            if array.size == ours.size and array.dtype == ours.dtype:
                alike += [array, np.moveaxis(array, 0, -1)]
        if found and len(found) * 2 >= len(alike) > 0:
            compared += 1
            alike = [a.squeeze() for a in alike if a.squeeze().shape == ours.squeeze().shape]
            if not any(_same(a, ours.squeeze()) for a in alike):
                raise _differs(trial, "zarr", ours, alike[-1] if alike else ())
    return compared > 0


def _leaves_memory(data: bytes) -> bool:
    """Whether this is a chunk of Blosc that is damaged so that other memory shows: what was there
    before, or lies behind a chunk that is cut off."""
    from numcodecs import blosc

    size, stored = (int.from_bytes(data[at : at + 4], "little") for at in (4, 12))
    if data[:1] != b"\2" or size > 1 << 20:
        return False
    if stored > len(data):
        return True
    outs = [bytearray(value * size) for value in (b"\0", b"\xff")]
    try:
        for out in outs:
            blosc.decompress(data, out)
    except Exception:
        return False
    return outs[0] != outs[1]


def _arrays(node: Any) -> list[Any]:
    if hasattr(node, "members"):
        nodes = [child for _, child in node.members() if hasattr(child, "chunks")]
    else:
        nodes = [node]
    return [np.asarray(n[...]) for n in nodes if n.size < 1 << 20]


# -------------------------------------------------------------------- annotations
def _annotations(trial: Trial) -> bool:
    """Every valid polygon and point of GeoJSON that shapely reads is there."""
    import shapely
    from shapely.geometry import shape

    if trial.seed.family != "geojson":
        return False
    data = next(iter(trial.seed.files.values()))

    def read() -> Any:
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        document = json.load(io.BytesIO(text))
        features = document["features"] if isinstance(document, Mapping) else document
        shapes = [shape(f["geometry"]) for f in features if f.get("geometry")]
        return [_without_empty(s) for s in shapes if s.is_valid and not s.is_empty and not s.has_z]

    found = _others(read)
    if not found:
        return False
    there = [a.geometry for a in trial.opened]
    for one in found:
        if not any(shapely.equals_exact(one, other, 1e-9) for other in there):
            raise Finding("pixels", f"shapely has {one.wkt[:200]}, the library not")
    return True


def _without_empty(shape: Any) -> Any:
    """Without parts that are empty, which the library leaves out."""
    parts = getattr(shape, "geoms", None)
    if parts is None or not any(part.is_empty for part in parts):
        return shape
    return type(shape)([part for part in parts if not part.is_empty])


_COMPARE: Mapping[str, Callable[[Trial], bool]] = {
    "tiff": _tiff,
    "raster": _raster,
    "nifti": _nifti,
    "dicom": _dicom,
    "npy": _npy,
    "hdf5": _hdf5,
    "zarr": _zarr,
    "zarr-volume": _zarr,
    "annotations": _annotations,
}
