"""A slide in napari: the image with its levels, a heatmap, labels and annotations, as layers.

Everything is a lazy Dask array that napari reads as one pans and zooms. Without a window (no
display, or DASKDMED_QUICK) the layers go into napari's model of a viewer, which draws nothing,
and are checked there.

    pip install 'napari[all]'
    python examples/napari_view.py [SLIDE [HEATMAP [ANNOTATIONS]]]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import daskdmed
from daskdmed import Annotations, samples

OUTPUT = Path("output/napari_view")
QUICK = bool(os.environ.get("DASKDMED_QUICK"))


def purple(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How purple windows are, between 0 and 1: (n, y, x, 3) -> (n,)."""
    colour = windows.mean(axis=(1, 2), dtype=np.float32) / 255
    return np.clip(4 * ((colour[:, 0] + colour[:, 2]) / 2 - colour[:, 1]), 0, 1)


def example_files() -> tuple[Path, Path, Path]:
    """A made slide, a heatmap with its levels, and the truth drawn as polygons."""
    made = samples.make_slide(OUTPUT / "slide.svs", 1024 if QUICK else 8192, levels=3)
    store, drawn = OUTPUT / "purple.ome.zarr", OUTPUT / "slide.geojson"
    daskdmed.heatmap(made.path, purple, kernel_size=32, out=store, overwrite=True)
    daskdmed.store.add_pyramid(store, smallest=8)
    names = {1: "benign", 2: "tumour"}
    Annotations.from_mask(made.class_map, made.cell, names).to_geojson(drawn)
    return made.path, store, drawn


def checked(viewer: Any, slide: daskdmed.Slide) -> None:
    """That every layer lies where it should, asked of napari."""
    image, heat, labels, shapes = viewer.layers
    assert [layer.multiscale for layer in viewer.layers] == [True, True, False, False]
    print("levels", [level.shape[:2] for level in image.data], "rgb", image.rgb)
    # the middle of a window in the world, and which cell of the heatmap napari finds there
    y, x = 5, 7
    middle = (np.array([y, x]) * 32 + 16 - 0.5) * slide.mpp[0]
    cell = heat.world_to_data(middle)
    value = float(heat.data[0][y, x].compute())
    print("the cell in the middle of a window:", np.allclose(cell, (y, x)), f"value {value:.2f}")
    truth = slide.to_dask()[y * 32 : y * 32 + 32, x * 32 : x * 32 + 32].compute()
    print("its value is of those pixels:", np.isclose(purple(truth[None])[0], value, atol=1e-3))
    print("labels where the heatmap is:", np.allclose(labels.extent.world, heat.extent.world))
    # what napari's triangles cover is what was drawn
    drawn = daskdmed.read_annotations(OUTPUT / "slide.geojson")
    area = sum(triangles(shape) for shape in shapes._data_view.shapes)
    print(f"{shapes.nshapes} shapes, filled as drawn:", np.isclose(area, drawn.area, rtol=1e-3))


def triangles(shape: Any) -> float:
    """The area that napari fills."""
    a, b, c = (shape._face_vertices[shape._face_triangles[:, i]] for i in range(3))
    (u, v), (w, z) = (b - a).T[-2:], (c - a).T[-2:]
    return float(np.abs(u * z - v * w).sum() / 2)


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    given = [Path(name) for name in sys.argv[1:4]]
    path, store, drawn = (given + [None] * 3)[:3] if given else example_files()
    slide = daskdmed.open_slide(path)
    options = {"heatmap": store, "annotations": drawn}
    if store is not None and not given:
        options["labels"] = (daskdmed.store.open_heatmap(store).lazy() > 0.5).astype(np.uint8)

    if not QUICK:
        import napari

        daskdmed.napari.show(slide, **options)
        napari.run()
        return
    from napari.components import ViewerModel

    checked(daskdmed.napari.show(slide, viewer=ViewerModel(), **options), slide)


if __name__ == "__main__":
    main()
