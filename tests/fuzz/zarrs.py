"""Seeds in Zarr: OME-Zarr of both formats, sharded and not, zipped, volumes, and results."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr

import daskdmed
from daskdmed.images.ngff.metadata import Axis, Channel, LevelPlace, Multiscale
from tests.fuzz.seeds import Seed
from tests.images import _make


def make(folder: Path) -> Iterator[Seed]:
    for version in ("0.4", "0.5"):
        path = folder / f"image-{version}.zarr"
        _image(path, version)
        yield Seed.of(f"zarr/image-{version}", "slide", path, share=2)
    path = folder / "sharded.zarr"
    _image(path, "0.5", shards=(3, 64, 64))
    yield Seed.of("zarr/sharded", "slide", path)
    yield _zipped(folder / "image-0.5.zarr")
    path = folder / "plain.zarr"
    array = zarr.create_array(store=str(path), shape=(50, 60, 3), chunks=(32, 32, 3), dtype="u1")
    array[:] = _make.picture(50, 60)
    yield Seed.of("zarr/plain", "slide", path)
    path = folder / "volume.zarr"
    _image(path, "0.5", volume=True)
    yield Seed.of("zarr/volume", "volume", path)
    path = folder / "volume-0.4.zarr"
    _image(path, "0.4", volume=True)
    yield Seed.of("zarr/volume-0.4", "volume", path)
    path = folder / "heatmap.zarr"
    write_result(path)
    yield Seed.of("zarr/result", "result", path)


def write_result(path: Path, *, resume: bool = False) -> Any:
    """Make the result that is a seed, or go on with one that was damaged."""
    with dask.config.set(scheduler="synchronous"):
        return daskdmed.heatmap(
            _make.picture(64, 80), _mean, kernel_size=16, stride=8, out=path, batch_size=16,
            resume=resume,
        )  # fmt: skip


def _mean(batch: Any) -> Any:
    return np.asarray(batch, np.float32).mean(axis=(1, 2, 3))


def _image(
    path: Path, version: Any, *, shards: tuple[int, ...] | None = None, volume: bool = False
) -> None:
    """Two levels of (c, y, x), or of (z, y, x)."""
    kind = 2 if version == "0.4" else 3
    group = zarr.create_group(store=str(path), zarr_format=kind)
    if volume:
        data = np.stack([_make.picture(20, 24, 0, "uint16", seed=n) for n in range(6)])
        axes = tuple(Axis.named(n, "millimeter") for n in "zyx")
        steps, chunks, factors = (2.0, 1.0, 1.0), (4, 16, 16), (1, 2, 2)
    else:
        data = np.moveaxis(_make.picture(64, 80), -1, 0)
        axes = (Axis.named("c"), *(Axis.named(n, "micrometer") for n in "yx"))
        steps, chunks, factors = (1.0, 0.5, 0.5), (1, 32, 32), (1, 2, 2)
    first = LevelPlace("0", steps, (0.0,) * 3)
    levels = (first, first.coarser("1", factors))
    channels = () if volume else tuple(
        Channel(label=name, color=colour, window=(0, 255), limits=(0, 255))
        for name, colour in (("R", "FF0000"), ("G", "00FF00"), ("B", "0000FF"))
    )  # fmt: skip
    image = Multiscale(axes, levels, name="image", channels=channels, version=version)
    group.attrs.update(image.attributes())
    for number, level in enumerate(levels):
        part = data[:, :: 2**number, :: 2**number]
        array = group.create_array(
            level.path, shape=part.shape, chunks=chunks, dtype=part.dtype, shards=shards,
            dimension_names=[a.name for a in axes] if kind == 3 else None,
            chunk_key_encoding={"name": "v2", "separator": "/"} if kind == 2 else None,
        )  # fmt: skip
        array[:] = part


def _zipped(folder: Path) -> Seed:
    path = folder.with_name("image.ozx")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            # without the time at which it was written
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            archive.writestr(entry, file.read_bytes())
    return Seed.of("zarr/zip", "slide", path)
