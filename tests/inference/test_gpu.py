"""Models on a GPU give what they give on the CPU, and go on when memory runs out there.

Pixels against those of the CPU within what float32 rounds; GPUs would else multiply with fewer
digits, which is their user's to choose (``torch.backends``). Skipped where there is no GPU.
"""

from __future__ import annotations

import logging

import dask
import numpy as np
import pytest
import torch

from daskdmed import Dataset, Patient, Record, heatmap, infer, predict
from daskdmed.transforms import Compose, Normalize, RandomFlip, ToFloat

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

IMAGE = np.random.default_rng(0).integers(0, 256, (200, 180, 3), np.uint8)
GPU = "cuda:0"


class Net(torch.nn.Module):
    """A small network; `seen` tells where it ran."""

    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.pooled = pooled
        self.seen: set[str] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add(str(x.device))
        found = torch.relu(self.body(x))
        return found.mean((2, 3)) if self.pooled else found


@pytest.fixture(autouse=True)
def with_all_digits(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def assert_close(found, expected, atol=1e-5):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=atol)


@pytest.fixture(scope="module")
def here():
    return heatmap(IMAGE, Net(), kernel_size=16)


class TestHeatmap:
    def test_a_model_that_lies_there(self, here):
        model = Net().to(GPU)
        assert_close(heatmap(IMAGE, model, kernel_size=16), here)
        assert model.seen == {GPU}

    def test_a_model_that_is_brought(self, here):
        model = Net()
        assert_close(heatmap(IMAGE, model, kernel_size=16, device="cuda"), here)
        assert next(model.parameters()).device.type == "cpu"  # the user's own stays

    def test_transforms_there(self):
        tfms = Compose([ToFloat(), Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))])
        runs = [
            heatmap(IMAGE, Net(), kernel_size=16, batch_tfms=tfms, device=d) for d in (GPU, None)
        ]
        assert_close(*runs, atol=1e-4)

    @pytest.mark.parametrize("kind", ["bfloat16", "float16"])
    def test_fewer_digits(self, here, kind):
        found = heatmap(IMAGE, Net(), kernel_size=16, device=GPU, autocast=kind, channels_last=True)
        off = np.abs(np.asarray(found) - np.asarray(here)).max()
        assert 0 < off < 2e-2

    def test_several_threads_share_it(self, here):
        with dask.config.set(num_workers=8):
            found = heatmap(IMAGE, Net(), kernel_size=16, device=GPU, block_windows=1, batch_size=1)
        assert_close(found, here)

    def test_memory_that_runs_out(self, here, caplog):
        free, _ = torch.cuda.mem_get_info()

        class Greedy(Net):
            """Has room for 3 windows."""

            def forward(self, x):
                torch.empty(len(x), free // 4, dtype=torch.uint8, device=x.device)
                return super().forward(x)

        with (
            caplog.at_level(logging.WARNING, "daskdmed.inference"),
            dask.config.set(num_workers=1),
        ):
            found = heatmap(IMAGE, Greedy(), kernel_size=16, device=GPU, batch_size=32)
        assert_close(found, here)
        assert "going on with 2" in caplog.text
        torch.cuda.empty_cache()  # what torch keeps for the next is its own affair
        assert torch.cuda.mem_get_info()[0] > free // 2


def test_predictions_are_those_of_the_cpu(tmp_path):
    runs = [
        predict(
            IMAGE, Net(False), kernel_size=32, overlap=0.5, device=d, out=tmp_path / f"{i}.zarr"
        )
        for i, d in enumerate(("cpu", GPU))
    ]
    assert_close(runs[1].compute(), runs[0].compute())


def test_scans_are_those_of_the_cpu():
    scan = np.random.default_rng(1).integers(0, 200, (20, 24, 28)).astype("i2")
    data = Dataset("scans", [Patient("a", {"ct": Record(array=scan)})])
    torch.manual_seed(0)
    model = torch.nn.Conv3d(1, 2, 3, padding=1)
    found = [
        next(iter(infer(data, model, kernel_size=(8, 8, 8), overlap=0.5, device=d)))[1]["y_pred"]
        for d in ("cpu", GPU)
    ]
    assert_close(found[1], found[0], 1e-2)


def test_features_are_those_of_the_cpu(tmp_path):
    tables = pytest.importorskip("daskdmed.tables", reason="pyarrow")
    pytest.importorskip("pyarrow")
    data = Dataset("one", [Patient("a", {"wsi": Record(array=IMAGE)})])
    found = []
    for name, devices in (("cpu", "cpu"), ("gpu", [GPU])):
        written = tables.features(data, Net(), kernel_size=16, out=tmp_path / name, devices=devices)
        found.append(tables.read_windows(written["a"]).values)
    assert_close(found[1], found[0])


def test_random_transforms_draw_the_same_there():
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(IMAGE, -1, 0))[None].repeat(8, 0))
    keys = np.arange(8)[:, None]
    flip = RandomFlip()
    assert torch.equal(flip(x.to(GPU), keys).cpu(), flip(x, keys))
