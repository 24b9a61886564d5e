"""Models as people have them: shared, in training mode, with several outputs, in half precision."""

from __future__ import annotations

import collections
import dataclasses
import threading
import warnings

import dask
import numpy as np
import pytest
import torch
from torch import nn

from daskdmed import Dataset, Patient, Record, SlidingWindowDL, heatmap, infer, predict
from daskdmed.errors import GeometryError, StoreError, UsageError
from daskdmed.inference.models.shipped import Shipped
from daskdmed.inference.models.torchrun import evaluation
from daskdmed.inference.models.window import WindowModel
from daskdmed.tables import ProcessedPiece, run_stream

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
KEYS = {"kernel_size": 16, "batch_size": 4}


def network(k=2):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, k),
    )  # fmt: skip
    net[1].running_mean.fill_(0.3)
    return net


class Wrapped(nn.Module):
    """Calls another module, and something before."""

    def __init__(self, net, before=lambda: None):
        super().__init__()
        self.net, self.before = net, before

    def forward(self, x):
        self.before()
        return self.net(x)

    def __deepcopy__(self, memo):
        raise AssertionError("nobody asked for a copy")


# -- training mode --------------------------------------------------------------------------


def modes(net):
    return [m.training for m in net.modules()]


def test_two_heatmaps_of_one_module_in_training_mode():
    net = network()
    want = heatmap(IMAGE, net.eval(), **KEYS).compute()
    net.train()
    net[1].eval()  # frozen
    before, kept, threads = modes(net), net[1].running_mean.clone(), torch.get_num_threads()
    inside, first_over = threading.Event(), threading.Event()
    found = {}

    def hold():  # the second run is in the middle while the first one ends
        inside.set()
        first_over.wait()

    def second():
        found["b"] = heatmap(IMAGE, Wrapped(net, hold), **KEYS).compute()

    other = threading.Thread(target=second)
    other.start()
    inside.wait()
    found["a"] = heatmap(IMAGE, net, **KEYS).compute()
    assert modes(net) == [False] * len(before)
    first_over.set()
    other.join()
    for one in found.values():
        np.testing.assert_allclose(one, want, atol=1e-6)
    torch.testing.assert_close(net[1].running_mean, kept, rtol=0, atol=0)
    assert modes(net) == before
    assert torch.get_num_threads() == threads


def test_a_module_that_does_more_when_its_mode_changes():
    class Merging(nn.Linear):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    net = nn.Sequential(Merging(2, 2), nn.Dropout())
    net[1].eval()
    with evaluation(net), evaluation(net[0]):
        assert net[0].merged
        assert not net.training
    assert not net[0].merged
    assert modes(net) == [True, True, False]


def test_a_lazy_heatmap_while_another_run_uses_the_module():
    net = network().train()
    want = heatmap(IMAGE, network().eval(), **KEYS).compute()
    with evaluation(net):
        lazy = heatmap(IMAGE, net, compute=False, **KEYS)
    np.testing.assert_allclose(lazy.compute(), want, atol=1e-6)
    assert net.training


@pytest.mark.parametrize("call", [heatmap, predict])
def test_a_module_that_is_trained_on_before_a_lazy_result_is_computed(call):
    net = (
        network() if call is heatmap else nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    ).eval()
    want = call(IMAGE, net, **KEYS).compute()
    lazy = call(IMAGE, net, compute=False, **KEYS)
    net.train()
    kept = net[1].running_mean.clone()
    np.testing.assert_allclose(lazy.compute(), want, atol=1e-6)
    torch.testing.assert_close(net[1].running_mean, kept, rtol=0, atol=0)
    assert net.training


# -- several outputs ------------------------------------------------------------------------

Named = collections.namedtuple("Named", "logits features")


@dataclasses.dataclass
class Fields:
    logits: object
    features: object


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        logits = x.mean((2, 3))[:, :2]
        both = logits, torch.softmax(logits, 1)
        if self.kind is dict:
            return {"logits": both[0], "features": both[1]}
        return self.kind(*both) if self.kind in (Named, Fields) else self.kind(both)


@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("kind", [tuple, list, dict, Named, Fields])
def test_several_outputs_are_named(kind, batch_size):
    keys = {"kernel_size": 16, "batch_size": batch_size}
    model = Several(kind)
    mean = IMAGE.reshape(4, 16, 6, 16, 3).mean((1, 3))[..., :2] / 255
    with pytest.raises(UsageError, match=f"a {kind.__name__} of 2 .*output=") as caught:
        heatmap(IMAGE, model, **keys)
    assert "(2, 2)" in str(caught.value)
    for output in [0, -2] if kind in (tuple, list) else [0, "logits"]:
        found = heatmap(IMAGE, model, output=output, **keys)
        np.testing.assert_allclose(found, np.moveaxis(mean, -1, 0), atol=1e-5)
    with pytest.raises(UsageError, match="no output 'probabilities'"):
        heatmap(IMAGE, model, output="probabilities", **keys)

    def function(windows):
        return model(torch.from_numpy(np.moveaxis(windows, -1, 1).astype("f4") / 255))

    with pytest.raises(UsageError, match="output="):
        heatmap(IMAGE, function, **keys)
    np.testing.assert_allclose(heatmap(IMAGE, function, output=0, **keys), found, atol=1e-5)


def test_which_output_is_meant_is_part_of_the_parameters(tmp_path):
    out = tmp_path / "a.zarr"
    heatmap(IMAGE, Several(tuple), output=0, out=out, **KEYS)
    with pytest.raises(StoreError, match="model: the store has"):
        heatmap(IMAGE, Several(tuple), output=1, out=out, resume=True, **KEYS)


def test_outputs_of_predict_infer_and_streams():
    def both(windows):
        return {"twice": windows[..., 0] * 2.0, "plain": windows[..., 0] * 1.0}

    keys = {"kernel_size": 32, "blend": "constant"}
    for output, factor in (("twice", 2), ("plain", 1)):
        found = predict(IMAGE, both, output=output, **keys)
        np.testing.assert_allclose(found, IMAGE[..., 0] * float(factor))
        ((_, scan),) = infer(IMAGE, both, output=output, **keys)
        np.testing.assert_allclose(scan["y_pred"], found)
    with pytest.raises(UsageError, match="dict of 2"):
        predict(IMAGE, both, **keys)
    data = Dataset("one", [Patient("a", {"x": Record(array=IMAGE)})])
    with SlidingWindowDL(data, kernel_size=16, batch_size=2) as loader:
        for pick in (0, 1):
            pieces = run_stream(loader, lambda b: (b[0][:, 0, 0, 0], b[0][:, 1, 0, 0]), output=pick)
            assert [int(p.data) for p in pieces["a"]] == IMAGE[::16, ::16, pick].ravel().tolist()
        with pytest.raises(UsageError, match="tuple of 2"):
            run_stream(loader, lambda b: (b[0][:, 0, 0, 0], b[0][:, 1, 0, 0]))
        with pytest.raises(UsageError, match="of a module make one"):
            run_stream(loader, network())
        each = run_stream(loader, lambda b: [np.full(3, x[0, 0, 0]) for x in b[0].numpy()])
        assert [p.data[2] for p in each["a"]] == IMAGE[::16, ::16, 0].ravel().tolist()
        with pytest.raises(UsageError, match="2 arrays with 2 rows.*np.stack.*output=0"):
            run_stream(loader, lambda b: [np.zeros(2), np.zeros(2)])
        x, _, windows = next(iter(loader))
        (first, _) = ProcessedPiece.of_batch(windows, {"v": x[:, 0, 0, 0].bfloat16()}, "v")
        assert float(first.data) == pytest.approx(float(x[0, 0, 0, 0]), rel=1e-2)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda n: torch.zeros(n, dtype=torch.complex64), "complex64.*abs"),
        (lambda n: np.zeros(n, complex), "complex128.*abs"),
        (lambda n: None, "NoneType"),
        (lambda n: [np.zeros(3)] * n, "list of 2"),
        (lambda n: torch.zeros(n, 2).to_sparse(), "real numbers"),
    ],
)
def test_what_is_no_value(result, message):
    with pytest.raises(UsageError, match=message):
        heatmap(IMAGE, lambda w: result(len(w)), **KEYS)


def test_an_output_of_one_array():
    with pytest.raises(UsageError, match="leave output= away"):
        heatmap(IMAGE, network().eval(), output=0, **KEYS)
    for wrong in (1.5, True, ("a",)):
        with pytest.raises(UsageError, match="by position or key"):
            heatmap(IMAGE, network().eval(), output=wrong, **KEYS)


# -- values that are none -------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_name_their_windows(bad):
    pixels = np.zeros((64, 96), np.float32)
    pixels[32, 48] = pixels[32, 80] = 1

    def model(windows):
        return np.where(windows.max((1, 2)) > 0, bad, 0)

    with pytest.raises(UsageError, match="NaN or infinite") as caught:
        heatmap(pixels, model, kernel_size=16, batch_size=6)
    assert "(2, 3) at pixel (32, 48)" in str(caught.value)
    assert "2 of 24 windows" in str(caught.value)  # of a block
    with pytest.raises(UsageError, match="NaN or infinite") as caught:
        predict(pixels, lambda w: np.where(w > 0, bad, w), kernel_size=16, overlap=0, batch_size=6)
    assert "(2, 3) at pixel (32, 48)" in str(caught.value)
    # what is left out by a mask may be anything
    mask = np.ones((4, 6), bool)
    mask[2, 3] = mask[2, 5] = False
    found = heatmap(pixels, model, kernel_size=16, mask=mask).compute()
    assert np.isnan(found).sum() == 2


# -- types ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"batch_tfms": lambda x: x.float() / 255}])
def test_modules_get_batches_of_their_own_type(kind, options):
    seen = set()

    class Tell(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network().eval().to(kind)

        def forward(self, x):
            seen.add(x.dtype)
            return self.net(x)

    want = heatmap(IMAGE, network().eval(), **KEYS).compute()
    found = heatmap(IMAGE, Tell(), **KEYS, **options)
    assert found.dtype == np.float32
    assert seen == {kind}
    np.testing.assert_allclose(found, want, atol=2e-2 if kind.itemsize == 2 else 1e-6)
    dense = nn.Conv2d(3, 2, 1).to(kind)
    maps = predict(IMAGE, dense, kernel_size=16, **options)
    assert maps.shape == (2, *IMAGE.shape[:2])
    assert np.isfinite(maps).all()


# -- what is no model -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear, r"class itself.*Linear\(\.\.\.\)"),
        (network().state_dict(), "state_dict"),
        ({"state_dict": {}, "epoch": 3}, "weights only"),
        (None, "got None"),
        ("resnet50", "cannot be read"),
        (7, "got int"),
    ],
)
@pytest.mark.parametrize("call", [heatmap, predict, infer])
def test_what_is_no_model(call, model, message):
    with pytest.raises(UsageError, match=message):
        list(call(IMAGE, model, kernel_size=16))


def test_scripted_and_compiled_modules_in_training_mode():
    want = heatmap(IMAGE, network().eval(), **KEYS).compute()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(network().train())
    compiled = torch.compile(network().train(), backend="eager")
    for model in (scripted, compiled):
        np.testing.assert_allclose(heatmap(IMAGE, model, **KEYS), want, atol=1e-6)
        assert model.training
    with dask.config.set(scheduler="sync"):
        lazy = heatmap(IMAGE, compiled, compute=False, **KEYS)
        np.testing.assert_allclose(lazy, want, atol=1e-6)


def test_threads_share_several_devices():
    net = network().eval()
    want = heatmap(IMAGE, net, **KEYS).compute()
    for device in (["cpu"], ["cpu", torch.device("cpu", 0)]):
        found = heatmap(IMAGE, net, device=device, block_windows=1, **KEYS)
        np.testing.assert_allclose(found, want, atol=1e-6)
    for wrong in ([], ["cpu", None]):
        with pytest.raises(UsageError, match="device="):
            heatmap(IMAGE, net, device=wrong, **KEYS)


def test_every_thread_has_the_device_of_its_turn():
    shipped = Shipped(WindowModel(network(), device="cpu"), None, ("cpu", "meta"))
    found = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: found.extend([shipped.get(), shipped.get()]))
        thread.start()
        thread.join()
    where = [next(one.model.parameters()).device.type for one in found]
    assert where == ["cpu", "cpu", "meta", "meta", "cpu", "cpu"]
    assert found[0] is found[-1]  # one copy for each device


# -- masks ----------------------------------------------------------------------------------


class Lies:
    """A mask that knows where it lies, and no more."""

    def __init__(self, data, scale):
        self.data, self.scale = data, scale


def sliding(image, mask):
    axes = image.ndim - (image.shape[-1] == 3)
    record = Record(array=image, spatial_ndim=axes)
    data = Dataset("one", [Patient("a", {"x": record})])
    return SlidingWindowDL(data, kernel_size=(8,) * axes, mask={"a": mask})


CALLS = {
    "heatmap": lambda i, m, k: heatmap(i, lambda w: w.reshape(len(w), -1).max(1), mask=m, **k),
    "predict": lambda i, m, k: predict(i, lambda w: w, mask=m, **k),
    "infer": lambda i, m, k: list(infer(i, lambda w: w, mask={"image": m}, **k)),
    "sliding": lambda i, m, k: sliding(i, m),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(64, 256), (16, 48, 64)])
def test_masks_of_another_aspect_ratio_are_refused(call, shape):
    image = np.zeros(shape, np.float32)
    keys = {"kernel_size": (8,) * len(shape)}
    good = np.ones([n // 4 for n in shape], bool)
    CALLS[call](image, good, keys)
    CALLS[call](image, np.ones([n // 4 + 1 for n in shape], bool), keys)  # rounded up
    for bad in (good.T, good[:, : shape[1] // 10], np.moveaxis(good, 0, 1)):
        with pytest.raises(GeometryError, match="another aspect ratio.*not transposed"):
            CALLS[call](image, bad, keys)
    with pytest.raises(GeometryError, match="needs . axes"):
        CALLS[call](image, good[0], keys)


def test_masks_that_know_their_place():
    image = np.arange(64 * 128, dtype=np.float32).reshape(64, 128)
    inside = np.ones((4, 4), bool)
    part = Lies(inside, (8, 8))  # the upper half of the left quarter
    for found in (
        heatmap(image, lambda w: w.max((1, 2)), kernel_size=16, mask=part),
        predict(image, lambda w: w[:, ::16, ::16], kernel_size=16, overlap=0, mask=part),
    ):
        assert np.argwhere(np.isfinite(found.compute())).tolist() == [
            [0, 0],
            [0, 1],
            [1, 0],
            [1, 1],
        ]
