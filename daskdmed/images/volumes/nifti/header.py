"""The header of NIfTI: shape, type, values and place of a volume; what cannot be true is refused.

nibabel takes the fields apart and computes affines; it accepts negative extents, extents without
end, and forms of zeros, so everything is checked here. As the standard and its reference library
have it: a slope of 0 or NaN is none; units that are not given are millimeters; an sform of zeros
is none. A file without forms has no place, only the size of its voxels.

Not covered: where the bytes come from (`daskdmed.images.volumes.nifti.backend`), ANALYZE 7.5.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.errors import (
    CorruptImageError,
    GeometryError,
    SpaceError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.core.extras import extra
from daskdmed.core.space import Space
from daskdmed.core.types import Array
from daskdmed.images.volumes.values import Rescale

#: size of the header -> version, and its magic in the file of the voxels or beside it
_MAGIC = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}
#: bytes that decide what a file is
HEAD = 544
#: code -> type, and values of which a voxel consists
_TYPES: dict[int, tuple[str, int]] = {
    2: ("u1", 1),
    4: ("i2", 1),
    8: ("i4", 1),
    16: ("f4", 1),
    64: ("f8", 1),
    256: ("i1", 1),
    512: ("u2", 1),
    768: ("u4", 1),
    1024: ("i8", 1),
    1280: ("u8", 1),
    128: ("u1", 3),
    2304: ("u1", 4),  # RGB24, RGBA32
}
#: code of the unit of length -> millimeters; what is not given is taken for them
_UNITS = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
_FORMS = ("sform", "qform")
#: forms that lie no further apart are the same, in voxels
_SAME = 0.01


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a file before its voxels are read.

    `shape` is that of the array in C order, with names of its `axes`: u (components), t, z, y, x, c
    (of a colour).
    """

    version: int
    offset: int
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stored: np.dtype[Any]
    values: Rescale
    space: Space | None
    voxel_size: tuple[float, float, float] | None
    #: which form says where it lies, "" where none does
    form: str
    description: str

    @property
    def nbytes(self) -> int:
        """Of the voxels."""
        return math.prod(self.shape) * self.stored.itemsize

    @property
    def end(self) -> int:
        """Bytes up to the end of the voxels."""
        return self.offset + self.nbytes


def looks_like_nifti(head: bytes) -> bool:
    """Whether a file begins as a header of NIfTI does."""
    size, _ = _size(head)
    return size > 0 and _magic(head, size) in _MAGIC[size]


def _size(head: bytes) -> tuple[int, str]:
    """The size that the header gives itself, and its order of bytes; 0 where it is none."""
    for order in "<>":
        if len(head) >= 4 and (size := struct.unpack(f"{order}i", head[:4])[0]) in _MAGIC:
            return int(size), order
    return 0, "<"


def _magic(head: bytes, size: int) -> bytes:
    return head[344:348] if size == 348 else head[4:8]


def parse(uri: str, head: bytes, form: str | None = None) -> Header:
    """The header of a file that begins with these bytes; `form` chooses between its two."""
    nifti1 = extra("nibabel.nifti1", "volumes", "reading NIfTI files needs")
    nifti2 = extra("nibabel.nifti2", "volumes", "reading NIfTI files needs")
    size, order = _size(head)
    if not size or len(head) < size:
        what = head[:8].hex(" ") or "nothing"
        raise CorruptImageError.of(
            uri, f"this is no NIfTI file, or its header is cut off: it begins with {what}"
        )
    magic = _magic(head, size)
    if magic not in _MAGIC[size]:
        raise UnsupportedImageError.of(
            uri,
            "the header is of ANALYZE 7.5, which does not tell left from right; convert it to "
            "NIfTI, for example by nibabel, saying which it is",
        )
    kind = nifti1.Nifti1Header if size == 348 else nifti2.Nifti2Header
    fields = kind(head[:size], endianness=order, check=False)
    shape, axes = _shape(uri, fields)
    stored, parts = _type(uri, fields)
    if parts > 1:
        shape, axes = (*shape, parts), (*axes, "c")
    extent = (shape[axes.index("z")], shape[axes.index("y")], shape[axes.index("x")])
    space, chosen = _space(uri, fields, extent, form)
    return Header(
        version=1 if size == 348 else 2,
        offset=_offset(uri, fields, size, single=magic == _MAGIC[size][0]),
        shape=shape,
        axes=axes,
        stored=stored,
        values=_values(uri, fields, stored),
        space=space,
        voxel_size=_voxel_size(fields) if space is None else None,
        form=chosen,
        description=bytes(fields["descrip"]).rstrip(b"\0").decode("latin-1"),
    )


def _shape(uri: str, fields: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Extents in C order, and the names of their axes; those of extent 1 beyond z are left out."""
    dim = [int(n) for n in fields["dim"]]
    count = dim[0]
    if not 1 <= count <= 7 or any(n < 1 for n in dim[1 : count + 1]):
        raise CorruptImageError.of(
            uri,
            f"dim is {dim}: it must begin with the number of axes, 1 to 7, and name as many "
            "extents, which are positive; the header is damaged, write the file anew",
        )
    extents = [*dim[1 : count + 1], *[1] * (7 - count)]
    if extents[5:] != [1, 1]:
        raise UnsupportedImageError.of(
            uri, f"{count} axes, {extents[:count]}; volumes have up to five: x, y, z, t, components"
        )
    x, y, z, t, u = extents[:5]
    named = [("u", u), ("t", t)]
    there = [(name, extent) for name, extent in named if extent > 1]
    axes = (*(name for name, _ in there), "z", "y", "x")
    return (*(extent for _, extent in there), z, y, x), axes


def _type(uri: str, fields: Any) -> tuple[np.dtype[Any], int]:
    code = int(fields["datatype"])
    if code not in _TYPES:
        raise UnsupportedImageError.of(
            uri,
            f"datatype {code} (complex, long double, or none at all) is not read; convert it to "
            "a type of whole numbers or to float32",
        )
    name, parts = _TYPES[code]
    return np.dtype(name).newbyteorder(fields.endianness), parts


def _offset(uri: str, fields: Any, size: int, *, single: bool) -> int:
    """Where the voxels begin, in the file that has them."""
    value, least = float(fields["vox_offset"]), size + 4 if single else 0
    if single and value == 0:
        return least
    if not math.isfinite(value) or value < least or value > 2**40:
        raise CorruptImageError.of(
            uri, f"vox_offset is {value}, the voxels cannot begin before byte {least}"
        )
    return int(value)


def _values(uri: str, fields: Any, stored: np.dtype[Any]) -> Rescale:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return Rescale.of(stored)
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise CorruptImageError.of(
            uri,
            f"scl_slope is {slope} and scl_inter {intercept}, so no voxel has a value; set both, "
            "for example to 1 and 0",
        )
    return Rescale.of(stored, slope, intercept)


# -------------------------------------------------------------------- where the volume lies
def _space(
    uri: str, fields: Any, extent: tuple[int, int, int], form: str | None
) -> tuple[Space | None, str]:
    """The space of the voxels and the form that says it, of (z, y, x) extents."""
    found = {}
    for name in _FORMS if form is None else (form,):
        matrix = _form(uri, fields, name)
        if matrix is not None:
            found[name] = _of_affine(uri, name, matrix, extent)
    if form is not None and not found:
        raise UsageError(f"{uri} has no {form}; leave form= out, or name the other one")
    if form is None and len(found) == 2:
        sform, qform = found.values()
        apart = max(sform.distance(qform), qform.distance(sform))
        if apart > _SAME:
            # its quaternion is in single precision, which may move the far end by some of a voxel
            rounded = _as_qform(uri, fields, extent)
            if rounded is not None and rounded.distance(qform) <= _SAME:
                return sform, "sform"
            raise SpaceError.of(
                uri,
                f"its sform and qform contradict each other, voxels lie up to {apart:.3g} voxels "
                f'apart; choose, form="sform" or form="qform".\nsform: {sform}\n'
                f"{_text(sform)}\nqform: {qform}\n{_text(qform)}",
            )
    name = next(iter(found), "")
    return found.get(name), name


def _form(uri: str, fields: Any, name: str) -> Array | None:
    """One of the forms, from index (x, y, z) to millimeters; None where the file does not have
    it."""
    if int(fields[f"{name}_code"]) <= 0:
        return None
    matrix: Array = np.array(fields.get_sform(), np.float64)
    if name == "qform":
        matrix = _qform(uri, fields)
    elif not matrix[:3].any():
        return None
    matrix[:3] *= _UNITS.get(int(fields["xyzt_units"]) & 7, 1.0)
    return matrix


def _as_qform(uri: str, fields: Any, extent: tuple[int, int, int]) -> Space | None:
    """The sform as a qform says it; None where none can, because axes are sheared."""
    from nibabel.spatialimages import HeaderDataError

    twin = fields.copy()
    try:
        twin.set_qform(fields.get_sform(), strip_shears=False)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        return None
    matrix = _form(uri, twin, "qform")
    return None if matrix is None else _of_affine(uri, "qform", matrix, extent)


def _qform(uri: str, fields: Any) -> Array:
    twin = fields.copy()
    for axis in (1, 2, 3):  # of an axis that is not there
        if twin["pixdim"][axis] == 0 and (axis > int(twin["dim"][0]) or twin["dim"][axis] == 1):
            twin["pixdim"][axis] = 1
    steps = [float(v) for v in twin["pixdim"][1:4]]
    if not all(math.isfinite(s) and s > 0 for s in steps):
        raise _no_place(uri, "qform", f"pixdim is {steps}")
    from nibabel.spatialimages import HeaderDataError

    try:
        return np.array(twin.get_qform(coded=False), np.float64)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise _no_place(uri, "qform", str(error)) from error


def _of_affine(uri: str, name: str, matrix: Array, extent: tuple[int, int, int]) -> Space:
    """The space of an affine from (x, y, z), for arrays of (z, y, x)."""
    try:
        return Space(matrix[:, [2, 1, 0, 3]], extent)
    except GeometryError as error:
        raise _no_place(uri, name, str(error)) from error


def _no_place(uri: str, name: str, why: str) -> CorruptImageError:
    other = _FORMS[name == "sform"]
    return CorruptImageError.of(
        uri,
        f'its {name} says nothing: {why}; try the other one, form="{other}", or write the file '
        "anew with a place",
    )


def _voxel_size(fields: Any) -> tuple[float, float, float] | None:
    """Millimeters along (z, y, x) of a file without forms, None where they are not sound."""
    scale = _UNITS.get(int(fields["xyzt_units"]) & 7, 1.0)
    x, y, z = (float(v) * scale for v in fields["pixdim"][1:4])
    return (z, y, x) if all(math.isfinite(v) and v > 0 for v in (x, y, z)) else None


def _text(space: Space) -> str:
    return np.array2string(space.affine[:3], precision=4, suppress_small=True)
