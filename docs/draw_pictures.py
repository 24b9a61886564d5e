"""Draws the pictures of the README: results over slides, and where small chunks came from.

    python docs/draw_pictures.py

Needs the published slide CMU-1-Small-Region (`daskdmed.samples.fetch`), and a minute.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import daskdmed
from daskdmed import Dataset, LightDL, Patient, Record, samples

DOCS = Path(__file__).parent
#: of a colour that haematoxylin takes away most of (Ruifrok and Johnston, 2001)
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])


def haematoxylin(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A model of one line: mean optical density along haematoxylin, (n, h, w, 3) -> (n,)."""
    density = -np.log((windows.astype(np.float32) + 1) / 256)
    return np.asarray((density @ (HAEMATOXYLIN / np.linalg.norm(HAEMATOXYLIN))).mean(axis=(1, 2)))


def draw(slide: daskdmed.Slide, name: str, title: str, folder: Path, **options: Any) -> None:
    """A heatmap over a slide."""
    heat = daskdmed.heatmap(
        slide,
        haematoxylin,
        out=folder / f"{name}.zarr",
        mask=daskdmed.tissue_mask(slide),
        **options,
    )
    figure = daskdmed.plot.overlay(slide, heat, alpha=0.55, title=title, label="haematoxylin")
    figure.set_size_inches(7, 5.5)
    figure.savefig(DOCS / f"{name}.jpg", dpi=80, pil_kwargs={"quality": 80})


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        real = daskdmed.open_slide(samples.fetch("CMU-1-Small-Region.svs"))
        draw(real, "overlay-real", "CMU-1-Small-Region.svs", folder, kernel_size=64, stride=32)
        made = samples.make_slide(folder / "made.svs", 8192, tissue=0.35, seed=4)
        slide = daskdmed.open_slide(made.path)
        draw(slide, "overlay-made", "a made slide", folder, kernel_size=128, stride=128)

        data = Dataset("pictures", [Patient("a made slide", {"wsi": Record(made.path)})])
        settings: dict[str, Any] = {"bigchunk_size": 1024, "smallchunks_per_bigchunk": 32}
        with LightDL(data, **settings, tissue=True, epoch_length=120) as loader:
            for _ in loader:
                pass
            figure = loader.plot_coverage("a made slide")
        figure.set_size_inches(7, 5.5)
        figure.savefig(DOCS / "coverage.jpg", dpi=80, pil_kwargs={"quality": 80})


if __name__ == "__main__":
    main()
