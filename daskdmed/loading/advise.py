"""How to choose `bigchunk_size`, `resident` and `smallchunks_per_bigchunk`: by measuring.

Reading a big chunk costs once what its small chunks then share; copying a small chunk
costs each time. `advise` measures both on a few blocks of a dataset and lays out what each
choice gives in patches per second, memory and variety.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from dask.system import CPU_COUNT
from dask.utils import format_bytes

from daskdmed.cohort.sources import ImagesLike, Request, images_of
from daskdmed.core import html
from daskdmed.core.errors import BudgetError, GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array, LevelLike, MppLike, PowerLike, RecordLike, SpacingLike
from daskdmed.core.view import ImageView
from daskdmed.images.channels import ChannelsLike
from daskdmed.persistence import catalogue as catalogues
from daskdmed.persistence.budget import Allotment, allot, to_bytes
from daskdmed.persistence.catalogue import DEFAULT_BIGCHUNK, Catalogue, Geometry
from daskdmed.persistence.drawn import expected_share

#: crops copied to measure how long one takes
_CROPS = 512


@dataclass(frozen=True, slots=True)
class Choice:
    """What one choice of parameters gives.

    Parameters
    ----------
    bigchunk_size : tuple of int
        Largest extent of a big chunk.
    smallchunks_per_bigchunk : int
        Draws per visit.
    patches_per_second : float
        What reading and copying allow on this machine, when nothing else is in the way.
    slots : int
        Big chunks drawn from at a time.
    resident_bytes : int
        Memory of all big chunks.
    bigchunks_per_batch : float
        Distinct big chunks in a batch, on average.
    coverage : float
        Pixels drawn per pixel read: 1 uses every pixel once in the mean.
    """

    bigchunk_size: tuple[int, ...]
    smallchunks_per_bigchunk: int
    patches_per_second: float
    slots: int
    resident_bytes: int
    bigchunks_per_batch: float
    coverage: float


@dataclass(frozen=True, slots=True)
class Advice:
    """Measured costs, and a table of choices.

    Parameters
    ----------
    choices : tuple of Choice
        Every combination, big chunks from small to large.
    read_seconds : dict of tuple to float
        Big-chunk size -> seconds until all threads together have read one more, all of it; of
        few draws less is read, which `choices` count.
    copy_seconds : float
        Per small chunk.
    single_seconds : float
        Per small chunk when each is read for itself.
    threads : int
        Threads that read.
    """

    choices: tuple[Choice, ...]
    read_seconds: dict[tuple[int, ...], float]
    copy_seconds: float
    single_seconds: float
    threads: int

    @property
    def break_even(self) -> dict[tuple[int, ...], int]:
        """Draws per big chunk from which on reading all of it beats each patch for itself."""
        gained = self.single_seconds - self.copy_seconds
        if gained <= 0:
            return {}
        return {size: math.ceil(s / gained) for size, s in self.read_seconds.items()}

    def best(self, patches_per_second: float) -> Choice:
        """The most varied choice that is fast enough, or the fastest when none is."""
        enough = [c for c in self.choices if c.patches_per_second >= patches_per_second]
        if not enough:
            return max(self.choices, key=lambda c: c.patches_per_second)
        return max(enough, key=lambda c: (c.bigchunks_per_batch, -c.coverage))

    def rows(self) -> list[tuple[str, ...]]:
        """The table, as text."""
        return [
            (
                " x ".join(map(str, c.bigchunk_size)),
                f"{c.smallchunks_per_bigchunk:,}",
                f"{c.patches_per_second:,.0f}",
                f"{c.slots:,}",
                format_bytes(c.resident_bytes),
                f"{c.bigchunks_per_batch:.1f}",
                f"{c.coverage:.2f}",
            )
            for c in self.choices
        ]

    def summary(self) -> str:
        """What was measured, in a sentence."""
        even = ", ".join(
            f"{n:,} draws for {' x '.join(map(str, size))}" for size, n in self.break_even.items()
        )
        return (
            f"{1 / self.single_seconds:,.0f} patches/s when each is read for itself, "
            f"{1 / self.copy_seconds:,.0f} out of memory, {self.threads} threads; big chunks "
            f"pay from {even or 'never'} on"
        )

    def __str__(self) -> str:
        table = [_HEAD, *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(_HEAD))]
        lines = ["  ".join(v.rjust(w) for v, w in zip(row, widths, strict=True)) for row in table]
        return "\n".join([self.summary(), "", *lines])

    def _repr_html_(self) -> str:
        return html.page(html.title("Advice", self.summary()), html.table(_HEAD, self.rows()))


_HEAD = (
    "big chunk",
    "draws",
    "patches/s",
    "in memory",
    "memory",
    "big chunks per batch",
    "pixels drawn/read",
)


def advise(
    dataset: ImagesLike,
    *,
    smallchunk_size: int | tuple[int, ...] = 224,
    batch_size: int = 64,
    level: LevelLike = 0,
    mpp: MppLike | None = None,
    power: PowerLike | None = None,
    spacing: SpacingLike | None = None,
    orientation: str | None = None,
    channels: ChannelsLike | None = None,
    record: RecordLike | None = None,
    resident: int | str = "2 GiB",
    bigchunk_sizes: Sequence[int | tuple[int, ...]] | None = None,
    draws: Sequence[int] = (32, 128, 512, 2048),
    blocks: int = 4,
    threads: int | None = None,
    seed: int = 0,
) -> Advice:
    """Measure a few blocks of a dataset and lay out what each choice of parameters gives.

    Takes a few seconds: it reads `blocks` big chunks of each size, at random places.

    Parameters
    ----------
    dataset, smallchunk_size, batch_size, level, mpp, power, spacing, orientation, channels, record,
    resident
        As of `LightDL`.
    bigchunk_sizes : sequence, optional
        Values of ``bigchunk_size`` to try, clipped to the largest image. Default: 1024, 2048
        and 4096 per axis of two; 64, 128 and 256 per axis of three.
    draws : sequence of int
        Values of ``smallchunks_per_bigchunk`` to try.
    blocks : int
        Big chunks read per thread and size.
    threads : int, optional
        Threads that read, default: the cores.
    seed : int
        Of the places.

    Returns
    -------
    Advice
        Prints as a table; `Advice.best` picks from it.

    Raises
    ------
    UsageError, DatasetError, LoaderError
        As from `LightDL`.
    BudgetError
        `resident` holds two big chunks of none of the sizes.
    """
    if bigchunk_sizes is None:
        volumes = np.size(smallchunk_size) > 2
        bigchunk_sizes = tuple(DEFAULT_BIGCHUNK[volumes] // n for n in (4, 2, 1))
    if not bigchunk_sizes or not draws or min(draws) < 1 or blocks < 1:
        raise UsageError("bigchunk_sizes and draws need at least one value, draws and blocks >= 1")
    images = images_of(
        dataset,
        Request(
            record, level, mpp, power, spacing=spacing, orientation=orientation, channels=channels
        ),
    )
    budget, workers = to_bytes(resident), threads or CPU_COUNT
    rng = np.random.default_rng(seed)
    read_seconds: dict[tuple[int, ...], float] = {}
    choices: list[Choice] = []
    copied = single = math.inf
    refused: Exception | None = None
    for size in bigchunk_sizes:
        try:
            geometry = Geometry.of(smallchunk_size, size, by_places=True)
            found = catalogues.build(images, geometry)
            geometry = _clipped(geometry, found)
            if geometry.bigchunk in read_seconds:
                continue
            # of a small dataset no more is held than there is
            count = sum(len(entry.grid) for entry in found.entries)
            allotment = allot(budget, found.block_bytes).within(count)
        except (BudgetError, GeometryError) as error:
            refused = error
            continue
        seconds, copy, one = _measure(found, geometry, workers, blocks, rng)
        read_seconds[geometry.bigchunk] = seconds
        copied, single = min(copied, copy), min(single, one)
        pixels = float(np.mean([math.prod(e.grid.largest) for e in found.entries]))
        choices += [
            _choice(
                geometry,
                allotment,
                count,
                seconds * _share(found, geometry, count),
                copy,
                batch_size,
                pixels,
            )
            for count in sorted(draws)
        ]
    if not choices:
        assert refused is not None
        raise refused
    return Advice(tuple(choices), read_seconds, copied, single, workers)


def _clipped(geometry: Geometry, found: Catalogue) -> Geometry:
    """With big chunks no larger than the largest image; cuts every image as before."""
    extents = [e.view.shape[: geometry.ndim] for e in found.entries]
    largest = np.max(extents, axis=0).tolist()
    bigchunk = tuple(min(b, n) for b, n in zip(geometry.bigchunk, largest, strict=True))
    return replace(geometry, bigchunk=bigchunk)


def _share(found: Catalogue, geometry: Geometry, draws: int) -> float:
    """Part of big chunks that is read for so many draws of each."""
    shares = [
        expected_share(e.grid.largest, geometry.smallchunk, e.view.tile_shape, draws)
        if e.view.cheap_in_parts
        else 1.0
        for e in found.entries
    ]
    return float(np.mean(shares))


def _choice(
    geometry: Geometry,
    allotment: Allotment,
    draws: int,
    read: float,
    copy: float,
    batch_size: int,
    pixels: float,
) -> Choice:
    # a batch of b draws from n big chunks meets n (1 - (1 - 1/n)^b) of them
    slots = allotment.slots
    distinct = slots * (1 - (1 - 1 / slots) ** batch_size)
    return Choice(
        geometry.bigchunk,
        draws,
        1 / (read / draws + copy),
        slots,
        allotment.nbytes,
        distinct,
        draws * math.prod(geometry.smallchunk) / pixels,
    )


def _measure(
    found: Catalogue, geometry: Geometry, threads: int, blocks: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Seconds per big chunk (all threads busy), per copied crop, per crop read for itself."""
    jobs = []
    for _ in range(threads * blocks):
        entry = found.entries[int(rng.integers(len(found.entries)))]
        jobs.append((entry.view, entry.grid.region(int(rng.integers(len(entry.grid))))))
    with ThreadPoolExecutor(threads) as pool:

        def seconds_each(jobs: list[tuple[ImageView, Region]]) -> float:
            began = time.perf_counter()
            for _ in pool.map(lambda job: job[0].read_padded(job[1]).shape, jobs):
                pass
            return (time.perf_counter() - began) / len(jobs)

        block = next(iter(pool.map(lambda job: job[0].read_padded(job[1]), jobs[:threads])))
        read, single = (seconds_each(j) for j in (jobs, _crops(jobs, geometry, rng, 16 * threads)))
    return read, _copy_seconds(block, geometry.smallchunk, rng), single


def _crops(
    jobs: list[tuple[ImageView, Region]], geometry: Geometry, rng: np.random.Generator, count: int
) -> list[tuple[ImageView, Region]]:
    crops = []
    for i in range(count):
        view, region = jobs[i % len(jobs)]
        room = [e - s + 1 for e, s in zip(region.shape, geometry.smallchunk, strict=True)]
        start = tuple(int(o + rng.integers(r)) for o, r in zip(region.origin, room, strict=True))
        crops.append((view, Region(start, geometry.smallchunk)))
    return crops


def _copy_seconds(block: Array, size: tuple[int, ...], rng: np.random.Generator) -> float:
    out = np.zeros((*size, *block.shape[len(size) :]), block.dtype)
    room = [e - s + 1 for e, s in zip(block.shape[: len(size)], size, strict=True)]
    places = [tuple(int(rng.integers(r)) for r in room) for _ in range(_CROPS)]
    began = time.perf_counter()
    for place in places:
        out[...] = block[tuple(slice(p, p + s) for p, s in zip(place, size, strict=True))]
    return (time.perf_counter() - began) / _CROPS
