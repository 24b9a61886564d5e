"""Annotations: read and write them, paint them on any grid, train on them, trade patches.

python examples/annotations.py [SLIDE ANNOTATIONS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import dask
import numpy as np

import daskdmed
from daskdmed import Annotations, Categories, Dataset, LightDL, Patient, Record, samples
from daskdmed.cohort.annotations import PatchCoordinates

OUTPUT = Path("output/annotations")


def example_files() -> tuple[Path, Path]:
    """A made slide, and its ground truth drawn as polygons that QuPath opens."""
    made = samples.make_slide(OUTPUT / "slide.svs", 2048, downsample=2, levels=3)
    names = {1: "benign", 2: "tumour"}
    drawn = Annotations.from_mask(made.class_map, made.cell, names)
    drawn.to_geojson(OUTPUT / "slide.geojson")
    return made.path, OUTPUT / "slide.geojson"


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path, drawn = map(Path, sys.argv[1:3]) if len(sys.argv) > 2 else example_files()
    slide = daskdmed.open_slide(path)

    # QuPath's GeoJSON or ASAP's XML; offset=slide for MRXS, which QuPath crops
    table = daskdmed.read_annotations(drawn, offset=slide)
    print(table, "bounds", table.bounds, "notes", len(table.notes))
    first = table.labels[0]
    print(f"{first}: {len(table.select(first))} shapes, {table.select(first).area:.0f} px")

    # any region, any resolution: pixels whose centre lies inside
    region = table.rasterize((10, 20), (4, 6), 16.0, classes=list(table.labels))
    print("a region\n", region)
    # as a Dask array, block for block on the slide's
    image = slide.to_dask(level=1, chunks=512)
    target = table.to_dask(slide.view(level=1), 512, classes=list(table.labels))
    assert target.chunks == image.chunks[:2]
    red = {n: image[..., 0][target == k].mean() for k, n in enumerate(table.labels, start=1)}
    print("mean red of", {name: round(float(mean)) for name, mean in dask.compute(red)[0].items()})

    # as the target of the loader: superclasses, and a background channel
    classes = Categories({"tissue": table.labels, first: first}, background="first")
    patient = Patient("p", {"wsi": Record(path), "drawn": Record(drawn)})
    with LightDL(
        Dataset("drawn", [patient]),
        target="drawn",
        target_classes=classes,
        target_channels=True,
        smallchunk_size=128,
        bigchunk_size=1024,
        batch_size=16,
        resident="64 MiB",
        epoch_length=2,
    ) as loader:
        for x, _, smallchunks in loader:
            y = np.stack([chunk.target for chunk in smallchunks])
            share = dict(
                zip(classes.channels, y.mean(axis=(0, 1, 2)).round(2).tolist(), strict=True)
            )
            print("batch", tuple(x.shape), "target", y.shape, share)

    # patch coordinates of TRIDENT and CLAM, and the tissue mask as polygons for QuPath
    tissue = daskdmed.tissue_mask(slide)
    outline = Annotations.from_mask(tissue.data, tissue.scale, "tissue")
    outline.to_geojson(OUTPUT / "tissue.geojson")
    rows, columns = np.nonzero(outline.mask(extent0=slide.dimensions[::-1], scale=256))
    corners = np.stack([columns, rows], axis=1) * 256
    facts = {"power0": slide.power or 20, "power": slide.power or 20}
    patches = PatchCoordinates(corners, 256, 256, extent0=slide.dimensions, **facts)
    patches.write(OUTPUT / "patches.h5", "trident")
    again = PatchCoordinates.read(OUTPUT / "patches.h5")
    again.to_annotations().to_geojson(OUTPUT / "patches.geojson")
    print(f"{len(outline)} regions of tissue, {len(again)} patches; the same: {again == patches}")


if __name__ == "__main__":
    main()
