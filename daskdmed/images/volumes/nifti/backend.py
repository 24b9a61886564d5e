"""The NIfTI backend: .nii, .nii.gz, and pairs of .hdr and .img, each also compressed.

NIfTI stores x fastest, so that its voxels are a (z, y, x) array in C order: nothing is moved.
Uncompressed files are read where the voxels lie. Compressed ones are decoded once
(`daskdmed.images.volumes.decoded`): in memory, or into the cache folder when they are large.

Not covered: what the header means (`daskdmed.images.volumes.nifti.header`), writing.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import threading
from typing import ClassVar

from daskdmed.core.errors import ImageError, ImageNotFoundError
from daskdmed.core.places import is_remote
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.protocols import Reader, VolumeInfo, VolumeOptions
from daskdmed.images.readers import BaseReader, fingerprint_files
from daskdmed.images.source import LocalSource, Source, fingerprint, open_source
from daskdmed.images.volumes import inflate
from daskdmed.images.volumes.arrays import Layout, check_options, layout_by_names
from daskdmed.images.volumes.decoded import Decoded, converted, decoded_files, setting
from daskdmed.images.volumes.nifti.header import HEAD, Header, looks_like_nifti, parse
from daskdmed.images.volumes.rawfile import RawArray

_ALONE = (".nii", ".nii.gz")
_PAIR = ((".hdr", ".img"), (".hdr.gz", ".img.gz"))


class NiftiBackend:
    """Opens NIfTI files."""

    name = "nifti"
    kind = "volume"
    priority = 10
    needs: ClassVar = {"nibabel": "volumes"}

    def accepts(self, uri: str) -> bool:
        if uri.lower().endswith(_ALONE):
            return is_remote(uri) or os.path.isfile(uri)
        if _suffixes(uri) is None:
            return False
        try:  # other formats are called .img and .hdr too
            return looks_like_nifti(_head(_names(uri)[0]))
        except ImageError:
            return False

    def open(self, uri: str) -> Reader:
        return self.open_volume(uri, VolumeOptions())

    def open_volume(self, uri: str, options: VolumeOptions) -> Reader:
        check_options(uri, options, "time", "form")
        header_file, voxels = _pair(uri)
        header = parse(uri, _head(header_file), options.form)
        source = open_source(voxels)
        try:
            return NiftiReader(uri, source, header, options)
        except BaseException:
            source.close()
            raise

    def fingerprint(self, uri: str, options: VolumeOptions | None = None) -> str:
        files = _pair(uri)
        if files[0] == files[1] or is_remote(uri):
            return fingerprint(uri)
        return fingerprint_files(uri, files)


def _suffixes(uri: str) -> tuple[str, str] | None:
    """Suffixes of header and voxels of a pair that a file may be one of."""
    return next((pair for pair in _PAIR if uri.lower().endswith(pair)), None)


def _names(uri: str) -> tuple[str, str]:
    """The file of the header and that of the voxels; the same one as a rule."""
    suffixes = _suffixes(uri)
    if suffixes is None:
        return uri, uri
    stem, given = uri[: -len(suffixes[0])], uri[-len(suffixes[0]) :]
    header, voxels = (s.upper() if given.isupper() else s for s in suffixes)
    return stem + header, stem + voxels


def _pair(uri: str) -> tuple[str, str]:
    """The same, which are there."""
    found = _names(uri)
    for path in found:
        if path != uri and not is_remote(path) and not os.path.isfile(path):
            raise ImageNotFoundError.of(
                uri, f"{os.path.basename(path)} is missing beside it; NIfTI pairs are two files"
            )
    return found


def _head(path: str) -> bytes:
    source = open_source(path)
    try:
        return inflate.head(source, HEAD) if inflate.is_gzip(source) else source.read(0, HEAD)
    finally:
        source.close()


class NiftiReader(BaseReader):
    """An open file. Reads from any number of threads; what is compressed is decoded by one."""

    info: VolumeInfo

    def __init__(self, uri: str, source: Source, header: Header, options: VolumeOptions) -> None:
        super().__init__(uri)
        self._source, self._header = source, header
        self._layout = _layout(uri, header, options)
        self._lock = threading.Lock()
        self._file: LocalSource | None = None
        self._shared: Decoded | None = None
        self._compressed = inflate.is_gzip(source)
        self._key = ""
        if self._compressed:
            inflate.check_size(source, header.end)
            count = math.prod(self._layout.shape)
            most = max(header.end, count * header.values.dtype.itemsize)
            self._key = f"{uri}|{fingerprint(source.uri)}|{header.end}"
            if most <= setting("decoded-limit"):
                self._shared = decoded_files.enter(self._key)
        else:
            self._raw = RawArray(source, header.offset, header.shape, header.stored)
        self.info = self._layout.info(
            uri,
            header.values.dtype,
            None if self._shared is None else header.shape,
            vendor=f"nifti-{header.version}",
            space=header.space,
            voxel_size=header.voxel_size,
            properties=_properties(header),
        )

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        self._fill(self._layout, region, out)

    def _read_channels(
        self,
        level: int,
        region: Region,
        channels: tuple[int, ...],
        out: Array,
        tile_error: OnTileError,
    ) -> None:
        def read(layout: Layout, values: Array) -> None:
            self._fill(layout, region, values)

        self._layout.in_groups(channels, None, read, out)

    def _fill(self, layout: Layout, region: Region, out: Array) -> None:
        selection, seen = layout.selection(region), layout.seen(out)
        values = self._header.values
        if self._shared is not None:
            stored = decoded_files.get(self._key, self._shared, self._decode)
            values.into(stored[selection], seen)
            return
        if self._compressed and self._file is None:
            self._convert()
        for place, part in self._raw.pieces(selection):
            values.into(part, seen[place])

    def _decode(self) -> Array:
        header = self._header
        data = inflate.decode(self._source, header.end)[header.offset :]
        return data.view(header.stored).reshape(header.shape)

    def _convert(self) -> None:
        """Have the file, uncompressed, in the cache folder."""
        with self._lock:
            if self._file is None:
                header = self._header
                name = hashlib.blake2b(self._key.encode(), digest_size=16).hexdigest()
                pieces = functools.partial(inflate.pieces, self._source, header.end)
                file = converted(self._uri, name, header.end, pieces)
                self._raw = RawArray(file, header.offset, header.shape, header.stored)
                self._file = file

    def read_associated(self, name: str) -> Array:
        raise self._no_associated(name)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._shared is not None:
            decoded_files.leave(self._key)
        self._source.close()
        if self._file is not None:
            self._file.close()


def _layout(uri: str, header: Header, options: VolumeOptions) -> Layout:
    """Time points as everywhere; components, and parts of colours, are channels."""
    axes = ["c" if name == "u" else name for name in header.axes]
    return layout_by_names(uri, axes, header.shape, options.time)


def _properties(header: Header) -> dict[str, str]:
    said = {
        "nifti.version": str(header.version),
        "nifti.form": header.form,
        "nifti.description": header.description,
        "nifti.datatype": header.stored.name,
    }
    return {key: value for key, value in said.items() if value}
