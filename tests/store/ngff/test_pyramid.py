"""Coarser levels: the right values at every border, valid metadata, read back by others."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import daskdmed
from daskdmed import heatmap
from daskdmed.cohort.record import Record
from daskdmed.errors import StoreError, UsageError
from daskdmed.images.ngff.metadata import hex_color
from daskdmed.store.ngff.pyramid import add_pyramid, level_factors
from daskdmed.store.ngff.reduction import reduce_block


def brute(block, factors, method):
    shape = tuple(-(-n // f) for n, f in zip(block.shape, factors))
    out = np.empty(shape, block.dtype)
    for index in np.ndindex(*shape):
        cell = block[tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors))].ravel()
        if method == "nearest":
            out[index] = cell[0]
        elif method == "mode":
            values, counts = np.unique(cell, return_counts=True)
            out[index] = values[counts.argmax()]
        elif block.dtype.kind == "f":
            known = cell[~np.isnan(cell)].astype(float)
            out[index] = known.mean() if known.size else np.nan
        else:
            out[index] = np.rint(cell.astype(np.int64).sum() / cell.size)
    return out


@settings(max_examples=120)
@given(st.data())
def test_reduction_against_brute_force(data):
    method = data.draw(st.sampled_from(["mean", "nearest", "mode"]))
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int16", "float32"]))
    if method == "mode" and dtype == "float32":
        dtype = "uint8"
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=9))
    factors = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    few = st.integers(0, 3) if method == "mode" else None
    if dtype == "float32":
        elements = st.one_of(st.just(np.nan), st.floats(-1e3, 1e3, width=32))
        block = data.draw(hnp.arrays(dtype, shape, elements=elements))
    else:
        block = data.draw(hnp.arrays(dtype, shape, elements=few))
    found = reduce_block(block, factors, method)
    assert found.dtype == block.dtype
    np.testing.assert_allclose(found, brute(block, factors, method), rtol=1e-6, atol=1e-6)


def coordinates(windows):
    """Two values per window, no two windows alike."""
    first = windows.reshape(len(windows), -1)[:, 0]
    return np.stack([first, -first], 1).astype(np.float32)


def image(shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.fixture(params=["plane", "vectors", "volume"])
def stored(request, tmp_path):
    out = tmp_path / "a.ome.zarr"
    volume = request.param == "volume"
    shape = (20, 64, 96) if volume else (700, 1210)
    kernel = (2, 2, 2) if volume else (7, 10)
    model = coordinates if request.param == "vectors" else lambda w: coordinates(w)[:, 0]
    mask = np.ones((70, 121))
    mask[21:42, :48] = 0
    heatmap(
        Record(array=image(shape), mpp=0.5),
        model,
        kernel_size=kernel,
        out=out,
        block_windows=5 if volume else 16,
        mask=None if volume else mask,
    )
    return request.param, out


def test_levels_are_the_means_of_what_was_computed(stored):
    kind, out = stored
    before = zarr.open_group(out)["0"][...]
    assert np.isnan(before).any() == (kind != "volume")
    count = add_pyramid(out, smallest=16)
    group = zarr.open_group(out, mode="r")
    multiscale = group.attrs["ome"]["multiscales"][0]
    assert len(multiscale["datasets"]) == count
    assert count == {"plane": 4, "vectors": 4, "volume": 3}[kind]
    expected = before
    np.testing.assert_array_equal(group["0"][...], before)
    for number, dataset in enumerate(multiscale["datasets"]):
        assert dataset["path"] == str(number)
        scale, translation = (step[step["type"]] for step in dataset["coordinateTransformations"])
        fine = multiscale["datasets"][0]["coordinateTransformations"]
        if number:
            factors = [1 if a["name"] == "c" else 2 for a in multiscale["axes"]]
            expected = brute(expected, factors, "mean")
            np.testing.assert_allclose(group[str(number)][...], expected, rtol=1e-6)
        for axis, described in enumerate(multiscale["axes"]):
            f = 1 if described["name"] == "c" else 2**number
            s, t = fine[0]["scale"][axis], fine[1]["translation"][axis]
            # the centre of the first coarse cell is the mean of the centres that it covers
            assert scale[axis] == pytest.approx(s * f)
            assert translation[axis] == pytest.approx(np.mean([t + s * i for i in range(f)]))
    for channel, values in zip(
        group.attrs["ome"]["omero"]["channels"], before if kind == "vectors" else [before]
    ):
        assert channel["window"]["start"] == pytest.approx(np.nanmin(values))
        assert channel["window"]["end"] == pytest.approx(np.nanmax(values))


def test_again_gives_the_same_bytes(stored):
    _, out = stored
    files = lambda: {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}  # noqa: E731
    add_pyramid(out, smallest=16)
    first = files()
    add_pyramid(out, smallest=16)
    assert files() == first


def test_models_and_readers_accept_it(stored):
    v05 = pytest.importorskip("ome_zarr_models.v05")
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    kind, out = stored
    names = ["tumour", "benign"] if kind == "vectors" else ["tumour"]
    colors = ["#FF0000", "00ff00"][: len(names)]
    count = add_pyramid(out, smallest=16, channels=names, colors=colors, window=(0, 1))
    valid = v05.Image.from_zarr(zarr.open_group(out, mode="r"))
    assert len(valid.ome_attributes.multiscales[0].datasets) == count
    omero = pytest.importorskip("ome_zarr_models.common.omero")
    raw = zarr.open_group(out, mode="r").attrs["ome"]["omero"]
    shown = omero.Omero.model_validate(raw).channels
    assert [(c.label, c.color) for c in shown] == list(zip(names, ["FF0000", "00FF00"]))
    assert (shown[0].window.start, shown[0].window.end) == (0, 1)
    (node,) = list(Reader(parse_url(str(out)))())
    assert len(node.data) == count
    for level, data in enumerate(node.data):
        np.testing.assert_array_equal(
            np.asarray(data), zarr.open_group(out, mode="r")[str(level)][...]
        )


NAPARI = """
import json, sys
from napari_ome_zarr import napari_get_reader
found = []
for data, options, kind in napari_get_reader(sys.argv[1])(sys.argv[1]):
    shapes = [list(level.shape) for level in data]
    found.append([kind, shapes, list(map(float, options["scale"])),
                  list(map(float, options["affine"].translate))])
print(json.dumps(found))
"""


def napari_layers(path):
    """What napari's reader gives, in an interpreter of its own.

    Its plugins for pytest do not load where warnings are errors, so that it may live in
    another environment, named by DASKDMED_NAPARI_PYTHON.
    """
    python = os.environ.get("DASKDMED_NAPARI_PYTHON", sys.executable)
    there = [python, "-c", "import napari_ome_zarr"]
    if subprocess.run(there, capture_output=True, check=False).returncode:
        pytest.skip("napari-ome-zarr is not installed")
    run = subprocess.run(
        [python, "-c", NAPARI, str(path)], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_napari_shows_it_where_it_lies(stored):
    kind, out = stored
    count = add_pyramid(out, smallest=16)
    (layer,) = napari_layers(out)
    assert layer[0] == "image"
    assert len(layer[1]) == count
    finest = zarr.open_group(out, mode="r").attrs["ome"]["multiscales"][0]["datasets"][0]
    scale, translation = (step[step["type"]] for step in finest["coordinateTransformations"])
    skip = 1 if kind == "vectors" else 0
    assert layer[2][-2:] == pytest.approx(scale[skip:][-2:])
    # napari-ome-zarr 0.10 reads the first transformation of a level only
    assert layer[3][-2:] in ([0.0, 0.0], pytest.approx(translation[skip:][-2:]))


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    out = tmp_path / "a.zarr"

    calls = itertools.count()

    def fails(windows):
        if next(calls) > 5:
            raise ValueError("broken")
        return windows.mean(axis=(1, 2))

    with pytest.raises(StoreError, match="broken"):
        heatmap(np.ones((64, 64)), fails, kernel_size=4, block_windows=4, out=out)
    with pytest.raises(StoreError, match=r"of 16 blocks are done; finish the run"):
        add_pyramid(out)


def test_what_cannot_have_a_pyramid(tmp_path):
    with pytest.raises(StoreError, match="cannot open"):
        add_pyramid(tmp_path / "nothing.zarr")
    zarr.create_group(tmp_path / "empty.zarr")
    with pytest.raises(StoreError, match="no OME-Zarr image"):
        add_pyramid(tmp_path / "empty.zarr")
    out = tmp_path / "a.zarr"
    heatmap(np.ones((64, 64)), lambda w: w.mean(axis=(1, 2)), kernel_size=4, out=out)
    for wrong, match in (
        ({"method": "median"}, "method must be"),
        ({"factor": 1}, "factor must be"),
        ({"smallest": 0}, "smallest must be"),
        ({"window": (1, 0)}, "window must be"),
        ({"channels": ["a", "b"]}, "one entry per channel"),
        ({"colors": ["red"]}, "six hexadecimal digits"),
    ):
        with pytest.raises(UsageError, match=match):
            add_pyramid(out, **wrong)
    with pytest.raises(UsageError, match="method must be"):
        reduce_block(np.ones(3), (1,), "median")
    assert hex_color("#0a0b0c") == "0A0B0C"


def test_classes_of_predict_are_not_averaged(tmp_path):
    def classify(windows):
        high = windows[..., 0] > 128
        return np.stack([~high, high], 1).astype(np.float32)

    image = np.zeros((128, 128, 1), np.uint8)
    image[::3, ::5] = 255
    for post, method in (("argmax", "mode"), ("threshold", "mode"), ("uint8", "mean")):
        out = tmp_path / f"{post}.zarr"
        daskdmed.predict(image, classify, kernel_size=32, post=post, out=out)
        add_pyramid(out, smallest=16)
        group = zarr.open_group(out, mode="r")
        assert group.attrs["ome"]["multiscales"][0]["type"] == method
        factors = (2,) * group["0"].ndim if group["0"].ndim == 2 else (1, 2, 2)
        expected = brute(group["0"][...], factors, method)
        np.testing.assert_array_equal(group["1"][...], expected)


def test_a_scale_that_all_levels_share_is_kept(tmp_path):
    """Other writers give the pixel size once, in the multiscale's own transformations."""
    v04 = pytest.importorskip("ome_zarr_models.v04")
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    own = [
        {"type": "scale", "scale": [2.0, 1.0]},
        {"type": "translation", "translation": [3.0, 4.0]},
    ]
    shared = [
        {"type": "scale", "scale": [0.25, 0.5]},
        {"type": "translation", "translation": [10.0, 20.0]},
    ]
    multiscale = {
        "version": "0.4",
        "axes": axes,
        "datasets": [{"path": "a", "coordinateTransformations": own}],
        "coordinateTransformations": shared,
    }
    out = tmp_path / "other.zarr"
    group = zarr.create_group(out, zarr_format=2, attributes={"multiscales": [multiscale]})
    group.create_array("a", data=np.ones((40, 60), np.uint8), chunks=(20, 20))
    before = daskdmed.open_slide(out).mpp
    assert before == (0.5, 0.5)
    assert add_pyramid(out, smallest=32) == 2
    assert daskdmed.open_slide(out).mpp == before
    v04.Image.from_zarr(zarr.open_group(out, mode="r"))
    found = zarr.open_group(out, mode="r").attrs["multiscales"][0]["datasets"]
    steps = [[t[t["type"]] for t in d["coordinateTransformations"]] for d in found]
    # positions in micrometers: the level's own transformations first, the shared ones upon them
    assert steps == [[[0.5, 0.5], [10.75, 22.0]], [[1.0, 1.0], [11.0, 22.25]]]


def test_what_other_writers_say_stays(tmp_path):
    """Names of channels, other images, keys of their own; time and channels are not reduced."""
    v05 = pytest.importorskip("ome_zarr_models.v05")
    units = {"t": "second", "y": "micrometer", "x": "micrometer"}
    kinds = {"t": "time", "c": "channel"}
    axes = [
        {"name": n, "type": kinds.get(n, "space")} | ({"unit": units[n]} if n in units else {})
        for n in "tcyx"
    ]
    axes[-1]["longName"] = "from left to right"
    step = {"type": "scale", "scale": [1.0, 1.0, 0.5, 0.5]}
    datasets = [{"path": "a", "coordinateTransformations": [step]}]
    multiscale = {"axes": axes, "datasets": datasets, "metadata": {"method": "theirs"}}
    channels = [
        {"label": "DAPI", "color": "0000FF", "window": {"start": 0, "end": 9, "min": 0, "max": 9}},
        {"label": "FITC", "color": "00FF00", "window": {"start": 0, "end": 9, "min": 0, "max": 9}},
    ]
    ome = {
        "version": "0.5",
        "multiscales": [multiscale, {**multiscale, "name": "second"}],
        "omero": {"id": 7, "channels": channels},
    }
    out = tmp_path / "other.zarr"
    group = zarr.create_group(out, attributes={"ome": ome, "theirs": [1]})
    values = np.random.default_rng(0).integers(0, 99, (3, 2, 40, 60)).astype(np.uint16)
    group.create_array("a", data=values, chunks=(1, 1, 20, 20), dimension_names=list("tcyx"))
    assert add_pyramid(out, smallest=32) == 2
    found = zarr.open_group(out, mode="r")
    np.testing.assert_array_equal(found["a_1"][...], brute(values, (1, 1, 2, 2), "mean"))
    ome = found.attrs["ome"]
    assert found.attrs["theirs"] == [1]
    assert ome["multiscales"][0]["axes"] == axes
    assert ome["multiscales"][0]["metadata"] == {"method": "theirs"}
    assert ome["multiscales"][1]["name"] == "second"
    assert ome["omero"]["id"] == 7
    shown = ome["omero"]["channels"]
    assert [(c["label"], c["color"]) for c in shown] == [("DAPI", "0000FF"), ("FITC", "00FF00")]
    assert [c["window"]["end"] for c in shown] == [values[:, i].max() for i in range(2)]
    v05.Image.from_zarr(found)


@pytest.mark.parametrize("shape", [(1,), (256, 256), (257, 3), (100_000, 1)])
def test_enough_levels(shape):
    factors = level_factors(shape, 2, 256)
    coarsest = factors[-1] if factors else 1
    assert max(-(-n // coarsest) for n in shape) <= 256
    assert all(max(-(-n // f) for n in shape) > 256 for f in factors[:-1])


def test_constant_and_empty_results_have_a_display_range(tmp_path):
    out = tmp_path / "a.zarr"
    heatmap(np.ones((40, 40)), lambda w: w[:, 0, 0], kernel_size=4, out=out)
    zarr.open_group(out, mode="r+")["0"][...] = np.nan
    add_pyramid(out, smallest=2)
    group = zarr.open_group(out, mode="r")
    assert group.attrs["ome"]["omero"]["channels"][0]["window"]["end"] == 1.0
    assert np.isnan(group["3"][...]).all()
