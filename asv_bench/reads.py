"""Reading, in seconds of CPU: single patches, few draws of big chunks, blocks of Zarr, windows of
slides, opening many.

CPU time holds on a machine that others use too. Each figure is the best of some rounds, and a
ratio is of the bests of the same rounds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dask
import imagecodecs
import inputs
import numpy as np
from limits import THREADS, RawTiles
from peers import cucim_patches
from scenarios import BATCH, CROP, dataset, grid_mean

import daskdmed
from daskdmed.core.region import Region
from daskdmed.images.tiff.decode import count_tiles

#: slides that are opened
MANY = 500
#: share of a slide that is tissue, where only that is read
TISSUE = 0.2
#: draws from each big chunk, where variety matters more than reading it once for many
FEW = 16


def cpu(work: Mapping[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Seconds of CPU of each of several works, taking turns, the least of some rounds."""
    best = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, once in work.items():
            began = time.process_time()
            once()
            best[name] = min(best[name], time.process_time() - began)
    return best


def patches(path: Path, count: int = 200, rounds: int = 3, *, cucim: bool = False) -> Any:
    """Seconds of CPU per patch at random places: by `read_region` ("ours"), of decoding the tiles
    that each touches ("raw"), by cuCIM's `read_region` ("cucim") where it is wanted."""
    slide = daskdmed.open_slide(path)
    width, height = slide.dimensions
    rng = np.random.default_rng(0)
    places = rng.integers(0, (width - CROP, height - CROP), (count, 2)).tolist()
    with RawTiles(path) as tiles:

        def ours() -> None:
            for x, y in places:
                slide.read_region((x, y), 0, (CROP, CROP))

        def raw() -> None:
            for x, y in places:
                tiles.decode(tiles.inside(y, x, CROP, CROP))

        work = {"ours": ours, "raw": raw}
        if cucim:
            from cucim import CuImage

            image = CuImage(str(path))

            def theirs() -> None:
                for place in places:
                    np.asarray(image.read_region(place, (CROP, CROP), 0))

            work["cucim"] = theirs
        return {name: value / count for name, value in cpu(work, rounds).items()}


def few_draws(
    paths: list[Path],
    rounds: int = 3,
    *,
    patches: int = 2048,
    processes: bool = False,
    cucim: bool = False,
) -> dict[str, tuple[float, float]]:
    """Seconds per random patch, of CPU and of the clock: of big chunks that give few ("ours"), and
    where they are wanted of the same read by two processes ("processes", whose CPU is not counted)
    and of cuCIM's batched reads by two threads ("cucim").

    They take turns, each from a fresh start whose first patches are not counted; medians of rounds.
    """
    works: dict[str, Callable[[], Any]] = {"ours": lambda: _lightdl(paths, FEW)}
    if processes:
        works["processes"] = lambda: _lightdl(paths, FEW, workers=2)
    if cucim:
        works["cucim"] = lambda: cucim_patches(paths)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, begin in works.items():
            steps = begin()
            try:
                _take(steps, patches // 2)  # until the budget is full once
                used, began = time.process_time(), time.perf_counter()
                count = _take(steps, patches)
                seconds = time.process_time() - used, time.perf_counter() - began
                found[name].append((seconds[0] / count, seconds[1] / count))
            finally:
                steps.close()
    return {
        name: (statistics.median(c for c, _ in values), statistics.median(w for _, w in values))
        for name, values in found.items()
    }


def _lightdl(paths: list[Path], draws: int, **options: Any) -> Iterator[int]:
    with daskdmed.LightDL(
        dataset(paths),
        smallchunk_size=CROP,
        batch_size=BATCH,
        smallchunks_per_bigchunk=draws,
        **options,
    ) as loader:
        for x, _, _ in loader:
            yield x.shape[0]


def _take(steps: Iterator[int], count: int) -> int:
    """At least so many patches; how many these were."""
    taken = 0
    while taken < count:
        taken += next(steps)
    return taken


def zarr_copy(kind: str) -> Path:
    """A slide as `to_ome_zarr` writes it, level 0 only."""
    side = min(inputs.side(), 12_800)
    path = inputs.folder() / f"{kind}-{side}-v1.ome.zarr"
    if not path.exists():
        slide = daskdmed.open_slide(inputs.slide(kind, side))
        slide.to_ome_zarr(path, pyramid="none")
    return path


def zarr_block(kind: str, rounds: int = 4) -> tuple[float, float]:
    """Pixels per second of CPU of a block of 4096 pixels a side, and seconds in units of those of
    decompressing its chunks and laying them into an array."""
    view = daskdmed.open_slide(zarr_copy(kind)).view()
    block = Region((0, 0), tuple(min(4096, n) for n in view.spatial_shape))
    out = np.empty((*block.shape, 3), np.uint8)
    pixels = np.moveaxis(view.read(block, out), -1, 0)
    cells = [
        (
            box.slices,
            bytes(imagecodecs.zstd_encode(np.ascontiguousarray(pixels[:, *box.slices]), 3)),
        )
        for box in block.tiles(view.tile_shape)
    ]

    def limit() -> None:
        for place, encoded in cells:
            part = out[place]
            scratch = np.empty((3, *part.shape[:2]), np.uint8)
            imagecodecs.zstd_decode(encoded, out=scratch.reshape(-1))
            for channel, plane in enumerate(scratch):
                part[..., channel] = plane

    found = cpu({"ours": lambda: view.read(block, out), "limit": limit}, rounds)
    return block.size / found["ours"], found["ours"] / found["limit"]


def windows(path: Path, stride: int, rounds: int = 2) -> dict[str, float]:
    """Seconds of CPU of a pass over all windows of 224, by "heatmap" and by the "loader", in units
    of those of decoding every tile once."""

    def loader() -> None:
        with daskdmed.SlidingWindowDL(path, kernel_size=CROP, stride=stride) as batches:
            for x, _, _ in batches:
                x[0, 0, 0, 0].item()

    with RawTiles(path) as tiles, dask.config.set(num_workers=THREADS):
        everything = np.arange(len(tiles.offsets))
        found = cpu(
            {
                "raw": lambda: tiles.decode_seconds(everything),
                "heatmap": lambda: daskdmed.heatmap(
                    path, grid_mean, kernel_size=CROP, stride=stride
                ),
                "loader": loader,
            },
            rounds,
        )
    return {name: found[name] / found["raw"] for name in ("heatmap", "loader")}


def tissue_only(path: Path) -> dict[str, float]:
    """Tiles decoded by a pass with a mask of discs, in units of those under windows with tissue."""
    slide = daskdmed.open_slide(path)
    width, height = slide.dimensions
    y, x = np.mgrid[:64, :64]
    radius = 64 * (TISSUE / 4 / np.pi) ** 0.5
    mask = sum(
        (
            (y - a) ** 2 + (x - b) ** 2 < radius**2
            for a, b in ((14, 17), (20, 47), (46, 15), (49, 48))
        ),
        np.zeros((64, 64), int),
    ).astype(bool)
    with count_tiles() as by_heatmap:
        values = daskdmed.heatmap(path, grid_mean, kernel_size=CROP, mask=mask)
    needed = np.zeros([-(-n // 256) for n in (height, width)], bool)
    for row, column in np.argwhere(np.isfinite(values.compute())) * CROP:
        stop = min(row + CROP, height), min(column + CROP, width)
        needed[row // 256 : -(-stop[0] // 256), column // 256 : -(-stop[1] // 256)] = True
    with (
        count_tiles() as by_loader,
        daskdmed.SlidingWindowDL(path, kernel_size=CROP, mask=mask) as loader,
    ):
        for _ in loader:
            pass
    count = max(int(np.count_nonzero(needed)), 1)
    return {"heatmap": by_heatmap.tiles / count, "loader": by_loader.tiles / count}


def opening(many: int = MANY) -> tuple[float, float]:
    """Seconds of CPU to open so many slides, and MiB that each takes while it is kept."""
    source = inputs.slide("mixed", min(inputs.side(), 12_800))
    folder = inputs.folder() / f"{source.stem}-many"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:03d}.tif" for i in range(many)]
    for path in paths:
        if not path.exists():
            try:
                os.link(source, path)
            except OSError:
                shutil.copyfile(source, path)
    daskdmed.open_slide(source)
    before, began = _resident(), time.process_time()
    slides = daskdmed.open_slides(paths)
    seconds = time.process_time() - began
    return seconds, max(_resident() - before, 1e-6) / len(slides)


def _resident() -> float:
    """MiB of this process."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20
