"""Slides that benchmarks read: made once, kept in a folder, the same for every run.

`DASKDMED_BENCH_SIZE` is the side of the slides (51200; 5120 in CI), `DASKDMED_BENCH_DIR`
where they are kept, `DASKDMED_BENCH_SECONDS` how long a rate is measured, and
`DASKDMED_BENCH_ROUNDS` in how many rounds. They are read at every call, so that tests can make
everything tiny.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from daskdmed.samples import make_slide

#: kind of slide -> fraction of it that is tissue
KINDS = {"mixed": 0.5, "dense": 1.0}
SLIDES = 8
#: voxels along each axis of a scan
SCAN = 160


def side() -> int:
    """Side of the slides in pixels."""
    return int(os.environ.get("DASKDMED_BENCH_SIZE") or 51_200)


def seconds() -> float:
    """How long one rate is measured."""
    return float(os.environ.get("DASKDMED_BENCH_SECONDS") or 8.0)


def rounds(usual: int) -> int:
    """In how many rounds a figure is measured, where so many are usual."""
    return int(os.environ.get("DASKDMED_BENCH_ROUNDS") or usual)


def folder() -> Path:
    """Where slides are kept."""
    named = os.environ.get("DASKDMED_BENCH_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / "daskdmed-bench"


def slide(kind: str, pixels: int | None = None, *, share_tiles: bool = False) -> Path:
    """A made slide, in the page cache.

    Parameters
    ----------
    kind : {"mixed", "dense"}
        About half background, or tissue everywhere.
    pixels : int, optional
        Its side, `side()` by default.
    share_tiles : bool
        Equal tiles stored once: for memory, not for speed.
    """
    pixels = pixels or side()
    shared = "-shared" if share_tiles else ""
    path = folder() / f"{kind}-{pixels}{shared}-v1.tif"
    if not path.exists():
        make_slide(path, pixels, tissue=KINDS[kind], share_tiles=share_tiles)
    warm(path)
    return path


def slides(kind: str, n: int = SLIDES) -> list[Path]:
    """Several slides: one file under several names, so that all stay in the page cache."""
    source = slide(kind)
    links = folder() / f"{source.stem}-links"
    links.mkdir(exist_ok=True)
    paths = [links / f"slide_{i:03d}.tif" for i in range(n)]
    for path in paths:
        if not path.exists():
            try:
                os.link(source, path)
            except OSError:  # no hard links on this file system
                shutil.copyfile(source, path)
    return paths


def scans(n: int = 4) -> list[Path]:
    """Compressed NIfTI scans of noise over smooth shapes, int16, each with a label beside it."""
    import nibabel
    import numpy as np

    folder().mkdir(parents=True, exist_ok=True)
    paths = [folder() / f"scan_{i:03d}-{SCAN}-v1.nii.gz" for i in range(n)]
    axes = np.ogrid[:SCAN, :SCAN, :SCAN]
    for seed, path in enumerate(paths):
        label = path.with_name(path.name.replace("scan", "label"))
        if label.exists():
            continue
        rng = np.random.default_rng(seed)
        middle, radius = rng.integers(50, 110, 3), 40 + 5 * seed
        inside = sum((a - m) ** 2 for a, m in zip(axes, middle, strict=True)) < radius**2
        image = (1000 * inside + rng.normal(0, 40, inside.shape)).astype(np.int16)
        for target, values in ((path, image), (label, inside.astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 1.5, 1])), target)
    for path in paths:
        warm(path)
    return paths


def warm(path: Path) -> None:
    """Read a file once, so that no figure contains the disk."""
    with path.open("rb", buffering=0) as f:
        while f.read(1 << 24):
            pass
