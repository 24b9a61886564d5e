"""Chunks of Zarr arrays on this machine's disk, read and decoded in the calling thread.

zarr hands every chunk through a dozen coroutines and two threads, which takes longer than
decoding it. Here the same bytes are read, decoded and laid into the output, whatever its
strides, by whoever calls, for the layouts that images have: Zarr v3, sharded or not, bytes
that are compressed by Zstandard, Blosc, gzip or not at all.

`read` does all of it or nothing that counts: what it does not know, and all that is wrong
with a file, is left to zarr, which alone decides what is an error.

Not covered: remote stores, zip files, Zarr v2, filters, and whoever chose another codec
pipeline in zarr's configuration (zarrs), which is then used.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import imagecodecs
import numpy as np
import numpy.typing as npt

from daskdmed.core.types import Array
from daskdmed.images.source import LocalSource

_Index: TypeAlias = tuple[int, ...]
_Slices: TypeAlias = tuple[int | slice, ...]
#: (bytes, memory to decode into) -> what was decoded
_Unpack: TypeAlias = Callable[..., Any]
_UNPACK: dict[str, _Unpack] = {
    "ZstdCodec": imagecodecs.zstd_decode,
    "BloscCodec": imagecodecs.blosc_decode,
    "GzipCodec": imagecodecs.gzip_decode,
}
#: offset and length of a chunk that a shard does not hold
_MISSING = 2**64 - 1
#: decoded chunks up to this size are decoded into memory that stays with the thread
_KEPT = 16 * 2**20
_local = threading.local()


class _OddError(Exception):
    """Something that zarr has to look at."""


def named(option: Any) -> Any:
    """An option of a codec: an enumeration to zarr before 3.4, a text to later ones."""
    return getattr(option, "value", option)


def in_own_order(codec: Any, dtype: np.dtype[Any]) -> bool:
    """Whether zarr's BytesCodec leaves the bytes of numbers as this machine has them."""
    return dtype.itemsize == 1 or named(codec.endian) in (None, sys.byteorder)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the chunks of an array lie and how they are encoded.

    `chunk` is the extent of what is encoded as one; `shard` that of a file, with several
    `per_shard`, or None. `unpack` is None for bytes as they are.
    """

    array: Any
    chunk: _Index
    shard: _Index | None
    per_shard: _Index
    index_first: bool
    unpack: _Unpack | None

    @classmethod
    def of(cls, array: Any) -> Layout | None:
        """The layout of a Zarr array; None for one that zarr has to read."""
        try:
            return cls._of(array)
        except AttributeError:  # another version of zarr names things otherwise
            return None

    @classmethod
    def _of(cls, array: Any) -> Layout | None:
        from zarr.codecs import BytesCodec, ShardingCodec
        from zarr.storage import LocalStore

        metadata = array.metadata
        if metadata.zarr_format != 3 or not ordinary_pipeline() or array.dtype.kind not in "uif":
            return None
        outer = getattr(metadata.chunk_grid, "chunk_shape", None)
        if outer is None or type(array.store_path.store) is not LocalStore:
            return None
        codecs, chunk, shard, first = list(metadata.codecs), outer, None, False
        if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
            sharding = codecs[0]
            chunk, shard = tuple(sharding.chunk_shape), outer
            first = named(sharding.index_location) == "start"
            if not _plain_index(sharding.index_codecs):
                return None
            codecs = list(sharding.codecs)
        if not codecs or not isinstance(codecs[0], BytesCodec) or len(codecs) > 2:
            return None
        if not in_own_order(codecs[0], array.dtype):
            return None
        unpack = None
        if len(codecs) == 2:
            unpack = _UNPACK.get(type(codecs[1]).__name__)
            if unpack is None:
                return None
        per_shard = tuple(s // c for s, c in zip(outer, chunk, strict=True))
        return cls(array, chunk, shard, per_shard, first, unpack)

    def read(self, selection: _Slices, out: Array) -> bool:
        """Fill `out` with a selection, axes with a number left out. False, with `out` in any
        state, where something is odd."""
        spans = [
            (s.start or 0, n if s.stop is None else s.stop) if isinstance(s, slice) else (s, s + 1)
            for s, n in zip(selection, self.array.shape, strict=True)
        ]
        numbers = tuple(i for i, s in enumerate(selection) if not isinstance(s, slice))
        target = np.expand_dims(out, numbers) if numbers else out
        try:
            for file, cells in self._files(spans):
                self._read_file(file, cells, spans, target)
        except MemoryError:
            raise
        except Exception:  # whatever it is, zarr finds it too, or reads it after all
            return False
        return True

    def _files(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[_Index, list[_Index]]]:
        """Coordinates of the files that hold some pixels, each with those of its chunks."""
        ranges = [range(a // c, -(-b // c)) for (a, b), c in zip(spans, self.chunk, strict=True)]
        if self.shard is None:
            for cell in itertools.product(*ranges):
                yield cell, [cell]
            return
        by_file = [_by_file(r, n) for r, n in zip(ranges, self.per_shard, strict=True)]
        for groups in itertools.product(*by_file):
            file = tuple(g[0] // n for g, n in zip(groups, self.per_shard, strict=True))
            yield file, list(itertools.product(*groups))

    def _read_file(
        self, file: _Index, cells: list[_Index], spans: Sequence[tuple[int, int]], out: Array
    ) -> None:
        """The pixels of some chunks of one file."""
        source = self._open(file)
        if source is None:
            for cell in cells:
                self._place(None, cell, spans, out)
            return
        try:
            where = self._where(source, cells)
            for cell, place in zip(cells, where, strict=True):
                self._place(place and source.read(*place), cell, spans, out)
        finally:
            source.close()

    def _open(self, file: _Index) -> LocalSource | None:
        """A file of the array; None for one that was never written, which is all fill value."""
        place = self.array.store_path
        name = self.array.metadata.encode_chunk_key(file)
        path = "/".join(p for p in (str(place.store.root), place.path, name) if p)
        try:
            return LocalSource(path)
        except FileNotFoundError:
            return None

    def _where(self, source: LocalSource, cells: list[_Index]) -> list[tuple[int, int] | None]:
        """Offset and length of chunks in a file; None for one that it does not hold."""
        if self.shard is None:
            return [(0, source.size)]
        index = self._shard_index(source)
        found: list[tuple[int, int] | None] = []
        for cell in cells:
            local = tuple(i % n for i, n in zip(cell, self.per_shard, strict=True))
            offset, length = index[local].tolist()
            if offset == length == _MISSING:
                found.append(None)
                continue
            if offset + length > source.size:
                raise _OddError
            found.append((offset, length))
        return found

    def _shard_index(self, source: LocalSource) -> npt.NDArray[np.uint64]:
        import google_crc32c

        nbytes = 16 * math.prod(self.per_shard)
        data = source.read(0 if self.index_first else source.size - nbytes - 4, nbytes + 4)
        if len(data) != nbytes + 4:
            raise _OddError
        if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise _OddError
        return np.frombuffer(data, "<u8", nbytes // 8).reshape(*self.per_shard, 2)

    def _place(
        self, data: bytes | None, cell: _Index, spans: Sequence[tuple[int, int]], out: Array
    ) -> None:
        """Decode a chunk, and lay what is wanted of it into the output."""
        inside, target = [], []
        for i, c, (a, b) in zip(cell, self.chunk, spans, strict=True):
            begin, stop = max(i * c, a), min((i + 1) * c, b)
            inside.append(slice(begin - i * c, stop - i * c))
            target.append(slice(begin - a, stop - a))
        part = out[tuple(target)]
        if data is None:
            part[...] = self.array.metadata.fill_value
            return
        pixels = self._decoded(data)[tuple(inside)]
        if pixels.shape[0] > 1 and abs(part.strides[0]) < abs(part.strides[-1]):
            # interleaved: plane after plane, NumPy's own order of copying takes twice as long
            for one, plane in zip(part, pixels, strict=True):
                one[...] = plane
        else:
            part[...] = pixels

    def _decoded(self, data: bytes) -> Array:
        """The pixels of a chunk, in memory that the next one is decoded into."""
        dtype = self.array.dtype
        nbytes = math.prod(self.chunk) * dtype.itemsize
        if self.unpack is None:
            if len(data) != nbytes:
                raise _OddError
            return np.frombuffer(data, dtype).reshape(self.chunk)
        memory: Array | None = getattr(_local, "memory", None)
        if memory is None or memory.nbytes < nbytes:
            memory = np.empty(nbytes, np.uint8)
            if nbytes <= _KEPT:
                _local.memory = memory
        flat = memory[:nbytes]
        if len(self.unpack(data, out=flat)) != nbytes:
            raise _OddError
        pixels: Array = flat.view(dtype).reshape(self.chunk)
        return pixels


def _by_file(chunks: range, per_shard: int) -> list[list[int]]:
    """Numbers of chunks along an axis, those of one file together."""
    return [list(group) for _, group in itertools.groupby(chunks, lambda i: i // per_shard)]


def ordinary_pipeline() -> bool:
    """Whether zarr's own way through codecs is used; any other is somebody's choice."""
    from zarr import config

    return str(config.get("codec_pipeline.path")).startswith("zarr.")


def _plain_index(codecs: Sequence[Any]) -> bool:
    """Whether the index of shards is little-endian bytes and their checksum."""
    from zarr.codecs import BytesCodec, Crc32cCodec

    if len(codecs) != 2 or not isinstance(codecs[0], BytesCodec):
        return False
    return named(codecs[0].endian) == "little" and isinstance(codecs[1], Crc32cCodec)
