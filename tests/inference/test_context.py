"""Networks for 2.5 dimensions: neighbouring slices as channels, the axis of one slice dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from daskdmed import Dataset, Patient, Record, Space, evaluate, heatmap, infer, predict
from daskdmed.errors import GeometryError, UsageError

SHAPE = (7, 20, 18)
SPACE = Space(np.diag([3.0, 1.0, 0.5, 1.0]), SHAPE)


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def around(values):
    """Slice before, itself, slice behind: mirrored at the ends."""
    padded = np.pad(values, [(1, 1), (0, 0), (0, 0)], mode="reflect")
    return padded[:-2], padded[1:-1], padded[2:]


class Weighed(nn.Module):
    """A network over planes, (n, 3, h, w) -> (n, k, h, w): each channel by a weight of its own."""

    def __init__(self, *rows):
        super().__init__()
        self.mix = nn.Conv2d(3, len(rows), 1, bias=False)
        self.mix.weight.data = torch.tensor(rows, dtype=torch.float32)[..., None, None]

    def forward(self, x):
        assert x.ndim == 4
        return self.mix(x)


def volume(values):
    return Record(array=values, space=SPACE)


HOW = {"kernel_size": (1, 8, 8), "context": 1, "squeeze": True}


def test_predictions_see_the_neighbours_and_belong_to_the_middle(values, around):
    before, own, behind = around
    found = predict(volume(values), Weighed((100, 10, 1), (0, 1, 0)), blend="constant", **HOW)
    assert found.shape == (2, *SHAPE)
    wanted = 100 * before + 10 * own + behind
    np.testing.assert_allclose(found[0].compute(), wanted, rtol=1e-5)
    np.testing.assert_allclose(found[1].compute(), values, rtol=1e-5)  # nothing is shifted


def test_one_map_and_no_blocks_that_see_the_end_of_slices(values, around):
    """However the result is cut, slices come from the whole volume."""
    before, _own, behind = around
    model = Weighed((1, 0, -1))
    for chunks in (2, 7):
        found = predict(volume(values), model, chunks=(chunks, 8, 8), **HOW)
        assert found.shape == SHAPE
        np.testing.assert_allclose(found.compute(), before - behind, atol=1e-3)
    lazy = predict(volume(values), model, compute=False, **HOW)
    np.testing.assert_allclose(lazy[3:5].compute(), (before - behind)[3:5], atol=1e-3)


def test_callables_get_channels_last(values, around):
    def model(windows):
        assert windows.shape[1:] == (8, 8, 5)
        return windows[..., [0, 2]]

    how = {**HOW, "context": (2, 0, 0)}
    found = predict(volume(values), model, blend="constant", **how)
    padded = np.pad(values, [(2, 2), (0, 0), (0, 0)], mode="reflect")
    np.testing.assert_allclose(found[0].compute(), padded[:-4], rtol=1e-6)
    np.testing.assert_allclose(found[1].compute(), values, rtol=1e-6)
    # without squeeze the axis of one slice is there
    shapes = []

    def shaped(windows):
        shapes.append(windows.shape[1:])
        return windows[..., 1]

    predict(volume(values), shaped, kernel_size=(1, 8, 8), context=1)
    assert set(shapes) == {(1, 8, 8, 3)}


def test_heatmaps_see_the_neighbours(values, around):
    before, _, behind = around

    class Means(nn.Module):
        def forward(self, x):
            assert x.shape[1:] == (3, 10, 9)
            return x.mean((2, 3))[:, [0, 2]]

    found = heatmap(volume(values), Means(), kernel_size=(1, 10, 9), context=1, squeeze=True)
    assert found.shape == (2, 7, 2, 2)
    for channel, image in zip(found.compute(), (before, behind), strict=True):
        wanted = image.reshape(7, 2, 10, 2, 9).mean((2, 4))
        np.testing.assert_allclose(channel, wanted, rtol=1e-5)
    maps = heatmap(volume(values), Weighed((0, 1, 0)), kernel_size=(1, 10, 9), context=1,
                   squeeze=True)  # fmt: skip
    np.testing.assert_allclose(maps.compute(), values, rtol=1e-5)


def test_what_lies_beyond_the_ends(values):
    first = Weighed((1, 0, 0))
    for edge, before in (("edge", values[0]), ("constant", 0 * values[0])):
        found = predict(volume(values), first, context_edge=edge, **HOW)
        np.testing.assert_allclose(found[0].compute(), before, rtol=1e-5)
        np.testing.assert_allclose(found[1:].compute(), values[:-1], rtol=1e-5)
    with pytest.raises(UsageError, match="context_edge is one of"):
        predict(volume(values), first, context_edge="wrap", **HOW)


def test_a_run_goes_on_only_with_the_same_context(values, tmp_path):
    from daskdmed.errors import StoreError

    out = tmp_path / "a.zarr"
    model = lambda w: w[..., 0]  # noqa: E731
    predict(volume(values), model, out=out, **HOW)
    with pytest.raises(StoreError, match="image: the store has"):
        predict(volume(values), model, out=out, resume=True, **{**HOW, "context": 2})


def test_scans_as_medsegpy_lays_them_out(values, around):
    records = {"t1": volume(values), "seg": Record(array=values > 50, space=SPACE)}
    dataset = Dataset("scans", [Patient("p", records)])

    def scan(layout):
        how = {**HOW, "post": ("threshold", 50), "target": "seg", "layout": layout}
        return next(infer(dataset, Weighed((0, 1, 0)), record="t1", **how))

    (inputs, outputs), (inputs0, outputs0) = scan("hwd"), scan("zyx")
    for mine, other in (
        (inputs["x"], inputs0["x"]),
        (outputs["y_pred"], outputs0["y_pred"]),
        (outputs["y_true"], outputs0["y_true"]),
    ):
        assert mine.shape == (20, 18, 7)
        np.testing.assert_array_equal(mine, np.transpose(other, (1, 2, 0)))
    np.testing.assert_array_equal(inputs0["x"], values)  # without its neighbours
    assert inputs["spacing"] == outputs["spacing"] == (1.0, 0.5, 3.0)
    assert inputs0["spacing"] == (3.0, 1.0, 0.5)
    metrics = evaluate([scan("hwd"), scan("zyx")[:2]][:1], metrics=("dice", "hd"))
    assert metrics.rows[0]["dice"] > 0.99
    logits = next(infer(dataset, Weighed((0, 1, 0), (1, 0, 0)), record="t1", layout="hwd", **HOW))
    assert logits[1]["y_pred"].shape == (20, 18, 7, 2)


def test_planes_keep_their_order():
    image = np.random.default_rng(0).random((12, 16, 3)).astype(np.float32)
    inputs, outputs = next(infer(image, lambda w: w, kernel_size=8, layout="hwd"))
    assert inputs["x"].shape == outputs["y_pred"].shape == (12, 16, 3)


def test_wrong_arguments(values):
    record, model = volume(values), lambda w: w[..., 0]
    for how, error, match in (
        ({**HOW, "context": -1}, GeometryError, "neighbouring slices"),
        ({**HOW, "context": (1, 0)}, GeometryError, "neighbouring slices"),
        ({"kernel_size": (4, 8, 8), "squeeze": True}, UsageError, "one pixel"),
        ({"kernel_size": (1, 1, 8), "squeeze": True}, UsageError, "leaves two"),
        ({**HOW, "squeeze": 1}, UsageError, "True or False"),
        (
            {**HOW, "receptive_field": (1, 3, 3), "output_stride": 1},
            UsageError,
            "beside receptive_field",
        ),
    ):
        with pytest.raises(error, match=match):
            predict(record, model, **how)
    with pytest.raises(UsageError, match="layout must be one of"):
        infer(record, model, kernel_size=(4, 4, 4), layout="dhw")
