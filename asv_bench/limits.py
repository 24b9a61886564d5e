"""What the machine can do: the figures that everything else is compared with.

Plain functions over imagecodecs, TurboJPEG, NumPy and tifffile; of daskdmed only the way to
find TurboJPEG is used. "Raw decode" is imagecodecs, as every reader in Python decodes, into
memory that stays in the cache.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from daskdmed.images import turbojpeg

THREADS = 2


def fast_scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Memory that libjpeg-turbo decodes into fastest.

    Into 32-byte aligned rows it stores past the cache, which takes up to twice as long. A
    limit must not depend on where the allocator happens to put an array.
    """
    nbytes = int(np.prod(shape))
    memory = np.empty(nbytes + 64, np.uint8)
    start = (16 - memory.ctypes.data) % 32
    return memory[start : start + nbytes].reshape(shape)


class RawTiles:
    """The JPEG tiles of level 0 of a slide, by number.

    Parameters
    ----------
    path : path
        A tiled JPEG TIFF.
    """

    def __init__(self, path: Path | str) -> None:
        with tifffile.TiffFile(path) as f:
            page = f.pages[0]
            self.offsets = np.asarray(page.dataoffsets)
            self.counts = np.asarray(page.databytecounts)
            self.tables = page.jpegtables
            self.tile = (page.tilelength, page.tilewidth)
            self.shape = (page.imagelength, page.imagewidth)
        self.grid = tuple(-(-n // t) for n, t in zip(self.shape, self.tile, strict=True))
        self._fd = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> RawTiles:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def inside(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Numbers of the tiles that a region touches."""
        rows = np.arange(top // self.tile[0], -(-min(top + height, self.shape[0]) // self.tile[0]))
        columns = np.arange(
            left // self.tile[1], -(-min(left + width, self.shape[1]) // self.tile[1])
        )
        return (rows[:, None] * self.grid[1] + columns).ravel()

    def decode(self, numbers: np.ndarray) -> None:
        """Read and decode tiles one after another into the same scratch array."""
        scratch = fast_scratch((*self.tile, 3))
        for i in numbers.tolist():
            data = os.pread(self._fd, int(self.counts[i]), int(self.offsets[i]))
            imagecodecs.jpeg8_decode(
                data, tables=self.tables, colorspace="YCBCR", outcolorspace="RGB", out=scratch
            )

    def decode_turbo(self, numbers: np.ndarray) -> None:
        """The same with TurboJPEG, which is a little faster where it is there."""
        library = turbojpeg.library()
        assert library is not None
        scratch = fast_scratch((*self.tile, 3))
        address, pitch = scratch.ctypes.data, scratch.strides[0]
        tables = self.tables[:-2]
        for i in numbers.tolist():
            data = os.pread(self._fd, int(self.counts[i]), int(self.offsets[i]))
            stream = b"".join((tables, memoryview(data)[2:]))
            assert library.decode(stream, address, pitch, *self.tile)

    def decode_seconds(
        self, numbers: np.ndarray, threads: int = THREADS, *, turbo: bool = False
    ) -> float:
        """Seconds to decode tiles with several threads, each a contiguous part in turn."""
        decode = self.decode_turbo if turbo else self.decode
        parts = np.array_split(numbers, max(threads, min(len(numbers), 8 * threads)))
        with ThreadPoolExecutor(threads) as pool:
            began = time.perf_counter()
            list(pool.map(decode, parts))
            return time.perf_counter() - began

    def pixels(self, numbers: np.ndarray) -> int:
        """Pixels of tiles, padding included."""
        return len(numbers) * self.tile[0] * self.tile[1]


def decode_rate(paths: list[Path], blocks: int = 32, block: int = 4096, seed: int = 0) -> float:
    """Pixels per second of raw decoding with two threads, over random blocks of slides."""
    rng = np.random.default_rng(seed)
    pixels, elapsed = 0, 0.0
    for i in range(blocks):
        with RawTiles(paths[i % len(paths)]) as tiles:
            # on the same cuts as an even grid, so that every part of a slide is as likely
            top, left = (int(rng.integers(-(-n // block)) * block) for n in tiles.shape)
            numbers = tiles.inside(top, left, block, block)
            elapsed += tiles.decode_seconds(numbers)
            pixels += tiles.pixels(numbers)
    return pixels / elapsed


def gather_rate(
    size: int = 224, batch: int = 64, block: int = 4096, blocks: int = 8, batches: int = 100
) -> float:
    """Crops per second that NumPy copies out of resident blocks, one thread."""
    rng = np.random.default_rng(0)
    # written all over: pages that never were are one page of zeros, which stays in the cache
    sources = [np.full((block, block, 3), 1, np.uint8) for _ in range(blocks)]
    out = np.empty((batch, size, size, 3), np.uint8)
    which = rng.integers(blocks, size=(batches, batch))
    at = rng.integers(block - size + 1, size=(batches, batch, 2))
    began = time.perf_counter()
    for b in range(batches):
        for i, (k, (y, x)) in enumerate(zip(which[b].tolist(), at[b].tolist(), strict=True)):
            out[i] = sources[k][y : y + size, x : x + size]
    return batches * batch / (time.perf_counter() - began)


def touched_share(block: float, crop: float, tile: float, draws: int) -> float:
    """Part of the storage tiles of a big chunk that some random crops touch, 0 to 1.

    Parameters
    ----------
    block, crop, tile : float
        Extents of a big chunk, a crop and a storage tile, along each of two axes.
    draws : int
        Crops per big chunk.
    """
    room = max(block - crop + 1, 1.0)
    count = max(1, round(block / tile))
    first = np.arange(count) * block / count
    # along an axis, the part of first pixels from which a crop reaches each tile
    reach = np.minimum(first + tile, room) - np.maximum(first - crop + 1, 0)
    along = np.clip(reach / room, 0, 1)
    return float(1 - ((1 - np.outer(along, along)) ** draws).mean())


def cost_model(block_pixels: float, decode: float, draws: int, gather: float) -> float:
    """Crops per second when each block is decoded once for so many draws, each copied once.

    Parameters
    ----------
    block_pixels : float
        Pixels of a big chunk that are decoded: of the tiles that its crops touch.
    decode : float
        Pixels per second.
    draws : int
        Crops per big chunk.
    gather : float
        Crops per second out of memory.
    """
    return 1 / (block_pixels / decode / draws + 1 / gather)
