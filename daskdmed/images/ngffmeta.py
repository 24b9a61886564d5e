"""What the metadata of a Zarr hierarchy say about the image in it.

OME-Zarr 0.1 to 0.5 multiscales (Zarr v2 and v3), plain arrays, and plain groups of arrays.
The result is a list of planes: arrays with the positions of their y, x and channel axes.
Not covered: labels, plates and wells, transformations other than scale, images with more
than one time point or z plane (these are arrays for Dask, not slides).
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError
from daskdmed.core.types import Array, Region
from daskdmed.images.protocols import LevelInfo, SlideInfo
from daskdmed.images.zarrstore import metadata_error

logger = logging.getLogger("daskdmed.images")

ASSOCIATED_NAMES = ("label", "macro", "thumbnail")
#: micrometers per unit; UDUNITS names as OME-Zarr has them, and the usual symbols
_UNITS = {
    **dict.fromkeys(("angstrom", "å"), 1e-4),
    **dict.fromkeys(("picometer", "pm"), 1e-6),
    **dict.fromkeys(("nanometer", "nm"), 1e-3),
    **dict.fromkeys(("micrometer", "micron", "um", "µm", "μm"), 1.0),
    **dict.fromkeys(("millimeter", "mm"), 1e3),
    **dict.fromkeys(("centimeter", "cm"), 1e4),
    **dict.fromkeys(("meter", "m"), 1e6),
    "inch": 25400.0,
}
_RGB = ["FF0000", "00FF00", "0000FF"]
#: a chunk is decoded whole; larger ones are no image tiles but a broken or hostile file
_MAX_CHUNK_BYTES = 4 * 2**30
_AS_ARRAY = "open it as a Dask array (dask.array.from_zarr) and use Record(array=...)"


@dataclass(frozen=True, slots=True)
class Plane:
    """A Zarr array seen as (y, x, c).

    Parameters
    ----------
    array : zarr.Array
        The array.
    path : str
        Its path in the hierarchy, "" for the root.
    y, x : int
        Positions of the spatial axes.
    c : int or None
        Position of the channel axis. Every other axis has extent 1.
    """

    array: Any
    path: str
    y: int
    x: int
    c: int | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        shape = self.array.shape
        return shape[self.y], shape[self.x], 1 if self.c is None else shape[self.c]

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Chunk along (y, x); inside a shard, the inner chunk."""
        return self.array.chunks[self.y], self.array.chunks[self.x]

    def read(self, region: Region, out: Array) -> None:
        """Read a region (y, x) into `out` of shape (height, width, channels), any strides."""
        from zarr.core.buffer import default_buffer_prototype

        selection: list[int | slice] = [0] * self.array.ndim
        selection[self.y], selection[self.x] = region.slices
        view, axes = out[..., 0], [self.y, self.x]
        if self.c is not None:
            selection[self.c] = slice(None)
            view, axes = out, [self.y, self.x, self.c]
        view = view.transpose(np.argsort(axes))  # the order in which the array stores them
        buffer = default_buffer_prototype().nd_buffer.from_ndarray_like(view)
        self.array.get_basic_selection(tuple(selection), out=buffer)


@dataclass(frozen=True, slots=True)
class Pyramid:
    """An image as the metadata describe it: levels largest first, and named extras."""

    planes: tuple[Plane, ...]
    associated: Mapping[str, Plane]
    info: SlideInfo


def read_pyramid(uri: str, node: Any) -> Pyramid:
    """Interpret a Zarr group or array.

    Raises
    ------
    UnsupportedImageError
        It holds no single 2-D image (a plate, a volume, a time series, odd dtypes).
    CorruptImageError
        The metadata contradict themselves, or name an array that is not there.
    """
    try:
        if not hasattr(node, "members"):
            only = _plane(uri, node, "", _named_axes(node))
            return _assemble(uri, (only,), {}, {}, {}, "zarr")
        node, ome = _image_group(uri, node)
        own = _own_facts(uri, node)
        associated = _associated(uri, node)
        if "multiscales" not in ome:
            return _assemble(uri, _plain_levels(uri, node), associated, {}, {}, "zarr")
        multiscale = ome["multiscales"][0]
        axes = _axes(multiscale)
        planes = tuple(_ome_levels(uri, node, multiscale, axes))
        return _assemble(uri, planes, associated, ome, multiscale, "ome-zarr", own)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CorruptImageError(
            f"{uri}: the image metadata are malformed ({type(error).__name__}: {error}); "
            f"check them with an OME-Zarr validator",
            uri=uri,
        ) from error


def _image_group(uri: str, group: Any) -> tuple[Any, Mapping[str, Any]]:
    """The group that holds the image, and its OME attributes."""
    attributes = group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    if "plate" in ome or "well" in ome:
        raise UnsupportedImageError(
            f"{uri} is a plate or a well with many images; give the path of one, such as "
            f"{uri.rstrip('/')}/A/1/0",
            uri=uri,
        )
    if "bioformats2raw.layout" in ome and "multiscales" not in ome:
        return _image_group(uri, _child(uri, group, "0", "the first image"))
    return group, ome


def _own_facts(uri: str, group: Any) -> Mapping[str, Any]:
    """What this library wrote beside the OME metadata; an unfinished store is refused."""
    own = group.attrs.asdict().get("daskdmed")
    if not isinstance(own, Mapping):
        return {}
    if own.get("state") == "incomplete":
        raise UnsupportedImageError(
            f"{uri}: its conversion is not finished; call to_ome_zarr again with resume=True",
            uri=uri,
        )
    return own


def _child(uri: str, group: Any, path: str, what: str) -> Any:
    try:
        return group[path]
    except (KeyError, FileNotFoundError) as error:
        raise CorruptImageError(
            f"{uri}: {what}, {path!r}, is missing; the copy is incomplete", uri=uri
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise metadata_error(uri, f"{what}, {path!r},", error) from error


def _axes(multiscale: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Axes as dicts with "name", "type", "unit"; None when the version has none (0.1, 0.2)."""
    axes = multiscale.get("axes")
    if axes is None:
        return None
    return [{"name": a} if isinstance(a, str) else dict(a) for a in axes]


def _ome_levels(
    uri: str, group: Any, multiscale: Mapping[str, Any], axes: list[dict[str, Any]] | None
) -> Iterator[Plane]:
    for i, dataset in enumerate(multiscale["datasets"]):
        path = str(dataset["path"])
        array = _child(uri, group, path, f"the array of level {i}")
        if not hasattr(array, "chunks"):
            raise CorruptImageError(f"{uri}: level {i}, {path!r}, is no array", uri=uri)
        names = [a["name"] for a in axes] if axes else list("tczyx")
        if len(names) != array.ndim:
            raise CorruptImageError(
                f"{uri}: level {i}, {path!r}, has {array.ndim} dimensions, the metadata name the "
                f"axes {names}",
                uri=uri,
            )
        if axes:  # the type counts more than the name
            names = ["c" if a.get("type") == "channel" else a["name"] for a in axes]
        yield _plane(uri, array, path, names)


def _plain_levels(uri: str, group: Any) -> tuple[Plane, ...]:
    """Arrays of a group without OME metadata, if they can be the levels of one image."""
    try:
        arrays = sorted(group.arrays(), key=lambda item: item[0])
    except NotImplementedError as error:
        raise UnsupportedImageError(
            f"{uri} has no OME-Zarr metadata and its server cannot list it; give the path of an "
            f"array in it",
            uri=uri,
        ) from error
    arrays = [(name, a) for name, a in arrays if name not in ASSOCIATED_NAMES]
    if not arrays:
        raise UnsupportedImageError(
            f"{uri} is a Zarr group without arrays and without OME-Zarr metadata; give the path "
            f"of an image in it",
            uri=uri,
        )
    planes = [_plane(uri, array, name, _named_axes(array)) for name, array in arrays]
    planes.sort(key=lambda p: -p.shape[0] * p.shape[1])
    h0, w0, c0 = planes[0].shape
    for finer, plane in itertools.pairwise(planes):
        h, w, c = plane.shape
        slack = 2 * max(h0 / h, w0 / w)  # levels round their extents either way
        fits = abs(h0 - h * w0 / w) <= slack * max(1.0, h0 / w0)
        if not fits or c != c0 or plane.array.dtype != finer.array.dtype or h >= finer.shape[0]:
            raise UnsupportedImageError(
                f"{uri}: the arrays {finer.path!r} {finer.shape} and {plane.path!r} {plane.shape} "
                f"are no levels of one image; give the path of one of them, or add OME-Zarr "
                f"metadata",
                uri=uri,
            )
    return tuple(planes)


def _named_axes(array: Any) -> list[str]:
    """Names of the axes of a plain array: its dimension names, else judged by its shape."""
    given = getattr(array.metadata, "dimension_names", None)
    given = given or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    names = [str(name).lower() for name in given] if given else []
    names = [{"channel": "c", "channels": "c", "band": "c"}.get(n, n) for n in names]
    if len(names) == array.ndim and {"y", "x"} <= set(names):
        return names
    shape = array.shape
    if array.ndim == 2:
        return ["y", "x"]
    if array.ndim == 3 and shape[2] <= 4:
        return ["y", "x", "c"]
    if array.ndim == 3 and shape[0] <= 64 and shape[0] < min(shape[1:]):
        return ["c", "y", "x"]
    return [f"axis {i}" for i in range(array.ndim)]


def _plane(uri: str, array: Any, path: str, names: Sequence[str]) -> Plane:
    """Check one array and find its axes."""
    what = f"{uri}: array {path!r}, shape {array.shape}, axes {', '.join(names)}"
    if not {"y", "x"} <= set(names):
        raise UnsupportedImageError(
            f"{what}: no y and x; images are (y, x), (y, x, c) or (c, y, x); name the dimensions "
            f"(dimension_names), or {_AS_ARRAY}",
            uri=uri,
        )
    for name, extent in zip(names, array.shape, strict=True):
        if name not in ("y", "x", "c") and extent != 1:
            raise UnsupportedImageError(
                f"{what}: axis {name} has extent {extent}, a slide has one plane; {_AS_ARRAY}",
                uri=uri,
            )
    if 0 in array.shape:
        raise CorruptImageError(f"{what}: it is empty", uri=uri)
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "uif":
        raise UnsupportedImageError(
            f"{what}: samples of type {dtype} are no pixel values; {_AS_ARRAY}", uri=uri
        )
    chunk_bytes = math.prod(array.chunks) * dtype.itemsize
    if chunk_bytes > _MAX_CHUNK_BYTES:
        raise UnsupportedImageError(
            f"{what}: a chunk {array.chunks} takes {chunk_bytes / 2**30:.1f} GiB in memory, more "
            f"than {_MAX_CHUNK_BYTES / 2**30:.0f} GiB; write it anew in smaller chunks",
            uri=uri,
        )
    c = names.index("c") if "c" in names else None
    return Plane(array, path, names.index("y"), names.index("x"), c)


def _associated(uri: str, group: Any) -> dict[str, Plane]:
    """Label, macro and thumbnail, at the root or in a group "associated"; uint8 only."""
    found: dict[str, Plane] = {}
    homes = [group]
    if "associated" in group and hasattr(group["associated"], "members"):
        homes.append(group["associated"])
    for home in homes:
        for name in ASSOCIATED_NAMES:
            if name not in home:
                continue
            node = _child(uri, home, name, "the associated image")
            try:
                if not hasattr(node, "members"):
                    plane = _plane(uri, node, name, _named_axes(node))
                elif "multiscales" in (ome := node.attrs.asdict().get("ome", node.attrs.asdict())):
                    multiscale = ome["multiscales"][0]
                    plane = next(_ome_levels(uri, node, multiscale, _axes(multiscale)))
                else:
                    plane = _plain_levels(uri, node)[0]
            except UnsupportedImageError as error:
                logger.debug("%s: %r is no associated image: %s", uri, name, error)
                continue
            if plane.array.dtype == np.uint8:
                found[name] = plane
    return found


def _assemble(
    uri: str,
    planes: tuple[Plane, ...],
    associated: Mapping[str, Plane],
    ome: Mapping[str, Any],
    multiscale: Mapping[str, Any],
    vendor: str,
    own: Mapping[str, Any] | None = None,
) -> Pyramid:
    """Put levels and facts together, largest level first."""
    if not planes:
        raise CorruptImageError(f"{uri}: the multiscale image has no levels", uri=uri)
    mpp = _mpp(multiscale, planes[0])
    planes = tuple(sorted(planes, key=lambda p: -p.shape[0] * p.shape[1]))
    first = planes[0]
    height, width, channels = first.shape
    for plane in planes[1:]:
        if plane.shape[2] != channels or plane.array.dtype != first.array.dtype:
            raise CorruptImageError(
                f"{uri}: level {plane.path!r} has {plane.shape[2]} channels of "
                f"{plane.array.dtype}, level {first.path!r} {channels} of {first.array.dtype}",
                uri=uri,
            )
    background = _background(first, _channels(ome))
    levels = tuple(
        LevelInfo(p.shape, p.tile_shape, (height / p.shape[0], width / p.shape[1])) for p in planes
    )
    power = (own or {}).get("power")
    properties = _properties(levels, mpp, vendor, first, ome, multiscale)
    if power is not None:
        properties["openslide.objective-power"] = f"{float(power):g}"
    info = SlideInfo(
        levels=levels,
        dtype=np.dtype(first.array.dtype).name,
        background=(background,) * channels,
        mpp=mpp,
        power=None if power is None else float(power),
        vendor=vendor,
        properties=properties,
        associated=tuple(sorted(associated)),
    )
    planes = tuple(_with_fill(p, background) for p in planes)
    return Pyramid(planes, dict(associated), info)


def _with_fill(plane: Plane, background: int) -> Plane:
    """Chunks that were never written read as the fill value; without one, as the background."""
    metadata = plane.array.metadata
    if metadata.fill_value is not None:
        return plane
    import zarr

    dtype = np.dtype(plane.array.dtype)
    metadata = dataclasses.replace(metadata, fill_value=dtype.type(background))
    inner = type(plane.array._async_array)(metadata=metadata, store_path=plane.array.store_path)
    return dataclasses.replace(plane, array=zarr.Array(inner))


def _background(plane: Plane, channels: Sequence[Mapping[str, Any]]) -> int:
    """A fill value other than 0, else white for RGB and 0 for anything else."""
    fill = plane.array.metadata.fill_value
    if fill is not None and np.isfinite(fill) and int(fill) != 0:
        return int(fill)
    colours = [str(c.get("color", "")).lstrip("#").upper()[:6] for c in channels]
    rgb = plane.shape[2] == 3 and plane.array.dtype == np.uint8
    return 255 if rgb and (not any(colours) or colours == _RGB) else 0


def _channels(ome: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    omero = ome.get("omero") or {}
    return list(omero.get("channels") or [])


def _mpp(multiscale: Mapping[str, Any], plane: Plane) -> tuple[float, float] | None:
    """(x, y) of level 0: the scale of its dataset times that of the multiscale."""
    axes = _axes(multiscale) if multiscale else None
    if not axes:
        return None
    values = []
    for axis in (plane.x, plane.y):
        unit = _UNITS.get(str(axes[axis].get("unit", "")).lower())
        scale = 1.0
        given = False
        for holder in (multiscale["datasets"][0], multiscale):
            for step in holder.get("coordinateTransformations") or []:
                if step.get("type") == "scale" and "scale" in step:
                    scale *= float(step["scale"][axis])
                    given = True
        if unit is None or not given or not math.isfinite(scale) or scale <= 0:
            return None
        values.append(scale * unit)
    return values[0], values[1]


def _properties(
    levels: tuple[LevelInfo, ...],
    mpp: tuple[float, float] | None,
    vendor: str,
    plane: Plane,
    ome: Mapping[str, Any],
    multiscale: Mapping[str, Any],
) -> dict[str, str]:
    """OpenSlide's names for what they fit, and the channels as OMERO describes them."""
    found = {"openslide.vendor": vendor, "openslide.level-count": str(len(levels))}
    for i, level in enumerate(levels):
        name = f"openslide.level[{i}]"
        found[f"{name}.height"], found[f"{name}.width"] = map(str, level.shape[:2])
        found[f"{name}.tile-height"], found[f"{name}.tile-width"] = map(str, level.tile_shape)
        found[f"{name}.downsample"] = repr(sum(level.downsample) / 2)
    if mpp:
        found["openslide.mpp-x"], found["openslide.mpp-y"] = map(repr, mpp)
    found["zarr.format"] = str(plane.array.metadata.zarr_format)
    version = ome.get("version", multiscale.get("version"))
    for key, value in (("ome.version", version), ("ome.name", multiscale.get("name"))):
        if value:
            found[key] = str(value)
    for i, channel in enumerate(_channels(ome)):
        for key in ("label", "color", "active"):
            if key in channel:
                found[f"omero.channel[{i}].{key}"] = str(channel[key])
        for key, value in (channel.get("window") or {}).items():
            found[f"omero.channel[{i}].window-{key}"] = str(value)
    return found
