"""The same work through other libraries, each as a generator of finished steps.

A generator yields, after each step, how many units that step did: patches of 224 x 224 at
random places of random slides, pixels of random blocks, or windows of a slide in order. Each
library is imported by its own functions only and used as its documentation shows; none is a
dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BLOCK, CROP, BATCH, WORKERS = 4096, 224, 64, 2
Steps = Iterator[int]
Work = Callable[[list[Path]], Steps]


def places(paths: list[Path], seed: int = 0) -> Iterator[tuple[int, int, int]]:
    """(slide, x, y) of random patches, uniform over the slides; all must be of one size."""
    width, height = size_of(paths[0])
    rng = np.random.default_rng(seed)
    while True:
        which = rng.integers(len(paths), size=BATCH)
        xs = rng.integers(width - CROP + 1, size=BATCH)
        ys = rng.integers(height - CROP + 1, size=BATCH)
        yield from zip(which.tolist(), xs.tolist(), ys.tolist(), strict=True)


def corners(path: Path, seed: int = 0) -> Iterator[tuple[int, int, int, int]]:
    """(x, y, width, height) of random blocks on an even grid."""
    width, height = size_of(path)
    rng = np.random.default_rng(seed)
    while True:
        x = int(rng.integers(-(-width // BLOCK))) * BLOCK
        y = int(rng.integers(-(-height // BLOCK))) * BLOCK
        yield x, y, min(BLOCK, width - x), min(BLOCK, height - y)


def windows(path: Path) -> Iterator[tuple[int, int]]:
    """(x, y) of all windows that lie inside a slide, row by row, again and again."""
    width, height = size_of(path)
    while True:
        for y in range(0, height - CROP + 1, CROP):
            for x in range(0, width - CROP + 1, CROP):
                yield x, y


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) at level 0."""
    import tifffile

    with tifffile.TiffFile(path) as f:
        return f.pages[0].imagewidth, f.pages[0].imagelength


def mean_of_grid(batch: np.ndarray) -> np.ndarray:
    """The trivial model: mean of a 4 x 4 sub-grid of each window."""
    return batch[:, :: CROP // 4, :: CROP // 4].mean(axis=(1, 2, 3), dtype=np.float32)


# ---------------------------------------------------------------------- daskdmed
def daskdmed_patches(paths: list[Path], client: Any = None) -> Steps:
    import daskdmed

    patients = [
        daskdmed.Patient(str(i), {"wsi": daskdmed.Record(str(p))}) for i, p in enumerate(paths)
    ]
    data = daskdmed.Dataset("compare", patients)
    with daskdmed.LightDL(
        data, smallchunk_size=CROP, batch_size=BATCH, smallchunks_per_bigchunk=512, client=client
    ) as loader:
        # the first step is not measured: until the memory budget is full once
        done = 0
        for x, _, _ in loader:
            done += x.shape[0]
            if loader.stats().visits_evicted >= 4:
                break
        yield done
        for x, _, _ in loader:
            yield x.shape[0]


def daskdmed_cluster_patches(paths: list[Path]) -> Steps:
    from scenarios import local_cluster

    with local_cluster(workers=WORKERS) as client:
        yield from daskdmed_patches(paths, client)


def daskdmed_blocks(paths: list[Path]) -> Steps:
    import dask

    import daskdmed

    array = daskdmed.open_slide(paths[0]).to_dask(chunks=BLOCK)
    places = corners(paths[0])
    while True:
        # different ones: Dask would read a block that is asked for twice only once
        chosen = list(dict.fromkeys(next(places) for _ in range(4)))
        parts = [array.blocks[y // BLOCK, x // BLOCK] for x, y, _, _ in chosen]
        dask.compute(*parts, scheduler="threads", num_workers=WORKERS)
        yield sum(w * h for _, _, w, h in chosen)


def daskdmed_windows(paths: list[Path]) -> Steps:
    import daskdmed

    while True:
        values = daskdmed.heatmap(paths[0], mean_of_grid, kernel_size=CROP, edge="drop")
        yield int(np.prod(values.shape))


# ---------------------------------------------------------------------- OpenSlide's kind
def _reader_patches(open_one: Callable[[Path], Any], **options: Any) -> Work:
    def work(paths: list[Path]) -> Steps:
        slides = [open_one(p) for p in paths]
        batch = np.empty((BATCH, CROP, CROP, 3), np.uint8)
        for i, (which, x, y) in enumerate(places(paths)):
            region = slides[which].read_region((x, y), 0, (CROP, CROP), **options)
            batch[i % BATCH] = _rgb(region)
            if i % BATCH == BATCH - 1:
                yield BATCH

    return work


def _reader_blocks(open_one: Callable[[Path], Any], **options: Any) -> Work:
    def work(paths: list[Path]) -> Steps:
        slide = open_one(paths[0])
        for x, y, w, h in corners(paths[0]):
            _rgb(slide.read_region((x, y), 0, (w, h), **options))
            yield w * h

    return work


def _reader_windows(open_one: Callable[[Path], Any], **options: Any) -> Work:
    def work(paths: list[Path]) -> Steps:
        slide = open_one(paths[0])
        batch = np.empty((BATCH, CROP, CROP, 3), np.uint8)
        for i, place in enumerate(windows(paths[0])):
            batch[i % BATCH] = _rgb(slide.read_region(place, 0, (CROP, CROP), **options))
            if i % BATCH == BATCH - 1:
                mean_of_grid(batch)
                yield BATCH

    return work


def _rgb(region: Any) -> np.ndarray:
    return region if isinstance(region, np.ndarray) else np.asarray(region.convert("RGB"))


def _openslide(path: Path) -> Any:
    import openslide

    return openslide.OpenSlide(path)


def _tiffslide(path: Path) -> Any:
    import tiffslide

    return tiffslide.TiffSlide(path)


# ---------------------------------------------------------------------- DataLoader
class OpenSlidePatches:
    """An endless map-style data set of random patches, as labs write it."""

    def __init__(self, paths: list[Path], ordered: bool = False) -> None:
        self.paths = paths
        self.width, self.height = size_of(paths[0])
        self.ordered = ordered
        self._slides: dict[int, Any] = {}

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> np.ndarray:
        if self.ordered:
            which = 0
            across = self.width // CROP
            row, column = divmod(index % (across * (self.height // CROP)), across)
            x, y = column * CROP, row * CROP
        else:
            rng = np.random.default_rng(index)
            which = int(rng.integers(len(self.paths)))
            x = int(rng.integers(self.width - CROP + 1))
            y = int(rng.integers(self.height - CROP + 1))
        if which not in self._slides:
            self._slides[which] = _openslide(self.paths[which])
        return _rgb(self._slides[which].read_region((x, y), 0, (CROP, CROP)))


def _data_loader(data: Any, **options: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(data, batch_size=BATCH, num_workers=WORKERS, prefetch_factor=4, **options)


def openslide_loader_patches(paths: list[Path]) -> Steps:
    for batch in _data_loader(OpenSlidePatches(paths)):
        yield len(batch)


def openslide_loader_windows(paths: list[Path]) -> Steps:
    for batch in _data_loader(OpenSlidePatches(paths, ordered=True)):
        mean_of_grid(batch.numpy())
        yield len(batch)


# ---------------------------------------------------------------------- cuCIM
def cucim_patches(paths: list[Path]) -> Steps:
    from cucim import CuImage

    slides = [CuImage(str(p)) for p in paths]
    place = places(paths)
    while True:
        # the batched reader works on one slide at a time
        for slide in slides:
            spots = [next(place)[1:] for _ in range(4 * BATCH)]
            for batch in slide.read_region(
                spots, (CROP, CROP), level=0, batch_size=BATCH, num_workers=WORKERS
            ):
                yield len(np.asarray(batch))


def cucim_blocks(paths: list[Path]) -> Steps:
    from cucim import CuImage

    slide = CuImage(str(paths[0]))
    for x, y, w, h in corners(paths[0]):
        np.asarray(slide.read_region((x, y), (w, h), level=0, num_workers=WORKERS))
        yield w * h


def cucim_windows(paths: list[Path]) -> Steps:
    from cucim import CuImage

    slide = CuImage(str(paths[0]))
    spots = windows(paths[0])
    while True:
        chosen = [next(spots) for _ in range(16 * BATCH)]
        for batch in slide.read_region(
            chosen, (CROP, CROP), level=0, batch_size=BATCH, num_workers=WORKERS
        ):
            yield len(mean_of_grid(np.asarray(batch)))


# ---------------------------------------------------------------------- MONAI, TIAToolbox
def _monai(paths: list[Path], backend: str) -> Steps:
    from monai.data import PatchWSIDataset

    place = places(paths)
    while True:
        items = [
            # MONAI counts (row, column)
            {"image": str(paths[which]), "patch_location": (y, x)}
            for which, x, y in (next(place) for _ in range(200 * BATCH))
        ]
        data = PatchWSIDataset(
            items,
            patch_size=CROP,
            patch_level=0,
            include_label=False,
            center_location=False,
            reader=backend,
        )
        for batch in _data_loader(data):
            yield len(batch["image"])


def monai_cucim_patches(paths: list[Path]) -> Steps:
    yield from _monai(paths, "cuCIM")


def monai_openslide_patches(paths: list[Path]) -> Steps:
    yield from _monai(paths, "OpenSlide")


def tiatoolbox_patches(paths: list[Path]) -> Steps:
    from tiatoolbox.wsicore.wsireader import WSIReader

    slides = [WSIReader.open(p) for p in paths]
    batch = np.empty((BATCH, CROP, CROP, 3), np.uint8)
    for i, (which, x, y) in enumerate(places(paths)):
        batch[i % BATCH] = slides[which].read_rect((x, y), (CROP, CROP), 0, "level")
        if i % BATCH == BATCH - 1:
            yield BATCH


def tiatoolbox_blocks(paths: list[Path]) -> Steps:
    from tiatoolbox.wsicore.wsireader import WSIReader

    slide = WSIReader.open(paths[0])
    for x, y, w, h in corners(paths[0]):
        slide.read_rect((x, y), (w, h), 0, "level")
        yield w * h


@dataclass(frozen=True)
class Peer:
    """A way to do the work.

    Parameters
    ----------
    name : str
        For the table.
    modules : tuple of str
        What must be installed.
    work : dict
        Task -> generator function.
    """

    name: str
    modules: tuple[str, ...]
    work: dict[str, Work] = field(default_factory=dict)


def _reader(name: str, module: str, open_one: Callable[[Path], Any], **options: Any) -> Peer:
    work = {
        "patches": _reader_patches(open_one, **options),
        "blocks": _reader_blocks(open_one, **options),
        "windows": _reader_windows(open_one, **options),
    }
    return Peer(name, (module,), work)


PEERS: tuple[Peer, ...] = (
    Peer(
        "daskdmed",
        ("daskdmed", "torch"),
        {"patches": daskdmed_patches, "blocks": daskdmed_blocks, "windows": daskdmed_windows},
    ),
    Peer("daskdmed, 2 processes", ("daskdmed", "torch"), {"patches": daskdmed_cluster_patches}),
    _reader("OpenSlide", "openslide", _openslide),
    Peer(
        "OpenSlide, DataLoader, 2 workers",
        ("openslide", "torch"),
        {"patches": openslide_loader_patches, "windows": openslide_loader_windows},
    ),
    _reader("tiffslide", "tiffslide", _tiffslide, as_array=True),
    Peer(
        "cuCIM, batched, 2 threads",
        ("cucim",),
        {"patches": cucim_patches, "blocks": cucim_blocks, "windows": cucim_windows},
    ),
    Peer(
        "MONAI PatchWSIDataset, cuCIM, 2 workers",
        ("monai", "cucim", "torch"),
        {"patches": monai_cucim_patches},
    ),
    Peer(
        "MONAI PatchWSIDataset, OpenSlide, 2 workers",
        ("monai", "openslide", "torch"),
        {"patches": monai_openslide_patches},
    ),
    Peer(
        "TIAToolbox",
        ("tiatoolbox",),
        {"patches": tiatoolbox_patches, "blocks": tiatoolbox_blocks},
    ),
)
