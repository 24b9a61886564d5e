"""Results as NIfTI in the space of the file that they were made from.

What the view did is undone by the affines of both: axes are turned back, and values brought to
the file's voxels, slab by slab.

Not covered: registration; other formats (`daskdmed.store.export.heatmaps`).
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr

from daskdmed.cohort.sources import ImageLike, images_of
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.extras import extra
from daskdmed.core.files import new_file
from daskdmed.core.places import local_path
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array, PathLike
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.volumes.view import VolumeView, on_voxels_of
from daskdmed.store.results.finished import keeps_cells, place_of, values_of

#: bytes of a slab that is read, resampled and written at a time
_SLAB_BYTES = 48 * 2**20
_SUFFIXES = (".nii", ".nii.gz")
#: of integers, smallest first
_WHOLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64")
#: of an affine that nobody says more of: that of the scanner
_SCANNER = 1
_LABELS = "label"  # NIfTI's intent


def export_volume(
    result: Any,
    path: PathLike,
    *,
    like: ImageLike,
    space: Space | None = None,
    labels: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a result as NIfTI on the voxels of the file that it was made from.

    Orientation and spacing of the view are undone: the file has exactly the shape and affine of
    `like`, and nothing is mirrored on the way, because the order and direction of axes follow
    from the affines of both and not from names of orientations. Memory holds one slab. The file
    appears when it is complete.

    Parameters
    ----------
    result : dask.array.Array, path, URL, zarr store or group, or array
        What `daskdmed.predict`, `heatmap` or `infer` returned (also with arithmetic on it), the
        place it was stored at, or with `space` any array: (z, y, x), or (k, z, y, x), which
        becomes a file of four dimensions, the k values last.
    path : path
        Ends in ".nii" or ".nii.gz".
    like : Record, Volume, path, Patient or view
        The image whose voxels the file shall have, at its level 0.
    space : Space, optional
        Where the voxels of `result` lie, of an array that does not say so itself.
    labels : bool, optional
        Whether values are labels. Labels are never blended: a voxel gets the one that the largest
        part of it has, the smallest of equals. They are stored in the smallest integer type that
        holds them. Other values are averaged over areas, or interpolated linearly where the
        file has smaller voxels. Default: integers are labels, but those that
        ``predict(post="uint8")`` and "uint16" made of probabilities, which stay integers.
    overwrite : bool
        Replace a file that is there, which stays until the new one is complete.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    UsageError
        Nobody knows where the result lies, it was cut or turned since it was computed, or another
        name of file.
    GeometryError
        `like` does not say where it lies, or the result lies elsewhere or obliquely to it.
    StoreError
        The file cannot be written, or is there.
    MissingExtraError
        nibabel is not installed.

    Notes
    -----
    sform holds the affine, qform too where it can say it to a hundredth of a voxel: not of sheared
    axes, as of a tilted gantry, nor of some oblique ones in its single precision. Both have the
    code that the header of `like` has, else 1 (scanner).
    Voxels further than half a cell from any cell, as at the border of a heatmap whose windows
    are larger than its strides, are NaN, or 0 in integers.

    Examples
    --------
    >>> labels = daskdmed.predict(  # doctest: +SKIP
    ...     "p.nii.gz", unet, kernel_size=96, spacing=1, orientation="RAS", post="argmax"
    ... )
    >>> daskdmed.export_volume(labels, "p_seg.nii.gz", like="p.nii.gz")  # doctest: +SKIP
    """
    nibabel = extra("nibabel", "volumes", "export_volume needs")
    name = os.fspath(path)
    if not name.endswith(_SUFFIXES):
        raise UsageError(f"{name}: a NIfTI file is called *.nii or *.nii.gz")
    source, are_labels = _placed(result, space)
    wanted, codes = _like(like, nibabel)
    source = _typed(source, are_labels if labels is None else labels)
    filled = _Filled.over(source, wanted, labels=are_labels if labels is None else labels)
    with new_file(path, overwrite=overwrite) as partial:
        _write(partial, filled, _header(nibabel, filled, codes), packed=name.endswith(".gz"))
    return Path(name)


# ------------------------------------------------------------------------- what is exported
def _placed(result: Any, space: Space | None) -> tuple[ArrayView, bool]:
    """A result as an image, channels last, and whether its values are labels."""
    if isinstance(result, da.Array) and space is None and not keeps_cells(result):
        raise UsageError(
            "the result was cut, turned or reduced since it was computed, so that nobody knows "
            "where it lies; give the result itself or its store, or space="
        )
    array, group = values_of(result)
    if isinstance(array, da.Array) and group is not None and len(array.dask.layers) <= 2:
        array = values_of(group)[0]  # the same in chunks, not in the larger blocks of users
    place = place_of(group)
    if space is None:
        space = None if place is None else place.space
        if space is None:
            raise UsageError(
                "the result does not say where it lies in the patient (its image did not, or it "
                "is no result of this library): give space=, or make it again from "
                "Record(..., space=Space(affine, shape))"
            )
    if isinstance(array, zarr.Array):
        array = da.from_array(
            array, chunks=array.chunks, lock=False
        )  # not the larger ones of users
    elif not isinstance(array, da.Array):
        array = da.from_array(np.asarray(array), chunks=-1, name=False)
    if array.ndim not in (3, 4) or array.shape[-3:] != space.shape:
        raise GeometryError(
            f"a volume is (z, y, x) or (k, z, y, x), got {array.shape} for a space of "
            f"{space.shape} voxels"
        )
    if array.dtype.kind not in "biuf":
        raise UsageError(f"NIfTI files hold real numbers, this result has {array.dtype}")
    if array.ndim == 4:
        array = da.moveaxis(array, 0, -1)
    return ArrayView(array, 3, space=space), array.dtype.kind in "biu" and not _is_scaled(group)


def _is_scaled(group: Any) -> bool:
    """Whether integers of a result stand for probabilities."""
    own = {} if group is None else group.attrs.get("daskdmed", {})
    post = own.get("parameters", {}).get("post") or [None]
    return post[0] in ("uint8", "uint16")


def _typed(view: ArrayView, labels: bool) -> ArrayView:
    """The same in a type that NIfTI has: of labels the smallest one."""
    array, kind = view.array, view.dtype
    if kind.kind == "f":
        wanted = np.dtype("float32") if kind.itemsize < 4 else kind
    elif labels and kind.itemsize > 1:
        low, high = (int(v) for v in da.compute(array.min(), array.max()))
        fits = (np.iinfo(t) for t in _WHOLE)
        wanted = next(t.dtype for t in fits if t.min <= low and high <= t.max)
    else:
        wanted = np.dtype("uint8") if kind.kind == "b" else kind
    if wanted == kind:
        return view
    return ArrayView(array.astype(wanted), 3, space=view.space)


def _like(like: ImageLike, nibabel: Any) -> tuple[Space, tuple[int, int]]:
    """The space of an image, and the codes of its sform and qform."""
    image = images_of(like).only("like=").open()
    space = image.space if hasattr(image, "space") else None
    if space is None:
        raise GeometryError(
            f"like={like!r} does not say how it lies in the patient; give an image that does, or "
            "Record(..., space=Space(affine, shape))"
        )
    uri = str(getattr(image, "uri", None) or "")
    place = local_path(uri) if uri.endswith(_SUFFIXES) else None
    if place is None:
        return space, (_SCANNER, _SCANNER)
    header = nibabel.load(place).header
    codes = [int(header[code]) for code in ("sform_code", "qform_code")]
    usual = next((code for code in codes if code), _SCANNER)
    return space, (codes[0] or usual, codes[1] or usual)


# ------------------------------------------------------------------------- its voxels
@dataclass(frozen=True)
class _Filled:
    """A result over all voxels of a file; `inside` are those along each axis that have a cell."""

    view: VolumeView
    inside: Region

    @classmethod
    def over(cls, source: ArrayView, space: Space, *, labels: bool) -> _Filled:
        """Laid over a space."""
        view = on_voxels_of(source.as_labels() if labels else source, space)
        view = view.as_labels() if labels else view
        spans = []
        for axis, count in enumerate(view.spatial_shape):
            scale = 1.0 if view.scale is None else view.scale[axis]
            first = 0.0 if view.offset is None else view.offset[axis]
            middle = (np.arange(count) + 0.5) * scale + first
            there = source.spatial_shape[view.order[axis]]
            found = np.flatnonzero((middle > -0.5) & (middle < there + 0.5))
            spans.append((int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0))
        inside = Region.between(*zip(*spans, strict=True))
        if not inside.size:
            raise GeometryError(
                f"the result lies elsewhere than like=: it has {source.space}, like= has {space}"
            )
        return cls(view, inside)

    @property
    def fill(self) -> float:
        """Value of voxels without a cell."""
        return float("nan") if self.view.dtype.kind == "f" else 0

    def slabs(self) -> Iterator[tuple[int, Array]]:
        """All voxels, (rows, y, x[, k]), with the first row of each slab; whole chunks of the
        result where memory allows."""
        rows, *plane = self.view.spatial_shape
        values = int(np.prod([*plane, *self.view.channel_shape]))
        most = max(1, _SLAB_BYTES // max(1, values * 4))
        tile = self.view.tile_shape[0]
        step = most // tile * tile or most
        for top in range(0, rows, step):
            region = Region((top, 0, 0), (min(step, rows - top), *plane))
            part = region.intersect(self.inside)
            slab = np.full((*region.shape, *self.view.channel_shape), self.fill, self.view.dtype)
            if part.size:
                slab[part.local_to(region).slices] = self.view.read(part)
            yield top, slab


# ------------------------------------------------------------------------- the file
def _header(nibabel: Any, filled: _Filled, codes: tuple[int, int]) -> Any:
    """A header of what will be written, in the order of NIfTI: x first."""
    view = filled.view
    shape = (*view.spatial_shape[::-1], *view.channel_shape)
    kind = nibabel.Nifti1Header if max(shape) < 2**15 else nibabel.Nifti2Header
    header = kind()
    header.set_data_dtype(view.dtype)
    header.set_data_shape(shape)
    assert view.placed is not None
    affine = view.placed.affine[:, [2, 1, 0, 3]]
    header.set_zooms((*view.placed.spacing[::-1], *(1.0 for _ in view.channel_shape)))
    header.set_sform(affine, code=codes[0])
    _set_qform(header, view.placed, codes[1])
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    if view.labels:
        header.set_intent(_LABELS)
    header["descrip"] = b"daskdmed"
    header["vox_offset"] = header.sizeof_hdr + 4
    return header


def _set_qform(header: Any, space: Space, code: int) -> None:
    """Say the same by a rotation, where that can: three numbers of single precision, from which a
    fourth near 0 (as of axes to LAS or LPS that are a little oblique) follows with an error that
    moves the far voxels."""
    affine = space.affine[:, [2, 1, 0, 3]]
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(steps.T @ steps, np.eye(3), atol=1e-5):
        return
    header.set_qform(affine, code=code)
    if not space.isclose(Space(header.get_qform()[:, [2, 1, 0, 3]], space.shape)):
        header["qform_code"] = 0


def _write(path: Path, filled: _Filled, header: Any, *, packed: bool) -> None:
    """Header and voxels; of several channels, which follow each other in the file, a packed one is
    made of an unpacked one."""
    if not packed:
        with path.open("wb") as stream:
            _fill(stream, filled, header)
        return
    with path.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as stream:
        if not filled.view.channel_shape:
            _fill(stream, filled, header)
            return
        plain = path.with_name(f"{path.name}.plain")
        try:
            with plain.open("wb") as unpacked:
                _fill(unpacked, filled, header)
            with plain.open("rb") as unpacked:
                shutil.copyfileobj(unpacked, stream, 2**22)
        finally:
            plain.unlink(missing_ok=True)


def _fill(stream: Any, filled: _Filled, header: Any) -> None:
    start = int(header["vox_offset"])
    header.write_to(stream)
    stream.write(bytes(start - stream.tell()))  # no extensions
    view = filled.view
    plane = int(np.prod(view.spatial_shape[1:])) * view.dtype.itemsize
    for top, slab in filled.slabs():
        channels = np.moveaxis(slab, -1, 0) if view.channel_shape else slab[None]
        for number, values in enumerate(channels):
            stream.seek(start + (number * view.shape[0] + top) * plane)
            stream.write(np.ascontiguousarray(values).data)


__all__ = ["export_volume"]
