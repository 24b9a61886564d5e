"""The backend: DICOM series in folders, lists of files, and single files.

What is read:

- a folder, also with folders below, a list of files of it, or one file. Several volumes in it
  are an error that lists them, with the text for ``series=``: the series' number, description or
  UID; where a series holds several volumes, with the volume behind, as in ``"801/0"`` or
  ``"801/FIELD_MAP"``. Localizers, and single slices beside a stack in one series, are left out,
  as are files that hold no image; the log and `Volume.properties` say which;
- slices sorted along their normal by their positions. Slices without position or orientation
  come in the order of their numbers, and have a size of voxels only;
- gray values of 8, 16 or 32 bits, and floating point, in the transfer syntaxes implicit and
  explicit little endian, big endian, deflated, RLE, JPEG, JPEG-LS and JPEG 2000.

Colours, palettes, lookup tables of values, segmentation objects and whole slides are refused.
Not covered: URLs.
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import ClassVar

from daskdmed.core.errors import UnsupportedImageError
from daskdmed.core.places import is_remote
from daskdmed.images.protocols import Reader, VolumeOptions
from daskdmed.images.volumes.arrays import check_options
from daskdmed.images.volumes.dicom.catalog import Catalog, catalog, holds_dicom
from daskdmed.images.volumes.dicom.grouping import Group, choose, name_of
from daskdmed.images.volumes.dicom.reader import DicomReader

logger = logging.getLogger("daskdmed.images")
#: files that are left out, one by one, in the log
_SHOWN = 5


class DicomBackend:
    """Opens DICOM. Needs the extra ``volumes``."""

    name = "dicom"
    kind = "volume"
    priority = 40
    needs: ClassVar = {"pydicom": "volumes"}

    def accepts(self, uri: str) -> bool:
        return bool(uri) and not is_remote(uri) and holds_dicom(uri)

    def open(self, uri: str) -> Reader:
        return self.open_volume(uri, VolumeOptions())

    def open_volume(self, uri: str, options: VolumeOptions) -> Reader:
        check_options(uri, options, "series", "on_gap", "files")
        found, volume, others = _chosen(uri, options)
        notes = _left_out(uri, found, others)
        if notes:
            shown = [f"{what} ({why})" for what, why in notes[:_SHOWN]]
            more = f" and {len(notes) - _SHOWN} more" if len(notes) > _SHOWN else ""
            level = logging.INFO if options.series or not others else logging.WARNING
            logger.log(level, "%s: left out: %s%s", uri, "; ".join(shown), more)
        return DicomReader(uri, volume, options.on_gap, notes)

    def fingerprint(self, uri: str, options: VolumeOptions | None = None) -> str:
        _, volume, _ = _chosen(uri, options or VolumeOptions())
        digest = hashlib.blake2b(digest_size=16)
        for frame in sorted(volume.frames, key=lambda f: (f.pixels.path, f.index)):
            p = frame.pixels
            name = os.path.relpath(p.path, uri)
            digest.update(f"{name}:{p.size}:{p.mtime_ns}:{frame.index};".encode())
        return digest.hexdigest()


def _chosen(uri: str, options: VolumeOptions) -> tuple[Catalog, Group, list[Group]]:
    """What is there, the volume that is meant, and the others."""
    if is_remote(uri):
        raise UnsupportedImageError.of(uri, "DICOM is read from local files; download it first")
    found = catalog(uri, options.files)
    if not found.groups and found.left_out and found.left_out[0][0] == uri:
        raise UnsupportedImageError.of(uri, found.left_out[0][1])
    if not found.groups:
        reasons = [f"{os.path.relpath(p, uri)}: {why}" for p, why in found.left_out[:_SHOWN]]
        raise UnsupportedImageError.of(
            uri, f"no DICOM image is there; {'; '.join(reasons) or 'the folder is empty'}"
        )
    return found, *choose(uri, found.groups, options.series)


def _left_out(uri: str, found: Catalog, others: list[Group]) -> list[tuple[str, str]]:
    """(what, why) of all that does not belong to the volume."""
    notes = []
    for group in others:
        why = "another volume, " + ("a localizer or single slice" if group.minor else "not chosen")
        notes.append((f"series={name_of(group, found.groups)!r}: {group}", why))
    return notes + [(os.path.relpath(path, uri), why) for path, why in found.left_out]
