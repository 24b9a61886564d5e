"""Stains instead of colours: channels by name, labels as target, a composite to look at.

python examples/fluorescence.py [SLIDE]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import torch
from torch import nn

import daskdmed
from daskdmed import Dataset, LightDL, Patient, Record

OUTPUT = Path("output/fluorescence")
QUICK = bool(os.environ.get("DASKDMED_QUICK"))
SIZE = 512 if QUICK else 2048
#: name, colour as OME writes it (red, green, blue, opacity), what it emits
STAINS = (("DAPI", 0x0050FFFF, 461), ("CD3", 0x00FF40FF, 520), ("PanCK", 0xFF3000FF, 570))


def make_slide(folder: Path, size: int) -> tuple[Path, Path]:
    """An OME-TIFF of three stains, and a map of its cells: 1, or 2 where CD3 is around them."""
    rng = np.random.default_rng(0)
    stains = rng.gamma(2.0, 150.0, (len(STAINS), size, size))
    cells = np.zeros((size, size), np.uint8)
    y, x = np.mgrid[-12:13, -12:13]
    radius = np.hypot(y, x)
    for centre in rng.integers(12, size - 12, (size * size // 900, 2)):
        place = tuple(slice(c - 12, c + 13) for c in centre)
        is_immune = centre[1] > size / 2 and rng.random() < 0.6
        stains[0][place] += 9000 * np.exp(-((radius / 5) ** 2))
        if is_immune:
            stains[1][place] += 6000 * np.exp(-((radius - 8) ** 2) / 4)
        cells[place][radius < 9] = 1 + is_immune
    waves = np.sin(np.arange(size) / 60)
    stains[2] += 4000 * np.clip(waves[:, None] + waves, 0, None)
    stains = np.clip(stains, 0, 65535).astype(np.uint16)
    names, colours, waves_nm = zip(*STAINS, strict=True)
    said = {
        "Name": list(names),
        "Color": [c - (c >> 31 << 32) for c in colours],  # as a signed number
        "EmissionWavelength": list(waves_nm),
        "EmissionWavelengthUnit": ["nm"] * len(names),
    }
    options: dict[str, Any] = {"tile": (128, 128), "compression": "zlib"}
    about = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": said}
    folder.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(folder / "stains.ome.tif", ome=True) as tif:
        tif.write(stains, subifds=2, metadata=about, photometric="minisblack", **options)
        for step in (2, 4):
            lower = stains.reshape(len(stains), size // step, step, size // step, step)
            lower = lower.mean(axis=(2, 4)).astype(np.uint16)
            tif.write(lower, subfiletype=1, photometric="minisblack", **options)
    palette = np.zeros((3, 256), np.uint16)
    palette[:, 1], palette[:, 2] = (0, 30000, 65535), (0, 65535, 0)
    options |= {"photometric": "palette", "colormap": palette, "metadata": None}
    tifffile.imwrite(folder / "cells.tif", cells, **options)
    return folder / "stains.ome.tif", folder / "cells.tif"


def show(slide: daskdmed.Slide, path: Path) -> None:
    """What is known of the channels, and how they look together."""
    for channel in slide.channels or ():
        print(f"  {channel.name:8} #{channel.color or '------'}  {channel.wavelength or '?'} nm")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(slide.get_picture((768, 768))))
    print("composite", path)


def main() -> None:
    if len(sys.argv) > 1:
        show(daskdmed.open_slide(sys.argv[1]), OUTPUT / "composite.png")
        return
    stains, cells = make_slide(OUTPUT / "slide", SIZE)
    slide = daskdmed.open_slide(stains)
    print(slide)
    show(slide, OUTPUT / "composite.png")

    # two of the three: the tiles of the others are neither read nor decoded
    print("lazy     ", slide.to_dask(channels=["CD3", "DAPI"]))
    labels = daskdmed.open_slide(cells)
    print("labels   ", labels.is_labels, "thumbnail of", np.unique(labels.get_thumbnail((99, 99))))

    dataset = Dataset("stains", [Patient("p", {"wsi": Record(stains), "cells": Record(cells)})])
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 16, 9, padding=4), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(),
        nn.Conv2d(16, 3, 1),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    with LightDL(
        dataset, channels=["DAPI", "CD3"], record="wsi", target="cells", smallchunk_size=64,
        batch_size=16, bigchunk_size=512, smallchunks_per_bigchunk=256,
        epoch_length=16 * (24 if QUICK else 120),
    ) as loader:  # fmt: skip
        for x, _, smallchunks in loader:
            truth = torch.as_tensor(np.asarray(smallchunks.targets)).reshape(-1, 64, 64).long()
            loss = nn.functional.cross_entropy(model(x.float() / 4000), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    shape, learnt = tuple(x.shape), np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    print(f"batches   {shape} {x.dtype}, loss {losses[0]:.2f} -> {losses[-1]:.2f}", end=", ")
    print("learnt:", bool(learnt))

    # where the immune cells are, by one stain
    bright = daskdmed.heatmap(
        slide, lambda windows: windows.mean(axis=(1, 2)), kernel_size=64, channels="CD3"
    )
    left, right = np.array_split(np.asarray(bright), 2, axis=1)
    print(f"CD3       {left.mean():.0f} on the left, {right.mean():.0f} on the right")
    converted = slide.with_channels(["CD3", "DAPI"]).to_ome_zarr(
        OUTPUT / "two.ome.zarr", overwrite=True
    )
    print("OME-Zarr ", converted.channels, [c.color for c in converted.channels or ()])


if __name__ == "__main__":
    main()
