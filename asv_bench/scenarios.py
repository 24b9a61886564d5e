"""The work that is measured, each with the limit it is compared with, in interleaved rounds.

asv benchmarks and `report.py` call the same functions, so that both say the same. A figure
is the median over rounds; a ratio is the median of the ratios of each round.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
from limits import THREADS, RawTiles, cost_model, decode_rate, gather_rate, touched_share

import daskdmed
from daskdmed.images import turbojpeg
from daskdmed.images.tiff.decode import count_tiles
from daskdmed.persistence.blockgrid import BlockGrid

BLOCK, CROP, BATCH = 4096, 224, 64


def median_of(rounds: int, once: Callable[[int], tuple[float, ...]]) -> tuple[float, ...]:
    """Median of each figure over rounds."""
    return tuple(statistics.median(v) for v in zip(*map(once, range(rounds)), strict=True))


def dataset(paths: list[Path]) -> daskdmed.Dataset:
    """One patient per slide."""
    patients = [
        daskdmed.Patient(f"patient-{i}", {"wsi": daskdmed.Record(str(p))})
        for i, p in enumerate(paths)
    ]
    return daskdmed.Dataset("benchmark", patients)


@dataclass(frozen=True)
class BlockRead:
    """Pixels per second, and ratios; None for what is not installed."""

    rate: float
    to_limit: float
    to_turbo: float | None
    to_openslide: float | None


def block_read(path: Path, *, rounds: int = 3, openslide: bool = True) -> BlockRead:
    """All blocks of 4096 x 4096 through `to_dask` under threads, against raw decoding of the
    same tiles (by imagecodecs, and by TurboJPEG) and OpenSlide's `read_region` of one block.

    Each block is handed to a function that keeps one pixel: `compute` of the blocks
    themselves ends in a copy by Dask into fresh memory, which is not the read.
    """
    array = daskdmed.open_slide(path).to_dask(chunks=BLOCK)
    pixels = array.shape[0] * array.shape[1]
    ones = tuple((1,) * n for n in array.numblocks[:2])
    corners = array.map_blocks(_corner, dtype=array.dtype, chunks=(*ones, (3,)))
    turbo = turbojpeg.library() is not None
    rng = np.random.default_rng(0)

    with RawTiles(path) as tiles:
        numbers = tiles.inside(0, 0, *tiles.shape)

        def once(_: int) -> tuple[float, ...]:
            began = time.perf_counter()
            corners.compute(scheduler="threads", num_workers=THREADS)
            ours = time.perf_counter() - began
            limit = tiles.decode_seconds(numbers)
            other = tiles.decode_seconds(numbers, turbo=True) if turbo else 0.0
            theirs = 1.0
            if openslide:
                which = tuple(int(rng.integers(max(n // BLOCK, 1))) for n in array.shape[:2])
                one = array.blocks[which].shape
                theirs = _openslide_block(path, (which[0] * BLOCK, which[1] * BLOCK), one)
                theirs /= one[0] * one[1]
            return pixels / ours, limit / ours, other / ours, pixels / ours * theirs

        once(-1)
        rate, to_limit, to_turbo, to_openslide = median_of(rounds, once)
    return BlockRead(
        rate, to_limit, to_turbo if turbo else None, to_openslide if openslide else None
    )


def _corner(block: np.ndarray) -> np.ndarray:
    return block[:1, :1].copy()


def _openslide_block(path: Path, corner: tuple[int, int], shape: tuple[int, ...]) -> float:
    import openslide

    with openslide.OpenSlide(path) as slide:
        began = time.perf_counter()
        np.asarray(slide.read_region(corner[::-1], 0, (shape[1], shape[0])).convert("RGB"))
        return time.perf_counter() - began


@dataclass(frozen=True)
class SmallChunks:
    """Patches per second, and ratios to what the machine could do in the same round."""

    rate: float
    to_gather: float
    to_model: float
    draws_per_read: float
    tiles_per_patch: float


def small_chunks(
    paths: list[Path],
    *,
    bigchunk: int = BLOCK,
    draws: int = 512,
    seconds: float,
    rounds: int = 1,
    client: Any = None,
    **options: Any,
) -> SmallChunks:
    """Random crops through `LightDL` while big chunks rotate."""
    data = dataset(paths)
    pixels = _block_pixels(paths, bigchunk)
    tile = daskdmed.open_slide(paths[0]).level_tile_shapes[0][0]
    # of few draws only the tiles are decoded that these touch
    pixels *= touched_share(pixels**0.5, CROP, tile, draws)

    def once(seed: int) -> tuple[float, ...]:
        gather = gather_rate(CROP, BATCH)
        decode = decode_rate(paths, seed=seed)
        with count_tiles() as counted:
            rate, reuse, patches = _loader_rate(
                data,
                seconds,
                bigchunk_size=bigchunk,
                smallchunks_per_bigchunk=draws,
                seed=seed,
                client=client,
                **options,
            )
        model = cost_model(pixels, decode, draws, gather)
        return rate, rate / gather, rate / model, reuse, counted.tiles / patches

    return SmallChunks(*median_of(rounds, once))


def _block_pixels(paths: list[Path], bigchunk: int) -> float:
    """Mean pixels of a big chunk."""
    slide = daskdmed.open_slide(paths[0])
    shape = slide.dimensions[::-1]
    tile = slide.level_tile_shapes[0]
    grid = BlockGrid.of(shape, (bigchunk, bigchunk), tile, (CROP, CROP), by_places=True)
    return statistics.mean(grid.region(number).size for number in range(len(grid)))


def _loader_rate(
    data: daskdmed.Dataset, seconds: float, **options: Any
) -> tuple[float, float, int]:
    """(patches per second in the steady state, draws per big chunk read, all patches)."""
    with daskdmed.LightDL(data, smallchunk_size=CROP, batch_size=BATCH, **options) as loader:
        batches = iter(loader)
        settled = time.perf_counter() + seconds / 4
        # until the budget is full once and big chunks rotate
        while time.perf_counter() < settled or loader.stats().visits_evicted < 4:
            next(batches)
        before = loader.stats()
        began = time.perf_counter()
        patches = 0
        while time.perf_counter() < began + seconds:
            x, _, _ = next(batches)
            patches += x.shape[0]
        elapsed = time.perf_counter() - began
        read = loader.stats().visits_admitted - before.visits_admitted
        whole = loader.stats().patches
    return patches / elapsed, patches / max(read, 1), whole


def idle_cpu(paths: list[Path], seconds: float) -> float:
    """Cores that a loader uses while nobody asks it for batches."""
    with daskdmed.LightDL(dataset(paths), smallchunk_size=CROP, batch_size=BATCH) as loader:
        loader.get()
        for _ in range(60):  # until the budget is full and reading has come to rest
            used = time.process_time()
            time.sleep(0.5)
            if time.process_time() - used < 0.05:
                break
        began, used = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        return (time.process_time() - used) / (time.perf_counter() - began)


def first_batch(paths: list[Path]) -> float:
    """Seconds from construction to the first batch."""
    data = dataset(paths)
    began = time.perf_counter()
    loader = daskdmed.LightDL(data, smallchunk_size=CROP, batch_size=BATCH)
    try:
        loader.get()
        return time.perf_counter() - began
    finally:
        loader.close()


def grid_mean(windows: np.ndarray) -> np.ndarray:
    """The trivial model: mean of a 4 x 4 sub-grid of each window."""
    step = (max(1, windows.shape[1] // 4), max(1, windows.shape[2] // 4))
    return windows[:, :: step[0], :: step[1]].mean(axis=(1, 2, 3), dtype=np.float32)


@dataclass(frozen=True)
class SlidingWindow:
    """Seconds, the ratio to decoding every tile once, and decodes per tile."""

    seconds: float
    to_limit: float
    decodes_per_tile: float


def sliding_window(
    path: Path, *, kernel: int = CROP, stride: int | None = None, rounds: int = 3
) -> SlidingWindow:
    """A heatmap of a whole slide with a trivial model, against decoding every tile once."""
    with RawTiles(path) as tiles:
        everything = np.arange(len(tiles.offsets))

        def once(_: int) -> tuple[float, ...]:
            limit = tiles.decode_seconds(everything)
            with count_tiles() as counted, dask.config.set(num_workers=THREADS):
                began = time.perf_counter()
                daskdmed.heatmap(path, grid_mean, kernel_size=kernel, stride=stride)
                ours = time.perf_counter() - began
            return ours, ours / limit, counted.tiles / len(everything)

        return SlidingWindow(*median_of(rounds, once))


def small_cnn() -> Any:
    """A convolutional network of four stages, about 1 ms per window of 224 on one core."""
    import torch

    torch.manual_seed(0)
    stages: list[Any] = []
    for before, after in ((3, 16), (16, 32), (32, 64), (64, 128)):
        convolution = torch.nn.Conv2d(before, after, 3, stride=2, padding=1)
        stages += [convolution, torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
    return torch.nn.Sequential(
        *stages, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(128, 2)
    ).eval()


@dataclass(frozen=True)
class NetworkHeatmap:
    """Seconds, and ratios to the network alone on as many windows that are in memory."""

    seconds: float
    to_all_threads: float
    to_one_thread_each: float


def network_heatmap(path: Path, *, batch: int = BATCH, rounds: int = 3) -> NetworkHeatmap:
    """A heatmap with a CNN on the CPU, against the bare network on windows in memory.

    The network alone is run the two ways there are: batch after batch with torch's threads
    on all cores, and in as many Python threads as cores with one torch thread each, which
    is how `heatmap` runs it. Windows in memory are float32 already, and the same ones again
    and again, so that this limit contains neither decoding nor conversion.
    """
    import torch

    net = small_cnn()
    rows, columns = (-(-n // CROP) for n in daskdmed.open_slide(path).dimensions[::-1])
    batches = max(rows * columns // batch, THREADS)
    windows = torch.rand(2 * THREADS, batch, 3, CROP, CROP)

    def alone(python_threads: int) -> float:
        def run(number: int) -> None:
            with torch.inference_mode():
                net(windows[number % len(windows)])

        before = torch.get_num_threads()
        torch.set_num_threads(THREADS // python_threads)
        try:
            with ThreadPoolExecutor(python_threads) as pool:
                began = time.perf_counter()
                list(pool.map(run, range(batches)))
                return (time.perf_counter() - began) / batches / batch * rows * columns
        finally:
            torch.set_num_threads(before)

    def once(_: int) -> tuple[float, ...]:
        together, apart = alone(1), alone(THREADS)
        with dask.config.set(num_workers=THREADS):
            began = time.perf_counter()
            daskdmed.heatmap(path, net, kernel_size=CROP, batch_size=batch)
            ours = time.perf_counter() - began
        return ours, ours / together, ours / apart

    once(-1)
    return NetworkHeatmap(*median_of(rounds, once))


def heatmap_memory(path: Path) -> float:
    """Peak memory in MiB of a process that makes the heatmap of a slide."""
    command = [sys.executable, str(Path(__file__).resolve()), "heatmap-memory", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["mib"])


def _heatmap_memory(path: str) -> float:
    with dask.config.set(num_workers=THREADS):
        daskdmed.heatmap(path, grid_mean, kernel_size=CROP)
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss of a started process begins with the peak of the one that started it
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def local_cluster(*, workers: int = 2, processes: bool = True) -> Iterator[Any]:
    """A client of a local cluster that talks over TCP; without processes for asv."""
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.work-stealing": False}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=processes,
            protocol="tcp",
            dashboard_address=":0",
            memory_limit="8 GiB",
        ) as cluster,
        Client(cluster, direct_to_workers=True) as client,
    ):
        yield client


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if len(sys.argv) != 3 or sys.argv[1] != "heatmap-memory":
        raise SystemExit("usage: scenarios.py heatmap-memory SLIDE")
    print(json.dumps({"mib": _heatmap_memory(sys.argv[2])}))


def restricted(paths: list[Path], way: str, *, seconds: float, rounds: int = 1) -> float:
    """Patches per second with something said about where they come from, to those without.

    Parameters
    ----------
    paths : list of Path
        Slides.
    way : {"tissue", "quotas", "target", "explorer"}
        Tissue masks (made before); two shares of each batch; a label map of a sixteenth of
        the resolution beside each slide; four regions of half the side per visit.
    seconds, rounds
        Length of a measurement, and how many.
    """
    data = dataset(paths)
    options: dict[str, Any] = {}
    if way == "tissue":
        options = {"tissue": daskdmed.tissue_masks(data)}
    elif way == "quotas":
        even = {p.id for p in list(data)[::2]}
        options = {"quotas": [daskdmed.Quota(0.25, patients=lambda p: p.id in even)]}
    elif way == "target":
        data, options = _with_label_maps(data), {"target": "labels"}
    elif way == "explorer":
        options = {"bigchunk_loader": daskdmed.explorers.LowDiscrepancyExplorer(regions=4)}

    def once(seed: int) -> tuple[float, ...]:
        kwargs = {"bigchunk_size": BLOCK, "smallchunks_per_bigchunk": 512, "seed": seed}
        plain, *_ = _loader_rate(data, seconds, client=None, **kwargs)
        ours, *_ = _loader_rate(data, seconds, client=None, **kwargs, **options)
        return (ours / plain,)

    return median_of(rounds, once)[0]


def _with_label_maps(data: daskdmed.Dataset) -> daskdmed.Dataset:
    import dask.array as da

    patients = []
    for patient in data:
        shape = tuple(-(-n // 16) for n in patient.record().open().to_dask().shape[:2])
        labels = daskdmed.Record(array=da.zeros(shape, dtype="u1", chunks=1024))
        records = {"wsi": patient.record(), "labels": labels}
        patients.append(daskdmed.Patient(patient.id, records))
    return daskdmed.Dataset(data.name, patients)


def planning(kind: str, turns: int = 400) -> float:
    """Draws per second that a plan gives, for 500 slides of 169 big chunks."""
    from daskdmed.persistence.plan import Population, RotationPlan
    from daskdmed.persistence.policy import LeastVisitedFirst
    from daskdmed.persistence.strata import StratifiedPlan, Stratum

    count = 500
    people = Population((169,) * count, tuple(map(str, range(count))), ({},) * count)
    options: dict[str, Any] = {
        "slots": 64,
        "draws_per_visit": 512,
        "seed": 0,
        "policy": LeastVisitedFirst(),
    }
    everybody = tuple(range(count))
    strata = [Stratum("rare", 8, everybody[:10]), Stratum("all", BATCH - 8, everybody)]
    plan: Any = (
        RotationPlan(people, **options)
        if kind == "rotation"
        else StratifiedPlan(people, strata, batch_size=BATCH, **options)
    )
    began = time.perf_counter()
    draws = sum(len(next(plan)) for _ in range(turns))
    return draws / (time.perf_counter() - began)
