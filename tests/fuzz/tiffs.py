"""Seeds in TIFF: every layout and compression, pyramids, and what vendors arrange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tests.fuzz.seeds import Seed
from tests.images import _make, _vendors

#: a real slide; where it is not, a made one takes its number
REAL = "CMU-1-Small-Region.svs"
#: of OME-TIFF, else each has its own
UUID = "6d6a1f38-0000-4000-8000-000000000000"
SIZE = 44, 70
TILE = 32, 48


def make(folder: Path) -> Iterator[Seed]:
    usual, _make.TILE = _make.TILE, TILE
    try:
        yield from _formats(folder)
        yield from _pyramids(folder)
    finally:
        _make.TILE = usual
    yield from _described(folder)
    yield from _labels(folder)
    yield from _of_vendors(folder)
    yield from _stacks(folder)


def _seed(
    path: Path, name: str = "", opener: str = "slide", share: float = 1.0, **options: Any
) -> Seed:
    return Seed.of(f"tiff/{name or path.stem}", opener, path, share, **options)


def _formats(folder: Path) -> Iterator[Seed]:
    for name in _make.FORMATS:
        path = folder / f"{name}.tif"
        _make.write_format(path, name, *SIZE)
        yield _seed(path)


def _pyramids(folder: Path) -> Iterator[Seed]:
    kinds: dict[str, dict[str, Any]] = {
        "pyramid": {},
        "pyramid-subifds": {"subifds": True, "compression": "lzw"},
        "pyramid-big": {"bigtiff": True, "compression": "deflate"},
        "pyramid-big-endian": {"compression": None, "byteorder": ">"},
    }
    for name, options in kinds.items():
        path = folder / f"{name}.tif"
        order = options.pop("byteorder", None)
        if order is None:
            _make.write_pyramid(path, (80, 96), tile=(32, 32), **options)
        else:
            with tifffile.TiffWriter(path, byteorder=order) as tif:
                for n in range(3):
                    image = _make.picture(80 >> n, 96 >> n)
                    tif.write(image, tile=(32, 32), photometric="rgb", metadata=None)
        yield _seed(path, share=2)


def _described(folder: Path) -> Iterator[Seed]:
    """Aperio's, OME's and QPTIFF's own texts."""
    image = _make.picture(64, 80)
    path = folder / "aperio.svs"
    with tifffile.TiffWriter(path) as tif:
        for n, (part, text) in enumerate(
            [
                (image, _make.APERIO),
                (image[::4, ::4], _make.APERIO),
                (image[::2, ::2], _make.APERIO),
                (image[:20, :24], "Aperio\r\nlabel 24x20"),
                (image[:24, :30], "Aperio\r\nmacro 30x24"),
            ]
        ):
            layout: dict[str, Any] = {"rowsperstrip": 16} if n in (1, 3, 4) else {"tile": (32, 32)}
            tif.write(part, description=text, compression="jpeg", photometric="rgb",
                      metadata=None, **layout)  # fmt: skip
    yield _seed(path, share=2)
    yield _seed(_real(folder, path), "real-aperio", share=2)
    path = folder / "aperio-j2k.svs"
    _make.write_tiles(
        path, image, _make.jpeg2000, 33005, photometric="rgb", compression="jpeg2000",
        description=_make.APERIO,
    )  # fmt: skip
    yield _seed(path)
    path = folder / "fluorescence.ome.tif"
    grey = np.stack([_make.picture(64, 80, 0, "uint16", seed=n) for n in range(3)])
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(
            grey, subifds=1, tile=(32, 32), compression="zlib", photometric="minisblack",
            metadata={"UUID": UUID, "axes": "CYX", "Channel": {"Name": ["DAPI", "FITC", "Cy5"]},
                      "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm",
                      "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"},
        )  # fmt: skip
        tif.write(grey[:, ::2, ::2], subfiletype=1, tile=(32, 32), compression="zlib",
                  photometric="minisblack")  # fmt: skip
    yield _seed(path, share=2)
    path = folder / "perkin.qptiff"
    with tifffile.TiffWriter(path) as tif:
        for step, kind in ((1, "FullResolution"), (2, "ReducedResolution")):
            for n, name in enumerate(("DAPI", "FITC")):
                text = (
                    '<?xml version="1.0" encoding="utf-16"?><PerkinElmer-QPI-ImageDescription>'
                    f"<DescriptionVersion>2</DescriptionVersion><ImageType>{kind}</ImageType>"
                    f"<Name>{name}</Name><Objective>20x</Objective></PerkinElmer-QPI-Image"
                    "Description>"
                )
                tif.write(
                    np.ascontiguousarray(grey[n, ::step, ::step] >> 8).astype("uint8"),
                    tile=(32, 32), compression="lzw", photometric="minisblack", metadata=None,
                    description=text, software="PerkinElmer-QPI", resolution=(20000, 20000),
                    resolutionunit="centimeter", subfiletype=int(step > 1),
                )  # fmt: skip
    yield _seed(path)


def _real(folder: Path, instead: Path) -> Path:
    """Four tiles of a scanned slide, with its texts, its tables and its label."""
    whole = Path(os.environ.get("DASKDMED_DATA_DIR", ".")) / REAL
    if not whole.is_file():
        return instead
    path = folder / "real.svs"
    with tifffile.TiffFile(whole) as source, tifffile.TiffWriter(path) as tif:
        page, label = source.pages[0], source.pages[2]
        across = -(-page.imagewidth // page.tilewidth)
        middle = across * 6 + 4
        chosen = (middle, middle + 1, middle + across, middle + across + 1)
        tiles = [page.dataoffsets[n] for n in chosen]
        counts = [page.databytecounts[n] for n in chosen]
        source.filehandle.seek(0)
        data = source.filehandle.read()
        tif.write(
            (data[o : o + n] for o, n in zip(tiles, counts)), shape=(480, 480, 3), dtype="uint8",
            tile=(240, 240), compression="jpeg", photometric=int(page.photometric),
            jpegtables=page.jpegtables, description=page.description, metadata=None,
        )  # fmt: skip
        tif.write(label.asarray()[:40, :40].copy(), description=label.description,
                  photometric="rgb", compression="lzw", predictor=2, metadata=None)  # fmt: skip
    return path


def _labels(folder: Path) -> Iterator[Seed]:
    """Palettes, alpha, white that is 0, one channel more than colours."""
    image = _make.picture(*SIZE)
    options: dict[str, Any] = {"tile": (32, 48), "metadata": None, "compression": "deflate"}
    path = folder / "palette.tif"
    colours = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype("uint16")
    tifffile.imwrite(path, image[..., 0], photometric="palette", colormap=colours, **options)
    yield _seed(path)
    path = folder / "alpha.tif"
    tifffile.imwrite(path, np.dstack([image, image[..., :1]]), photometric="rgb",
                     extrasamples=["unassalpha"], **options)  # fmt: skip
    yield _seed(path)
    path = folder / "white-is-zero.tif"
    tifffile.imwrite(path, image[..., 0], photometric="miniswhite", **options)
    yield _seed(path)
    path = folder / "infrared.tif"
    tifffile.imwrite(path, np.dstack([image, image[..., :1]]), photometric="rgb",
                     extrasamples=["unspecified"], planarconfig="contig", **options)  # fmt: skip
    yield _seed(path)
    path = folder / "bilevel.tif"
    tifffile.imwrite(path, image[..., 0] > 128, photometric="minisblack", metadata=None,
                     rowsperstrip=8)  # fmt: skip
    yield _seed(path)
    path = folder / "floats.tif"
    tifffile.imwrite(path, image[..., 0].astype("float32"), photometric="minisblack", **options)
    yield _seed(path)


def _of_vendors(folder: Path) -> Iterator[Seed]:
    image = _make.picture(96, 120) // 32 * 32
    path = folder / "hamamatsu.ndpi"
    pages = [(image, 20.0, 3), (image[::4, ::4].copy(), 5.0, None), (image[:40, :60], -1.0, None)]
    _vendors.write_ndpi(path, pages)
    yield _seed(path, share=3)
    path = folder / "philips.tiff"
    _vendors.write_philips(path, [image, image[::2, ::2]], image[:32, :32], image[:16, :16])
    yield _seed(path)
    path = folder / "leica.scn"
    _vendors.write_leica(path, image[::4, ::4], [image, image[::2, ::2]], offset=(8, 16),
                         canvas=(140, 160))  # fmt: skip
    yield _seed(path)
    path = folder / "ventana.bif"
    _vendors.write_ventana(path, [image, image[::2, ::2]], image[:16, :16], 0)
    yield _seed(path)
    path = folder / "ventana-overlap.bif"
    _vendors.write_ventana(path, [image, image[::2, ::2]], image[:16, :16], 5)
    yield _seed(path)


def _stacks(folder: Path) -> Iterator[Seed]:
    """Several planes: volumes, and slides of which one plane is meant."""
    stack = np.stack([_make.picture(40, 48, 0, "uint16", seed=n) for n in range(4)])
    path = folder / "pages.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", metadata=None, compression="lzw")
    yield _seed(path, "volume-pages", "volume")
    path = folder / "imagej.tif"
    tifffile.imwrite(path, stack, imagej=True, resolution=(2, 2),
                     metadata={"axes": "ZYX", "spacing": 3.0, "unit": "um"})  # fmt: skip
    yield _seed(path, "volume-imagej", "volume")
    yield _seed(path, "slide-imagej")
    path = folder / "stack.ome.tif"
    tifffile.imwrite(path, stack, ome=True, compression="zlib", tile=(32, 32),
                     metadata={"UUID": UUID, "axes": "ZYX", "PhysicalSizeZ": 2.0})  # fmt: skip
    yield _seed(path, "volume-ome", "volume")
    yield _seed(path, "slide-ome-stack")
