"""A heatmap for other programs: pyramid and classes for napari, TIFF and shapes for QuPath.

python examples/export_heatmap.py [SLIDE]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import daskdmed
from daskdmed import samples

OUTPUT = Path("output/export_heatmap")


def scores(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How purple and how pale windows are: (n, y, x, 3) -> (n, 2), between 0 and 1."""
    colour = windows.mean(axis=(1, 2), dtype=np.float32) / 255
    purple = (colour[:, 0] + colour[:, 2]) / 2 - colour[:, 1]
    return np.stack([np.clip(4 * purple, 0, 1), colour.min(axis=1)], axis=1)


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT / "slide.svs"
    if not path.exists():
        samples.make_slide(path, 2048 if os.environ.get("DASKDMED_QUICK") else 6144)
    store = OUTPUT / "scores.ome.zarr"
    result = daskdmed.heatmap(path, scores, kernel_size=64, stride=32, out=store, overwrite=True)
    print("heatmap  ", result)

    # viewers of OME-Zarr get coarser levels, names and colours...
    levels = daskdmed.store.add_pyramid(
        store, smallest=32, channels=["purple", "pale"], colors=["8E44AD", "F5CBA7"], window=(0, 1)
    )
    # ...and the larger of both scores as a label image
    daskdmed.store.write_labels(
        store,
        daskdmed.store.argmax_labels(store, threshold=0.3),
        classes=["purple", "pale"],
        overwrite=True,
    )
    print(f"OME-Zarr  {levels} levels, labels beside them: {store}")

    # a picture of one score for OpenSlide and QuPath, and both for Fiji
    daskdmed.export_heatmap(store, OUTPUT / "purple.tif", channel=0, vmin=0, vmax=1, overwrite=True)
    daskdmed.export_heatmap(store, OUTPUT / "both.ome.tif", dtype="float32", overwrite=True)
    print("TIFF     ", daskdmed.open_slide(OUTPUT / "purple.tif"))

    # shapes for QuPath: regions of high scores, and one tile per window
    daskdmed.export_heatmap(
        store, OUTPUT / "regions.geojson", thresholds=[0.3, 0.5], channel=0, overwrite=True
    )
    regions = daskdmed.read_annotations(OUTPUT / "regions.geojson")
    print("regions  ", regions)
    daskdmed.export_heatmap(
        store, OUTPUT / "tiles.geojson", kind="tiles", channel=0, above=0.5, overwrite=True
    )
    tiles = json.loads((OUTPUT / "tiles.geojson").read_text())["features"]
    print(f"tiles     {len(tiles)}, the first {tiles[0]['properties']['measurements']}")

    # and a picture
    figure = daskdmed.plot.overlay(path, store, channel=0, label="purple")
    figure.savefig(OUTPUT / "overlay.png", dpi=120)
    print(f"picture   {OUTPUT / 'overlay.png'}")


if __name__ == "__main__":
    main()
