"""A slide, and servers that have it."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import dask
import numpy as np
import pytest
import tifffile
import zarr

from daskdmed.images.remote.blocks import blocks


def _serving():
    spec = importlib.util.spec_from_file_location(
        "daskdmed_tests_server", Path(__file__).with_name("_server.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.serving


def slide_bytes(seed):
    """A pyramid of plain values in 64 tiles of 48 KiB, its directories at both ends, and the
    values."""
    values = np.random.default_rng(seed).integers(0, 255, (1024, 1024, 3), np.uint8)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        for step in (1, 4):
            tiff.write(
                values[::step, ::step],
                tile=(128, 128),
                photometric="rgb",
                subfiletype=step > 1,
                resolution=(20000 / step, 20000 / step),
                resolutionunit="CENTIMETER",
            )
    return file.getvalue(), values


@pytest.fixture(scope="session")
def slide():
    return slide_bytes(0)


@pytest.fixture(scope="session")
def other():
    return slide_bytes(1)


@pytest.fixture(scope="session")
def values():
    return np.random.default_rng(0).integers(1, 255, (3, 64, 96), np.uint8)


@pytest.fixture(scope="session")
def files(values, tmp_path_factory):
    """An OME-Zarr of six chunks, by name."""
    root = tmp_path_factory.mktemp("zarr")
    group = zarr.open_group(root / "i.zarr", mode="w", zarr_format=3)
    group.create_array("s0", data=values, chunks=(3, 32, 32), dimension_names=("c", "y", "x"))
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    scale = {"type": "scale", "scale": [1, 0.5, 0.5]}
    level = {"path": "s0", "coordinateTransformations": [scale]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}
    found = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in found}


@pytest.fixture(scope="session")
def _server():
    pytest.importorskip("aiohttp")
    with _serving()() as server:
        yield server


@pytest.fixture
def server(_server, slide):
    _server.files = {"a.tif": slide[0]}
    _server.behave()
    yield _server
    _server.behave()


@pytest.fixture(autouse=True)
def _fresh():
    """No blocks of other tests, and no waiting."""
    blocks.clear()
    with dask.config.set(
        {"daskdmed.images.remote.backoff": 0, "daskdmed.images.remote.backoff-limit": 0}
    ):
        yield
