"""The image in a Zarr hierarchy: its arrays as planes, largest first, and the facts about it.

OME-Zarr multiscales (Zarr v2 and v3), plain arrays, and plain groups of arrays. A plane is an
array with the positions of its y, x and channel axes. Not covered: what the metadata mean
(`daskdmed.images.ngff.metadata`), labels, plates and wells.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskdmed.core import buffers
from daskdmed.core.errors import (
    CorruptImageError,
    UnsupportedImageError,
    UsageError,
    listing,
)
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.channels import read_groups
from daskdmed.images.ngff.chunks import Layout, ordinary_pipeline
from daskdmed.images.ngff.metadata import (
    MALFORMED,
    Multiscale,
    holds_classes,
    is_spatialdata,
    ome_of,
)
from daskdmed.images.ngff.stack import Stack
from daskdmed.images.ngff.storage import metadata_error, stored_chunks
from daskdmed.images.protocols import LevelInfo, SlideInfo, SlideOptions
from daskdmed.images.readers import (
    choose_image,
    level_infos,
    level_properties,
    say_choice,
)
from daskdmed.images.refusals import check_extents

logger = logging.getLogger("daskdmed.images")

ASSOCIATED_NAMES = ("label", "macro", "thumbnail")
_RGB = ["FF0000", "00FF00", "0000FF"]
#: a chunk is decoded whole; larger ones are no image tiles but a broken or hostile file
_MAX_CHUNK_BYTES = 4 * 2**30
#: bytes of planes that are held beside what they are interleaved into
_BESIDE = 64 << 20
_AS_VOLUME = "open it as a volume, daskdmed.open_volume or Record(..., spatial_ndim=3)"
_AS_ARRAY = "open it as a Dask array (dask.array.from_zarr) and use Record(array=...)"


@dataclass(frozen=True, slots=True)
class Plane:
    """A Zarr array, `path` in its hierarchy ("" for the root), seen as (y, x, c): where these axes
    are among its own. `at` is the position along the others, of which it is read at one."""

    array: Any
    path: str
    y: int
    x: int
    c: int | None
    at: tuple[int, ...] = ()
    #: the first and one past the last channel that are read, None for all
    some: tuple[int, int] | None = None

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
        selection, view = self._selected(region, out)
        if read_chunks(self.array, selection, view):
            return
        if self.c is None or self.c > self.y or self.c > self.x or out.shape[2] == 1:
            read_by_zarr(self.array, selection, view)
            return
        # planes one after the other are read as such, and then interleaved: pixel by pixel, chunk
        # by chunk, that takes longer than decoding
        for part in region.tiles(self._band(out)):
            height, width = part.shape
            planes = buffers.empty((out.shape[2], height, width), out.dtype)
            read_by_zarr(self.array, *self._selected(part, np.moveaxis(planes, 0, -1)))
            target = out[part.local_to(region).slices]
            for number, plane in enumerate(planes):
                target[..., number] = plane

    def read_some(self, region: Region, channels: tuple[int, ...], out: Array) -> None:
        """The same of some channels: chunks that hold none of them are not read."""
        assert self.c is not None

        def read(first: int, stop: int, values: Array) -> None:
            replace(self, some=(first, stop)).read(region, values)

        read_groups(channels, self.array.chunks[self.c], read, out)

    def _band(self, out: Array) -> tuple[int, int]:
        """Rows that are held beside `out` at a time: those of whole shards, at least one."""
        rows = (getattr(self.array, "shards", None) or self.array.chunks)[self.y]
        each = max(rows * out[0].nbytes, 1)
        return rows * max(_BESIDE // each, 1), self.shape[1]

    def _selected(self, region: Region, out: Array) -> tuple[tuple[int | slice, ...], Array]:
        """A region as a selection of the array, and `out` with its axes in the array's order."""
        selection: list[int | slice] = list(self.at or (0,) * self.array.ndim)
        selection[self.y], selection[self.x] = region.slices
        view, axes = out[..., 0], [self.y, self.x]
        if self.c is not None:
            selection[self.c] = slice(*(self.some or (None,)))
            view, axes = out, [self.y, self.x, self.c]
        return tuple(selection), view.transpose(np.argsort(axes))


def read_into(array: Any, selection: tuple[int | slice, ...], out: Array) -> None:
    """A selection of a Zarr array into an array of any strides, axes with a number left out."""
    if not read_chunks(array, selection, out):
        read_by_zarr(array, selection, out)


def read_chunks(array: Any, selection: tuple[int | slice, ...], out: Array) -> bool:
    """The same without zarr, where the array allows it; False where it does not, or is damaged."""
    layout = Layout.of(array)
    return layout is not None and layout.read(selection, out)


def read_by_zarr(array: Any, selection: tuple[int | slice, ...], out: Array) -> None:
    """The same by zarr, whatever the array is."""
    from zarr.core.buffer import default_buffer_prototype

    # codec pipelines from elsewhere (zarrs) refuse memory with gaps
    fits = out.flags.c_contiguous or ordinary_pipeline()
    whole = out if fits else buffers.empty(out.shape, out.dtype)
    buffer = default_buffer_prototype().nd_buffer.from_ndarray_like(whole)
    array.get_basic_selection(selection, out=buffer)
    if whole is not out:
        out[...] = whole


@dataclass(frozen=True, slots=True)
class Pyramid:
    """An image as the metadata describe it: levels largest first, and named extras."""

    planes: tuple[Plane, ...]
    associated: Mapping[str, Plane]
    info: SlideInfo


def read_pyramid(uri: str, node: Any, options: SlideOptions) -> Pyramid:
    """Interpret a Zarr group or array; an error where it holds no image."""
    image, plane = options.image, options.plane
    try:
        if not hasattr(node, "members"):
            _check_single(uri, image)
            names = _named_axes(node)
            stack = Stack.of(uri, plane, node, names)
            only = _plane(uri, node, "", names, stack)
            return _assemble(uri, (only,), {}, None, stack=stack)
        node, images = image_group(uri, node, image)
        own = own_facts(uri, node)
        associated = _associated(uri, node)
        described = Multiscale.parse(node.attrs.asdict())
        if described is None:
            Stack.of(uri, plane)
            return _assemble(uri, _plain_levels(uri, node), associated, None)
        first = child(uri, node, described.levels[0].path, "the array of level 0")
        stack = Stack.of(uri, plane, first, _axes_of(described))
        planes = tuple(_ome_levels(uri, node, described, stack))
        return _assemble(uri, planes, associated, described, own, images, stack)
    except MALFORMED as error:
        if options and isinstance(error, UsageError):
            raise
        raise CorruptImageError.of(
            uri,
            f"the image metadata are malformed ({type(error).__name__}: {error}); "
            f"check them with an OME-Zarr validator",
        ) from error


def _check_single(uri: str, image: str) -> None:
    if image not in ("", "0"):
        raise UsageError(f"{uri} holds one image, there is no image={image!r}")


def image_group(uri: str, group: Any, image: str) -> tuple[Any, tuple[str, ...]]:
    """The group that holds the image, and the names of all images when there are several.

    bioformats2raw writes every image of a file; in VSI and some CZI and SCN files the first
    is the label or an overview. SpatialData has its images below "images".
    """
    ome = ome_of(group.attrs.asdict())
    if "plate" in ome or "well" in ome:
        raise UnsupportedImageError(
            f"{uri} is a plate or a well with many images; give the path of one, such as "
            f"{uri.rstrip('/')}/A/1/0",
            uri=uri,
        )
    if is_spatialdata(group.attrs.asdict()):
        return _spatialdata_image(uri, group, image)
    if "bioformats2raw.layout" not in ome or "multiscales" in ome:
        _check_single(uri, image)
        return group, ()
    return _choose_group(uri, group, image, dict.fromkeys(_series(group), ""))


def _spatialdata_image(uri: str, root: Any, image: str) -> tuple[Any, tuple[str, ...]]:
    """One of the images below "images" by its name, or of the label maps, "labels/name"."""
    homes = [name for name in ("images", "labels") if name in root]
    paths = {f"{home}/{name}": home for home in homes for name in sorted(root[home].group_keys())}
    elements = {path: path.removeprefix("images/") for path in paths}
    scans = {path: name for path, name in elements.items() if paths[path] == "images"}
    if not scans and not image:
        raise UnsupportedImageError.of(
            uri,
            "this SpatialData has no image; "
            + (
                f"image= names one of its label maps {listing([*elements.values()])}"
                if elements
                else "its tables, points and shapes are not read here"
            ),
        )
    return _choose_group(uri, root, image, elements if image else scans)


def _choose_group(
    uri: str, group: Any, image: str, paths: Mapping[str, str]
) -> tuple[Any, tuple[str, ...]]:
    """One of the groups at some paths, each with its name, or else as it calls itself."""
    groups = [child(uri, group, path, "the image") for path in paths]
    names, pixels, spacing = [], [], []
    for one, given in zip(groups, paths.values(), strict=True):
        described = Multiscale.parse(one.attrs.asdict())
        level = described and described.levels[0].path
        shape = child(uri, one, level, "the array").shape if level else (0, 0)
        names.append(given or (described and described.name) or one.basename)
        pixels.append(shape[-1] * shape[-2])
        spacing.append(described.spacing()[-1] if described else None)
    chosen = choose_image(uri, image, names, pixels, spacing)
    if not image:
        say_choice(uri, names[chosen], [*names[:chosen], *names[chosen + 1 :]])
    return groups[chosen], tuple(names) if len(names) > 1 else ()


def _series(group: Any) -> list[str]:
    """Paths of the images, as listed beside their OME-XML, else numbered from 0."""
    listed = ome_of(group["OME"].attrs.asdict()).get("series") if "OME" in group else None
    if listed:
        return [str(path) for path in listed]
    found = itertools.takewhile(lambda path: path in group, map(str, itertools.count()))
    return list(found) or ["0"]


def own_facts(uri: str, group: Any) -> Mapping[str, Any]:
    """What this library wrote beside the OME metadata; an unfinished store is refused."""
    own = group.attrs.asdict().get("daskdmed")
    if not isinstance(own, Mapping):
        return {}
    if own.get("state") == "incomplete":
        raise UnsupportedImageError.of(
            uri, "its conversion is not finished; call to_ome_zarr again with resume=True"
        )
    return own


def child(uri: str, group: Any, path: str, what: str) -> Any:
    try:
        return group[path]
    except (KeyError, FileNotFoundError) as error:
        raise CorruptImageError.of(
            uri, f"{what}, {path!r}, is missing; the copy is incomplete"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise metadata_error(uri, f"{what}, {path!r},", error) from error


def _axes_of(image: Multiscale) -> list[str]:
    """Names of axes, of which the type counts more than the name."""
    return ["c" if axis.type == "channel" else axis.name for axis in image.axes]


def _ome_levels(
    uri: str, group: Any, image: Multiscale, stack: Stack | None = None
) -> Iterator[Plane]:
    names = _axes_of(image)
    for i, level in enumerate(image.levels):
        array = child(uri, group, level.path, f"the array of level {i}")
        if not hasattr(array, "chunks"):
            raise CorruptImageError.of(uri, f"level {i}, {level.path!r}, is no array")
        if len(names) != array.ndim:
            raise CorruptImageError.of(
                uri,
                f"level {i}, {level.path!r}, has {array.ndim} dimensions, the metadata name "
                f"the axes {names}",
            )
        yield _plane(uri, array, level.path, names, stack)


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
    except MemoryError:
        raise
    except Exception as error:  # zarr lets through whatever its parsers raise
        raise metadata_error(uri, "one of its arrays", error) from error
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
            raise UnsupportedImageError.of(
                uri,
                f"the arrays {finer.path!r} {finer.shape} and {plane.path!r} {plane.shape} "
                f"are no levels of one image; give the path of one of them, or add OME-Zarr "
                f"metadata",
            )
    return tuple(planes)


def given_names(array: Any) -> list[str]:
    """Names of the dimensions of a plain array; empty where they are not given."""
    given = getattr(array.metadata, "dimension_names", None)
    given = given or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    names = [str(name).lower() for name in given] if isinstance(given, (list, tuple)) else []
    found = {"channel": "c", "channels": "c", "band": "c", "time": "t"}
    return [found.get(n, n) for n in names] if len(names) == array.ndim else []


def _named_axes(array: Any) -> list[str]:
    """Names of the axes of a plain array: its dimension names, else judged by its shape."""
    names = given_names(array)
    if {"y", "x"} <= set(names):
        return names
    shape = array.shape
    if array.ndim == 2:
        return ["y", "x"]
    if array.ndim == 3 and shape[2] <= 4:
        return ["y", "x", "c"]
    if array.ndim == 3 and shape[0] <= 64 and shape[0] < min(shape[1:]):
        return ["c", "y", "x"]
    return [f"axis {i}" for i in range(array.ndim)]


def _plane(
    uri: str, array: Any, path: str, names: Sequence[str], stack: Stack | None = None
) -> Plane:
    """Check one array and find its axes."""
    what = f"{uri}: array {path!r}, shape {array.shape}, axes {', '.join(names)}"
    if not {"y", "x"} <= set(names):
        raise UnsupportedImageError(
            f"{what}: no y and x; images are (y, x), (y, x, c) or (c, y, x); name the dimensions "
            f"(dimension_names), or {_AS_ARRAY}",
            uri=uri,
        )
    for name, extent in zip(names, array.shape, strict=True):
        if name not in ("y", "x", "c") and extent != 1 and stack is None:
            raise UnsupportedImageError(
                f"{what}: axis {name} has extent {extent}, a slide has one plane; "
                f"{_AS_VOLUME if name == 'z' else _AS_ARRAY}",
                uri=uri,
            )
    check_extents(uri, array.shape, stored_chunks(uri, array))
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
    at = () if stack is None else stack.position(names, array.shape)
    return Plane(array, path, names.index("y"), names.index("x"), c, at)


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
            node = child(uri, home, name, "the associated image")
            try:
                if not hasattr(node, "members"):
                    plane = _plane(uri, node, name, _named_axes(node))
                elif (image := Multiscale.parse(node.attrs.asdict())) is not None:
                    plane = next(_ome_levels(uri, node, image))
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
    image: Multiscale | None,
    own: Mapping[str, Any] | None = None,
    images: tuple[str, ...] = (),
    stack: Stack | None = None,
) -> Pyramid:
    """Put levels and facts together, largest level first; `image` where OME-Zarr describes it."""
    planes = tuple(sorted(planes, key=lambda p: -p.shape[0] * p.shape[1]))
    first = planes[0]
    channels = first.shape[2]
    for plane in planes[1:]:
        if plane.shape[2] != channels or plane.array.dtype != first.array.dtype:
            raise CorruptImageError.of(
                uri,
                f"level {plane.path!r} has {plane.shape[2]} channels of "
                f"{plane.array.dtype}, level {first.path!r} {channels} of {first.array.dtype}",
            )
    mpp = None if image is None else _mpp(image, first)
    background = _background(first, image)
    levels = level_infos([p.shape for p in planes], [p.tile_shape for p in planes])
    power = (own or {}).get("power")
    vendor = "zarr" if image is None else "ome-zarr"
    properties = _properties(levels, mpp, vendor, first, image)
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
        images=images,
        planes=() if stack is None else stack.planes.names,
        plane="" if stack is None else stack.planes.name,
        channels=() if image is None else image.infos(channels),
        is_labels=holds_classes(own) or (image is not None and image.is_labels),
    )
    planes = tuple(replace(p, array=with_fill(p.array, background)) for p in planes)
    return Pyramid(planes, dict(associated), info)


def with_fill(array: Any, background: float) -> Any:
    """Chunks that were never written read as the fill value; without one, as the background."""
    metadata = array.metadata
    if metadata.fill_value is not None:
        return array
    import zarr

    dtype = np.dtype(array.dtype)
    metadata = replace(metadata, fill_value=dtype.type(background))
    inner = type(array.async_array)(metadata=metadata, store_path=array.store_path)
    return zarr.Array(inner)


def _background(plane: Plane, image: Multiscale | None) -> int:
    """A fill value other than 0, else white for RGB and 0 for anything else."""
    fill = plane.array.metadata.fill_value
    if fill is not None and np.isfinite(fill) and int(fill) != 0:
        return int(fill)
    channels = () if image is None else image.channels
    colours = [c.color.lstrip("#").upper()[:6] for c in channels]
    rgb = plane.shape[2] == 3 and plane.array.dtype == np.uint8
    return 255 if rgb and (not any(colours) or colours == _RGB) else 0


def _mpp(image: Multiscale, plane: Plane) -> tuple[float, float] | None:
    """(x, y) of a level."""
    spacing = image.spacing(plane.path)
    x, y = spacing[plane.x], spacing[plane.y]
    return None if x is None or y is None else (x, y)


def _properties(
    levels: tuple[LevelInfo, ...],
    mpp: tuple[float, float] | None,
    vendor: str,
    plane: Plane,
    image: Multiscale | None,
) -> dict[str, str]:
    """OpenSlide's names for what they fit, and the channels as OMERO describes them."""
    found = {"openslide.vendor": vendor, **level_properties(levels)}
    if mpp:
        found["openslide.mpp-x"], found["openslide.mpp-y"] = map(repr, mpp)
    found["zarr.format"] = str(plane.array.metadata.zarr_format)
    if image is None:
        return found
    facts = {"ome.version": image.version, "ome.name": image.name}
    found |= {key: value for key, value in facts.items() if value}
    for i, channel in enumerate(image.channels):
        shown = channel.to_json()
        window = shown.pop("window", {})
        found |= {f"omero.channel[{i}].{key}": str(value) for key, value in shown.items()}
        found |= {f"omero.channel[{i}].window-{key}": str(v) for key, v in window.items()}
    return found
