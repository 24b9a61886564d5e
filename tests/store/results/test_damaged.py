"""Results that were damaged on disk: a typed error that names the store, never holes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from daskdmed import heatmap
from daskdmed.core.region import Region
from daskdmed.errors import StoreError
from daskdmed.images.opening import open_slide
from daskdmed.samples import make_slide
from daskdmed.store import open_heatmap, slide_to_ome_zarr

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 48, 3)).astype(np.uint8)


def mean(windows):
    return np.asarray(windows, np.float32).mean(axis=(1, 2, 3))


def write(path, **options):
    return heatmap(IMAGE, mean, kernel_size=8, out=path, **options)


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "map.zarr"
    write(path)
    return path


def change(path, *keys, value):
    """A value of a JSON document."""
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("kernel_size",), 3),
        (("stride",), ["a", "b"]),
        (("stride",), [0, 8]),
        (("downsample",), [1.0]),
        (("downsample",), [1.0, float("inf")]),
        (("mpp",), [1]),
        (("space",), {"affine": [], "shape": [1, 1, 1]}),
    ],
)
def test_places_that_make_no_sense(stored, keys, value):
    change(stored / "zarr.json", "attributes", "daskdmed", "georeference", *keys, value=value)
    with pytest.raises(StoreError, match=r"map\.zarr.*damaged"):
        open_heatmap(stored)


@pytest.mark.parametrize("content", [b"", b"\xb5\xff", b"[1.5]", b"{}"])
def test_metadata_of_the_values(stored, content):
    (stored / "0" / "zarr.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"map\.zarr"):
        open_heatmap(stored)
    with pytest.raises(StoreError, match=r"map\.zarr"):
        write(stored, resume=True)


def test_values_that_cannot_be_decoded(stored):
    chunk = next(p for p in (stored / "0" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-5])
    found = open_heatmap(stored)
    with pytest.raises(StoreError, match=r"map\.zarr.*damaged"):
        found.read(Region.of(found.counts))


def test_what_is_marked_as_done_must_be_there(stored):
    """Else a resumed run would give holes for results."""
    for file in sorted((stored / "0").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (stored / "0").rmdir()
    with pytest.raises(StoreError, match=r"map\.zarr.*marked as done.*missing"):
        write(stored, resume=True)


def test_a_map_of_other_blocks(stored):
    change(stored / "done" / "zarr.json", "shape", value=[3, 3])
    with pytest.raises(StoreError, match=r"map\.zarr.*\(3, 3\)"):
        write(stored, resume=True)


def test_values_of_another_shape(stored):
    change(stored / "0" / "zarr.json", "shape", value=[3, 3])
    with pytest.raises(StoreError, match=r"map\.zarr.*\(3, 3\)"):
        write(stored, resume=True)


def test_slides_whose_level_is_missing(tmp_path, monkeypatch):
    """A conversion that was interrupted, and then lost a level."""
    slide = open_slide(make_slide(tmp_path / "a.tif", size=(300, 260)).path)
    out = tmp_path / "a.zarr"

    def stop(*_):
        raise OSError("no more")

    monkeypatch.setattr("daskdmed.store.export.slides._Job._finish", stop)
    with pytest.raises(StoreError):
        slide_to_ome_zarr(slide, out)
    (tmp_path / ".a.zarr.new" / "0" / "zarr.json").unlink()  # where it is built
    with pytest.raises(StoreError, match=r"a\.zarr.*level '0' is missing"):
        slide_to_ome_zarr(slide, out, resume=True)
