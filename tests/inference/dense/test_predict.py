"""`predict` against MONAI, against a reference written here, and against analytic results."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import warnings
from unittest import mock

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from torch import nn

from daskdmed import open_slide, predict, tissue_mask
from daskdmed.cohort.record import Record
from daskdmed.core.region import Region
from daskdmed.errors import BudgetError, GeometryError, StoreError, UsageError
from daskdmed.images.tiff.decode import count_tiles
from daskdmed.inference.dense import job as module
from daskdmed.inference.dense import mosaic
from daskdmed.samples import make_slide
from daskdmed.store.results import donemap
from tests import forked

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def many_bands(monkeypatch):
    """Bands of one row of chunks, as large images have them."""
    monkeypatch.setattr(mosaic, "_SWEEP_BYTES", 1)


def reference(image, network, kernel, overlap, blend, sigma_scale=0.125, background=0.0):
    """Every window by itself, summed in float64; nothing shared with the package."""
    ndim = len(kernel)
    size = image.shape[:ndim]
    low = [max(k - n, 0) // 2 for n, k in zip(size, kernel)]
    high = [max(k - n, 0) - a for n, k, a in zip(size, kernel, low)]
    padded = np.pad(
        image, [*zip(low, high), *[(0, 0)] * (image.ndim - ndim)], constant_values=background
    )
    weights = np.ones(kernel)
    for axis, k in enumerate(kernel):
        i = np.arange(k)
        line = {
            "constant": np.ones(k),
            "hann": np.sin(np.pi * (i + 0.5) / k) ** 2,
            "gaussian": np.exp(-((i - (k - 1) / 2) ** 2) / (2 * (sigma_scale * k) ** 2)),
        }[blend]
        weights = weights * line.reshape([-1 if a == axis else 1 for a in range(ndim)])
    if blend == "gaussian":
        weights = np.maximum(weights, max(weights.min(), 1e-3))
    starts = []
    for n, k in zip(padded.shape, kernel):
        step = max(int(k * (1 - overlap)), 1)
        places, at = [0], 0
        while at + k < n:
            at = min(at + step, n - k)
            places.append(at)
        starts.append(places)
    total = count = None
    for origin in itertools.product(*starts):
        cut = tuple(slice(o, o + k) for o, k in zip(origin, kernel))
        window = np.moveaxis(padded[cut], -1, 0)[None].astype(np.float32)
        with torch.no_grad():
            values = network(torch.from_numpy(window.copy()))[0].double().numpy()
        if total is None:
            total = np.zeros((len(values), *padded.shape[:ndim]))
            count = np.zeros(padded.shape[:ndim])
        total[(slice(None), *cut)] += values * weights
        count[cut] += weights
    inner = tuple(slice(a, a + n) for a, n in zip(low, size))
    return (total / count)[(slice(None), *inner)]


def network(ndim, channels, outputs=2, stride=1):
    """Zero padding makes windows differ at their borders, so that blending shows."""
    conv = CONVOLUTIONS[ndim](channels, outputs, 3, stride, padding=1)
    return nn.Sequential(conv, nn.Tanh())


SHAPES = [
    ((100, 131), (32, 32)),
    ((64, 96), (32, 32)),
    ((75, 60), (50, 33)),
    ((20, 131), (50, 50)),
    ((7, 9), (32, 40)),
    ((23, 30, 41), (16, 12, 20)),
    ((8, 40, 40), (16, 16, 16)),
]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("blend", ["gaussian", "constant", "hann"])
@pytest.mark.parametrize(("shape", "kernel"), SHAPES)
def test_equal_to_the_reference(shape, kernel, blend, overlap, many_bands):
    image = np.random.default_rng(0).standard_normal((*shape, 2)).astype(np.float32)
    if len(shape) == 3 and overlap == 0.75:
        image, overlap = image[:, :20, :20], 0.6
    net = network(len(shape), 2)
    found = predict(
        image, net, kernel_size=kernel, overlap=overlap, blend=blend, chunks=17, batch_size=3
    )
    assert found.dtype == np.float32
    assert isinstance(found, da.Array)
    wanted = reference(image, net, kernel, overlap, blend)
    np.testing.assert_allclose(found.compute(), wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75, 0.9, (0.3, 0.6)])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize(("shape", "kernel"), SHAPES[:5])
def test_equal_to_monai(shape, kernel, blend, overlap):
    inferers = pytest.importorskip("monai.inferers")
    image = np.random.default_rng(1).standard_normal((*shape, 2)).astype(np.float32)
    if overlap == 0.9:  # hundreds of windows as it is
        image = image[:60, :61]
    net = network(2, 2)
    for sigma_scale in (0.125, 0.3) if blend == "gaussian" else (0.125,):
        with torch.no_grad():
            wanted = inferers.sliding_window_inference(
                torch.from_numpy(image).movedim(-1, 0)[None],
                kernel,
                4,
                net,
                overlap=overlap,
                mode=blend,
                sigma_scale=sigma_scale,
            )[0]
        found = predict(
            image,
            net,
            kernel_size=kernel,
            overlap=overlap,
            blend=blend,
            sigma_scale=sigma_scale,
            chunks=40,
        )
        np.testing.assert_allclose(found.compute(), wanted.numpy(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("shape", [(24, 40, 36), (10, 40, 20)])
def test_equal_to_monai_in_space(shape):
    inferers = pytest.importorskip("monai.inferers")
    image = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    net = network(3, 1, 3)
    with torch.no_grad():
        wanted = inferers.sliding_window_inference(
            torch.from_numpy(image)[None, None], (16, 16, 16), 4, net, 0.5, mode="gaussian"
        )[0]
    found = predict(image, net, kernel_size=(16, 16, 16), overlap=0.5, chunks=16)
    np.testing.assert_allclose(found.compute(), wanted.numpy(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("reduction", [2, 4])
def test_reduced_outputs_equal_monai(reduction):
    inferers = pytest.importorskip("monai.inferers")
    image = np.random.default_rng(1).standard_normal((96, 128, 2)).astype(np.float32)
    net = network(2, 2, stride=reduction)
    with torch.no_grad():
        wanted = inferers.sliding_window_inference(
            torch.from_numpy(image).movedim(-1, 0)[None], (32, 32), 4, net, 0.5, mode="gaussian"
        )[0]
    found = predict(image, net, kernel_size=32, overlap=0.5, chunks=10)
    assert found.shape == (2, 96 // reduction, 128 // reduction)
    np.testing.assert_allclose(found.compute(), wanted.numpy(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("blend", ["gaussian", "constant", "hann"])
@pytest.mark.parametrize("shape", [(95, 61), (32, 33), (11, 70), (96, 96)])
@pytest.mark.parametrize("reduction", [1, 2, 8])
def test_a_model_that_gives_its_input_gives_the_image_up_to_every_border(
    shape, reduction, blend, many_bands
):
    image = np.random.default_rng(0).random(shape).astype(np.float32)

    def model(windows):
        n, h, w = windows.shape
        cells = windows.reshape(n, h // reduction, reduction, w // reduction, reduction)
        return cells.mean(axis=(2, 4))

    found = predict(image, model, kernel_size=32, overlap=0.4, blend=blend, chunks=20).compute()
    pad = [(0, -n % reduction) for n in shape]
    filled = np.pad(image, pad)
    cells = [n // reduction for n in filled.shape]
    wanted = filled.reshape(cells[0], reduction, cells[1], reduction).mean(axis=(1, 3))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_where_the_work_is_cut_changes_no_bit(monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (150, 170, 3)).astype(np.uint8)
    net = network(2, 3, 4)
    settings = {"kernel_size": 48, "overlap": 0.5, "chunks": 25}

    def run(longest, threads):
        monkeypatch.setattr(module, "steps_per_job", lambda plan, workers: longest)
        with dask.config.set(num_workers=threads):
            return predict(image, net, **settings).compute()

    expected = run(100, 1)
    for longest, threads in [(1, 1), (2, 2), (3, 4)]:
        np.testing.assert_array_equal(run(longest, threads), expected)


@pytest.mark.parametrize("layout", ["plain", "first", "last", "one first", "one last"])
def test_a_callable_may_put_its_channels_first_or_last(layout):
    image = np.random.default_rng(0).integers(0, 255, (50, 60, 3)).astype(np.uint8)

    def model(windows):
        assert windows.dtype == np.uint8
        assert windows.shape[1:] == (32, 24, 3)
        value = windows.astype(np.float32)
        match layout:
            case "plain":
                return value[..., 0]
            case "first":
                return np.moveaxis(value[..., :2], -1, 1)
            case "last":
                return value[..., :2]
            case "one first":
                return value[..., 0][:, None]
        return value[..., :1]

    found = predict(image, model, kernel_size=(32, 24)).compute()
    wanted = np.moveaxis(image, -1, 0)
    wanted = wanted[:2] if layout in ("first", "last") else wanted[0]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


def test_slides_are_white_outside_and_scaled_for_modules():
    image = np.full((20, 30, 3), 51, np.uint8)
    seen = []

    class Look(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x

    found = predict(image, Look(), kernel_size=32).compute()
    np.testing.assert_allclose(found, 0.2, rtol=1e-6)
    window = seen[-1]
    assert window.dtype == torch.float32
    # 6 rows and 1 column of padding at either side
    assert (window[0, :, :6] == 1).all()
    assert (window[0, :, 26:] == 1).all()
    assert (window[0, :, :, :1] == 1).all()
    np.testing.assert_allclose(window[0, :, 6:26, 1:31], 0.2, rtol=1e-6)


def test_batch_transforms_and_other_types():
    image = np.random.default_rng(0).integers(0, 60_000, (40, 40)).astype(np.uint16)
    net = nn.Identity()
    found = predict(image, net, kernel_size=16, batch_tfms=lambda t: t.float() * 2).compute()
    np.testing.assert_allclose(found, 2.0 * image, rtol=1e-6)
    scaled = predict(image, net, kernel_size=16).compute()
    np.testing.assert_allclose(scaled, image / 65535, rtol=1e-5, atol=1e-7)
    doubled = predict(image, lambda w: w, kernel_size=16, batch_tfms=lambda w: w * 2.0).compute()
    np.testing.assert_allclose(doubled, 2.0 * image, rtol=1e-6)


def test_programs_by_path_and_mixed_precision(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3)).astype(np.uint8)
    net = network(2, 3).eval()
    wanted = predict(image, net, kernel_size=32, overlap=0.5).compute()
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net, torch.zeros(1, 3, 32, 32)).save(path)
        found = predict(image, path, kernel_size=32, overlap=0.5).compute()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    rough = predict(
        image, net, kernel_size=32, overlap=0.5, autocast="bfloat16", channels_last=True
    ).compute()
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - wanted).max() < 0.02
    assert not next(net.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_how_many_windows_a_model_gets():
    seen = []

    class Count(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x

    image = np.zeros((600, 600, 3), np.uint8)
    predict(image, Count(), kernel_size=128)
    assert max(seen) == 2**18 // 128**2 > 1
    seen.clear()
    predict(image, Count(), kernel_size=128, batch_size=2)
    assert max(seen) == 2


# ------------------------------------------------------------------ masks and posts
@pytest.mark.parametrize("mask_shape", [(90, 110), (9, 11), (7, 9)])
@pytest.mark.parametrize("reduction", [1, 2])
def test_a_mask_leaves_out_and_changes_nothing(mask_shape, reduction, many_bands):
    image = np.random.default_rng(0).standard_normal((90, 110, 2)).astype(np.float32)
    net = network(2, 2, stride=reduction)
    rng = np.random.default_rng(3)
    mask = np.zeros(mask_shape, bool)
    mask[mask_shape[0] // 2 :, : mask_shape[1] // 3] = (
        rng.random((mask_shape[0] - mask_shape[0] // 2, mask_shape[1] // 3)) < 0.5
    )
    settings = {"kernel_size": 32, "overlap": 0.5, "chunks": 15, "batch_size": 1}
    whole = predict(image, net, **settings).compute()
    found = predict(image, net, mask=mask, **settings).compute()
    cells = found.shape[1:]
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * reduction * m / size, m - 1).astype(int)
        for n, m, size in zip(cells, mask_shape, (90, 110))
    )
    inside = mask[np.ix_(rows, columns)]
    assert 0 < inside.sum() < inside.size
    np.testing.assert_array_equal(found, np.where(inside, whole, np.nan))


def test_masked_windows_are_neither_read_nor_computed():
    def explode(block, block_info=None):
        if block_info[None]["chunk-location"][1] > 1:
            raise RuntimeError("read outside the mask")
        return block

    image = da.zeros((100, 400), chunks=50, dtype=np.float32).map_blocks(
        explode, dtype=np.float32, meta=np.empty((0, 0), np.float32)
    )
    calls = []

    def model(windows):
        calls.append(len(windows))
        return windows + 1

    mask = np.zeros((1, 8), bool)
    mask[0, :1] = True
    found = predict(image, model, kernel_size=32, mask=mask, chunks=50).compute()
    np.testing.assert_allclose(found[:, :50], 1, rtol=1e-6)
    assert np.isnan(found[:, 50:]).all()
    # one trial, and the windows that reach into the first 50 columns: 3 of 17
    assert sum(calls) == 1 + 4 * 3


def test_a_tissue_mask_lies_where_its_scale_says(slide):
    mask = tissue_mask(slide)
    for level in (0, 1):
        found = predict(slide, lambda w: w[..., 0], kernel_size=200, level=level, mask=mask)
        inside = np.isfinite(found.compute())
        down = slide.level_downsamples[level]
        rows, columns = (
            np.minimum(((np.arange(n) + 0.5) * down / s).astype(int), m - 1)
            for n, s, m in zip(found.shape, mask.scale, mask.data.shape)
        )
        np.testing.assert_array_equal(inside, mask.data[np.ix_(rows, columns)])
        assert 0.1 < inside.mean() < 0.95


def test_nothing_inside_gives_nothing():
    found = predict(np.ones((40, 40), np.float32), lambda w: w, kernel_size=16, mask=[[0]])
    assert np.isnan(found.compute()).all()


POSTS = {
    "argmax": (lambda v: v.argmax(0), np.uint8),
    "threshold": (lambda v: v >= 0.5, np.uint8),
    ("threshold", 0.25): (lambda v: v >= 0.25, np.uint8),
    "uint8": (lambda v: np.rint(np.clip(v, 0, 1) * 255), np.uint8),
    "uint16": (lambda v: np.rint(np.clip(v, 0, 1) * 65535), np.uint16),
    "float16": (lambda v: v.astype(np.float16), np.float16),
}


@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("fill", [None, 7])
def test_what_is_written(post, fill):
    image = np.random.default_rng(0).random((60, 60, 3)).astype(np.float32) * 1.4 - 0.2
    mask = np.ones((6, 6), bool)
    mask[0] = False
    settings = {"kernel_size": 32, "mask": mask, "chunks": 20}
    convert, dtype = POSTS[post]
    raw = predict(image, lambda w: w, **settings).compute()
    found = predict(image, lambda w: w, post=post, fill=fill, **settings)
    assert found.dtype == dtype
    values = found.compute()
    with np.errstate(invalid="ignore"):
        wanted = convert(np.nan_to_num(raw)).astype(dtype)
    outside = np.isnan(raw[0])
    default = np.nan if np.dtype(dtype).kind == "f" else 0
    wanted[..., outside] = default if fill is None else fill
    np.testing.assert_array_equal(values, wanted)


def test_argmax_has_no_channel_axis_and_is_an_ome_image(tmp_path):
    image = Record(array=np.random.default_rng(0).random((64, 64, 3)), mpp=(0.5, 0.25))
    out = tmp_path / "labels.zarr"
    found = predict(image, lambda w: w, kernel_size=32, post="argmax", out=out)
    assert found.shape == (64, 64)
    models = pytest.importorskip("ome_zarr_models")
    group = zarr.open_group(out, mode="r")
    models.open_ome_zarr(group)
    level = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert level[0]["scale"] == [0.25, 0.5]
    assert level[1]["translation"] == [0.0, 0.0]


def test_scale_and_translation_of_reduced_cells(tmp_path):
    image = Record(array=np.zeros((64, 64)), mpp=(0.5, 0.5))
    predict(image, lambda w: w[:, ::4, ::4], kernel_size=32, out=tmp_path / "x.zarr")
    group = zarr.open_group(tmp_path / "x.zarr", mode="r")
    level = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert level[0]["scale"] == [2.0, 2.0]
    # the middle of four pixels
    assert level[1]["translation"] == [0.75, 0.75]


# ------------------------------------------------------------------ stores
def files(path):
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and not p.name.endswith(".partial")
    }


class Flaky:
    """Fails at its n-th call; what it computes does not depend on that."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def __dask_tokenize__(self):
        return "flaky"

    def __call__(self, windows):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("a cosmic ray")
        # depends on the place in the window, so that blending shows
        return windows * np.linspace(1, 2, windows.shape[1])[:, None].astype(np.float32)


@pytest.mark.parametrize("fail_at", [2, 9, 17, 30, 44])
def test_a_failed_run_resumes_to_the_identical_store(tmp_path, fail_at, many_bands):
    image = np.random.default_rng(0).random((120, 140)).astype(np.float32)
    mask = np.ones((6, 7), bool)
    mask[:2, :4] = False
    settings = {"kernel_size": 32, "overlap": 0.5, "chunks": 25, "mask": mask, "batch_size": 2}
    complete = Flaky()
    predict(image, complete, out=tmp_path / "whole.zarr", **settings)
    with dask.config.set(num_workers=1), pytest.raises(StoreError, match="cosmic ray") as caught:
        predict(image, Flaky(fail_at), out=tmp_path / "broken.zarr", **settings)
    assert "resume=True" in str(caught.value)
    assert "cells [" in str(caught.value)
    with pytest.raises(StoreError, match="overwrite=True replaces"):
        predict(image, Flaky(), out=tmp_path / "broken.zarr", **settings)
    again = Flaky()
    predict(image, again, out=tmp_path / "broken.zarr", resume=True, **settings)
    assert again.calls <= complete.calls
    if fail_at > 20:
        assert again.calls < complete.calls
    assert files(tmp_path / "broken.zarr") == files(tmp_path / "whole.zarr")
    last = Flaky()
    predict(image, last, out=tmp_path / "broken.zarr", resume=True, **settings)
    assert last.calls == 1  # the trial


class Tilted:
    """Kills its process at a call."""

    def __init__(self, last):
        self.last, self.calls = last, itertools.count(1)

    def __dask_tokenize__(self):
        return "tilted"

    def __call__(self, windows):
        if next(self.calls) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return windows * np.linspace(1, 2, windows.shape[1], dtype=np.float32)[:, None]


def tilted(out, last=0, **how):
    """A run of many bands whose every mark reaches the disk."""
    noise = np.random.default_rng(0).random((200, 200)).astype("f4")
    image = da.from_array(noise, chunks=64, name="noise")
    with (
        mock.patch.object(mosaic, "_SWEEP_BYTES", 1),
        mock.patch.object(donemap, "_FLUSH_EVERY", 0),
        dask.config.set(num_workers=2),
    ):
        predict(
            image,
            Tilted(last),
            kernel_size=32,
            overlap=0.5,
            chunks=25,
            batch_size=2,
            out=out,
            **how,
        )


def test_killed_runs_resume_to_the_identical_store(tmp_path):
    tilted(tmp_path / "whole.zarr")
    out = tmp_path / "killed.zarr"
    script = tmp_path / "script.py"
    begin = "import sys; from tests.inference.dense.test_predict import tilted; tilted(sys.argv[1]"
    written = []
    for how in ("30)", "30, resume=True)"):
        script.write_text(f"{begin}, {how}")
        done = forked.run(script, tmp_path, {}, [str(out)])
        assert done.returncode == -signal.SIGKILL, done.stderr
        written.append(len(list((out / "0" / "c").rglob("*"))))
    assert 0 < written[0] < written[1], "killed amid the chunks"
    tilted(out, resume=True)
    assert files(out) == files(tmp_path / "whole.zarr")


def test_other_parameters_are_not_resumed_and_overwrite_replaces(tmp_path):
    image = np.random.default_rng(0).random((60, 60)).astype(np.float32)
    out = tmp_path / "x.zarr"
    settings = {"kernel_size": 16, "out": out}
    predict(image, Flaky(), **settings)
    changes = [
        ({"blend": "hann"}, "blend"),
        ({"sigma_scale": 0.2}, "blend"),
        ({"stride": 8}, "stride"),
        ({"post": "uint8"}, "post"),
        ({"mask": [[1]]}, "mask"),
        ({"chunks": 30}, "chunk"),
    ]
    for change, named in changes:
        with pytest.raises(StoreError, match=named):
            predict(image, Flaky(), resume=True, **settings, **change)
    with pytest.raises(StoreError, match="model"):
        predict(image, lambda w: w, resume=True, **settings)
    found = predict(image, lambda w: w * 0, overwrite=True, **settings)
    assert (found.compute() == 0).all()


def test_the_store_says_how_many_windows_were_computed(tmp_path, many_bands, caplog):
    image = np.zeros((100, 100), np.float32)
    with caplog.at_level(logging.INFO, "daskdmed.inference"):
        predict(image, lambda w: w, kernel_size=32, stride=16, chunks=50, out=tmp_path / "x.zarr")
    stored = json.loads((tmp_path / "x.zarr" / "zarr.json").read_text())
    parameters = stored["attributes"]["daskdmed"]["parameters"]
    # 6 windows per axis; each of two bands needs 4 rows of them
    assert parameters["windows_needed"] == 36
    assert parameters["windows_computed"] == 48
    assert "36 windows needed, 48 computed" in caplog.text


# ------------------------------------------------------------------ bad input
IMAGE = np.zeros((64, 64, 3), np.float32)


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"kernel_size": 0}, GeometryError, "at least 1"),
        ({"kernel_size": (8, 8, 8, 8)}, ValueError, "axes"),
        ({"kernel_size": 100_000}, BudgetError, "GiB"),
        ({"stride": 40}, GeometryError, "between 1 and"),
        ({"stride": 0}, GeometryError, "between 1 and"),
        ({"stride": 8, "overlap": 0.5}, UsageError, "same thing"),
        ({"overlap": 1.0}, GeometryError, "overlap"),
        ({"overlap": -0.1}, GeometryError, "overlap"),
        ({"overlap": 32}, GeometryError, "overlap"),
        ({"overlap": (0.1,)}, GeometryError, "2 spatial axes"),
        ({"blend": "cosine"}, UsageError, "blend"),
        ({"sigma_scale": -1}, UsageError, "sigma_scale"),
        ({"batch_size": 0}, UsageError, "batch_size"),
        ({"chunks": 0}, GeometryError, "chunks"),
        ({"post": "softmax"}, UsageError, "post"),
        ({"post": ("threshold", "high")}, UsageError, "threshold"),
        ({"post": "uint8", "fill": 256}, UsageError, "fill"),
        ({"post": "uint8", "fill": float("nan")}, UsageError, "fill"),
        ({"mask": np.ones(5)}, GeometryError, "mask"),
        ({"mask": np.full((4, 4), -1)}, GeometryError, "mask"),
        ({"mask": np.full((4, 4), np.nan)}, GeometryError, "mask"),
        ({"mask": [["a"]]}, GeometryError, "mask"),
        ({"level": 1}, ValueError, "level 0 only"),
        ({"receptive_field": 3}, UsageError, "together"),
        ({"output_stride": 3}, UsageError, "together"),
        ({"receptive_field": 3, "output_stride": 1, "stride": 8}, UsageError, "no blending"),
        ({"out": 5}, UsageError, "out must be"),
    ],
)
def test_arguments_that_do_not_fit(keywords, error, match):
    with pytest.raises(error, match=match):
        predict(IMAGE, lambda w: w, **{"kernel_size": 32, **keywords})


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda w: w.mean(axis=(1, 2, 3)), r"returned shape \(1,\).*heatmap"),
        (lambda w: w[:, :20], r"returned shape \(1, 20, 32, 3\)"),
        (lambda w: np.repeat(w, 2, axis=1), "returned shape"),
        (lambda w: w[0], "returned shape"),
        (lambda w: w[:, :0], "returned shape"),
        (lambda w: (w, w), "tuple of 2"),
        (lambda w: {"out": w}, "dict of 1"),
        (lambda w: w.astype(complex), "complex"),
        (lambda w: None, "object"),
        (lambda w: w * np.nan, "3072 of 3072 values that are NaN"),
        (lambda w: w + np.inf, "infinite"),
        ("resnet50", "callable"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), r"returned shape \(1, 4\)"),
    ],
)
def test_models_that_do_not_fit(model, match):
    with pytest.raises(UsageError, match=match):
        predict(IMAGE, model, kernel_size=32)


def test_argmax_of_one_value():
    with pytest.raises(UsageError, match="use post='threshold'"):
        predict(IMAGE, lambda w: w[..., 0], kernel_size=32, post="argmax")


def test_a_model_that_turns_bad_later():
    image = np.zeros((64, 200), np.float32)
    image[:, 150:] = 1

    def shrinks(windows):
        return windows[:, ::2] if windows.any() else windows

    with pytest.raises(UsageError, match="must give the same for all batches"):
        predict(image, shrinks, kernel_size=32, batch_size=1)

    def divides(windows):
        with np.errstate(divide="ignore"):
            return 1 / (1 - windows)

    with pytest.raises(UsageError, match="NaN or infinite") as caught:
        predict(image, divides, kernel_size=32, batch_size=1)
    assert any("cells [" in note for note in caught.value.__notes__)


def test_a_model_that_raises_says_what_it_was_given():
    def model(windows):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        predict(IMAGE, model, kernel_size=32)
    assert "(32, 32, 3)" in caught.value.__notes__[0]


def test_strides_between_cells():
    with pytest.raises(GeometryError, match="no multiple of the"):
        predict(IMAGE, lambda w: w[:, ::4, ::4], kernel_size=32, stride=30)
    # of an overlap the stride is rounded: int(32 * 0.93) = 29 -> 28
    predict(IMAGE, lambda w: w[:, ::4, ::4], kernel_size=32, overlap=0.07)


def test_an_image_without_pixels():
    with pytest.raises(GeometryError, match="no pixels"):
        predict(np.zeros((0, 5, 3), np.float32), lambda w: w, kernel_size=4)


# ------------------------------------------------------------------ clusters and slides
@pytest.mark.cluster
def test_on_a_cluster(tmp_path):
    from distributed import Client, LocalCluster

    image = da.from_array(np.random.default_rng(0).random((130, 200, 3)), chunks=(64, 64, 3))
    net = network(2, 3)
    settings = {"kernel_size": 48, "overlap": 0.5, "chunks": 40}
    mask = np.ones((4, 4), bool)
    mask[0, 0] = False
    with dask.config.set(num_workers=1):
        wanted = predict(image, net, mask=mask, **settings).compute()
    with (
        LocalCluster(
            2, threads_per_worker=1, dashboard_address=None, resources={"GPU": 1}
        ) as cluster,
        Client(cluster) as client,
    ):
        more = {"mask": mask, "client": client, "resources": {"GPU": 1}}
        found = predict(image, net, out=tmp_path / "x.zarr", **more, **settings).compute(
            scheduler="threads"
        )
        names = client.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.task_prefixes))
        assert "predict" in names  # so that the dashboard counts them
        lazy = predict(image, net, mask=mask, **settings, compute=False)
        np.testing.assert_allclose(lazy.compute(), wanted, rtol=1e-5, atol=1e-6)
        held = image.persist()  # on that cluster, which delivers the pixels
        lazy = predict(held, net, mask=mask, **settings, compute=False)
        np.testing.assert_allclose(lazy.compute(), wanted, rtol=1e-5, atol=1e-6)
        part = predict(held, net, out=tmp_path / "held.zarr", **more, **settings)
        np.testing.assert_allclose(part.compute(scheduler="threads"), wanted, rtol=1e-5, atol=1e-6)
        with pytest.raises(UsageError, match="no worker offers"):
            predict(image, net, client=client, resources={"TPU": 1}, out=tmp_path / "y", **settings)
        with pytest.raises(UsageError, match="this process's memory"):
            predict(image, net, client=client, **settings)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "made.tif"
    return open_slide(make_slide(path, (1900, 1500), levels=2, tissue=0.6, mpp=0.5).path)


@pytest.mark.parametrize("resolution", [{}, {"level": 1}, {"mpp": 1.2}], ids=str)
def test_a_slide(slide, resolution, tmp_path):
    view = slide.view(**resolution)
    pixels = view.read(Region((0, 0), view.shape[:2]))

    def model(windows):
        return windows.astype(np.float32)

    out = tmp_path / "out.zarr"
    found = predict(slide, model, kernel_size=200, out=out, chunks=300, **resolution)
    np.testing.assert_allclose(found.compute(), np.moveaxis(pixels, -1, 0), rtol=1e-4, atol=1e-3)
    ome = zarr.open_group(out, mode="r").attrs["ome"]["multiscales"][0]
    assert [axis.get("unit") for axis in ome["axes"]] == [None, "micrometer", "micrometer"]
    scale = ome["datasets"][0]["coordinateTransformations"][0]["scale"]
    np.testing.assert_allclose(scale, [1, *reversed(view.mpp)])


def test_tiles_are_decoded_once_within_a_band(slide):
    rows, columns = -(-1500 // 256), -(-1900 // 256)
    with dask.config.set(num_workers=1), count_tiles() as count:
        predict(slide, lambda w: w[..., 0], kernel_size=300, overlap=0.5, chunks=400)
    assert count.tiles == rows * columns
