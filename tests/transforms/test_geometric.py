"""Flips and turns against NumPy, for images and volumes, with targets."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

pytest.importorskip("torch")
import torch

from daskdmed.errors import UsageError
from daskdmed.transforms import ColorJitter, Compose, RandomFlip, RandomRotate90, ToFloat
from daskdmed.transforms.geometric import Turns, turn
from tests.transforms.conftest import keys_of


def volume_batch(n=16, spatial=(4, 6, 6), channels=2, dtype=np.int16):
    rng = np.random.default_rng(0)
    a = rng.integers(0, 200, (n, channels, *spatial)).astype(dtype)
    return torch.from_numpy(a)


def by_numpy(image, flips, axes, quarters, plane):
    """One image (c, *spatial): flipped, then turned, by NumPy."""
    for axis, flip in zip(axes, flips):
        if flip:
            image = np.flip(image, axis)
    return np.rot90(image, quarters, axes=plane)


@pytest.mark.parametrize("layout", ["channels last", "contiguous"])
def test_images_against_numpy(layout):
    a = np.random.default_rng(1).integers(0, 255, (64, 17, 17, 3), np.uint8)
    x = torch.from_numpy(a).movedim(-1, 1)
    if layout == "contiguous":
        x = x.contiguous()
    before = x.clone()
    transform = Compose([RandomFlip(), RandomRotate90()])
    keys = keys_of(64)
    y, params = transform(x, keys), transform.draw(keys)
    for i in range(64):
        expected = by_numpy(
            x[i].numpy(), params["0.flip"][i], (-2, -1), params["1.quarters"][i], (-2, -1)
        )
        assert np.array_equal(y[i].numpy(), expected)
    assert y.stride() == x.stride()
    assert torch.equal(x, before)
    assert len(set(params["1.quarters"].tolist())) == 4


def test_volumes_in_declared_axes_and_planes():
    x = volume_batch(spatial=(6, 6, 6))
    keys = keys_of(16)
    flip = RandomFlip(axes=(0, 2))
    turn90 = RandomRotate90(planes=[(-3, -2), (-2, -1), (-3, -1)])
    y = Compose([flip, turn90])(x, keys)
    params = Compose([flip, turn90]).draw(keys)
    planes = [(-3, -2), (-2, -1), (-3, -1)]
    assert set(params["1.plane"].tolist()) == {0, 1, 2}
    for i in range(16):
        plane = planes[params["1.plane"][i]]
        expected = by_numpy(
            x[i].numpy(), params["0.flip"][i], (-3, -1), params["1.quarters"][i], plane
        )
        assert np.array_equal(y[i].numpy(), expected)


def test_volumes_of_unequal_extent_turn_in_plane():
    x = volume_batch(spatial=(4, 6, 6))
    y = RandomRotate90()(x, keys_of(16))
    assert y.shape == x.shape
    assert torch.equal(y.sum((1, 3, 4)), x.sum((1, 3, 4)))  # no slice leaves its place
    with pytest.raises(UsageError, match=r"differing extent \(4, 6, 6\)"):
        RandomRotate90(planes=[(0, 1)])(x, keys_of(16))


symmetries = [
    (axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product([False, True], repeat=3)
]


@given(st.lists(st.sampled_from(symmetries), min_size=1, max_size=6), st.integers(0, 100))
def test_turns_compose(members, seed):
    """One turn made of many moves pixels as the many do, one after the other."""
    n = 5
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(0, 255, (n, 1, 3, 3, 3), np.uint8))
    rows = [
        Turns(np.array([m[0]] * n), np.array([m[1]] * n) ^ (rng.random((n, 1)) < 0.5))
        for m in members
    ]
    stepwise, fused = x, rows[0]
    for r in rows:
        stepwise = turn(stepwise, r, (2, 3, 4))
    for r in rows[1:]:
        fused = fused.then(r)
    assert torch.equal(turn(x, fused, (2, 3, 4)), stepwise)


def test_all_eight_symmetries_equally_often():
    transform = Compose([RandomFlip(), RandomRotate90()])
    keys = keys_of(8000)
    params = transform.draw(keys)
    square = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2).expand(8000, 1, 2, 2)
    seen = transform.replay(params, square).flatten(1)
    _, counts = np.unique(seen.numpy(), axis=0, return_counts=True)
    assert len(counts) == 8
    assert stats.chisquare(counts).pvalue > 1e-3
    share = RandomFlip(p=0.2).draw(keys)["flip"].mean(0)
    assert np.all(np.abs(share - 0.2) < 0.02)
    share = RandomRotate90(p=0.4).draw(keys)["quarters"]
    assert abs((share != 0).mean() - 0.3) < 0.02


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.uint32, np.float32, bool])
@pytest.mark.parametrize("scale", [1, 2])
def test_targets_follow_exactly(dtype, scale):
    """A target that is the image itself, enlarged, is that of the result."""
    rng = np.random.default_rng(2)
    data = rng.integers(0, 2, (32, 12, 12, 2)).astype(dtype)
    x = torch.from_numpy(data.astype(np.uint8)).movedim(-1, 1)
    large = data.repeat(scale, 1).repeat(scale, 2)
    transform = Compose([RandomFlip(), ToFloat(scale=1), RandomRotate90()])
    keys = keys_of(32)
    y, moved = transform(x, keys, large)
    assert isinstance(moved, np.ndarray)
    assert moved.dtype == dtype
    assert moved.shape == large.shape
    assert np.array_equal(moved[:, ::scale, ::scale], y.movedim(1, -1).numpy().astype(dtype))
    # label maps, as an array or a tensor, and tensors with channels first
    _, labels = transform(x, keys, large[..., 0])
    assert np.array_equal(labels, moved[..., 0])
    _, tensor = transform(x, keys, torch.from_numpy(large[..., 1].copy()))
    assert np.array_equal(tensor.numpy(), moved[..., 1])
    _, first = transform(x, keys, torch.from_numpy(large).movedim(-1, 1))
    assert first.shape == (32, 2, 12 * scale, 12 * scale)
    assert np.array_equal(first.movedim(1, -1).numpy(), moved)


def test_label_volumes_follow():
    x = volume_batch(spatial=(5, 6, 6))
    labels = x[:, 0].numpy().copy()
    labels.flags.writeable = False
    y, moved = Compose([RandomFlip((0, 1, 2)), RandomRotate90()])(x, keys_of(16), labels)
    assert np.array_equal(moved, y[:, 0].numpy())
    backwards = labels[:, ::-1][:, ::-1][..., ::-1][..., ::-1][:, ::-1]
    _, moved = RandomFlip((0,), p=1)(x, keys_of(16), backwards)
    assert np.array_equal(moved, labels)


def test_photometric_transforms_leave_targets(x, keys):
    targets = np.random.default_rng(0).integers(0, 5, (8, 96, 96))
    y, same = ColorJitter(0.5)(x, keys, targets)
    assert same is targets or np.shares_memory(same, targets)
    assert not torch.equal(y, x)


def test_replay(x, keys):
    transform = Compose([RandomFlip(), ColorJitter(0.3, 0.3), RandomRotate90()], seed=4)
    once = transform(x, keys)
    params = transform.draw(keys)
    assert torch.equal(transform.replay(params, x), once)
    # on the half of the batch, and on another image of the same place
    half = {name: values[:4] for name, values in params.items()}
    assert torch.equal(transform.replay(half, x[:4]), once[:4])
    other = torch.rand(8, 1, 10, 10)
    geometric = {"flip": params["0.flip"]}
    flipped = RandomFlip().replay(geometric, other)
    for i, (v, h) in enumerate(params["0.flip"]):
        expected = other[i].flip([d for d, on in ((1, v), (2, h)) if on])
        assert torch.equal(flipped[i], expected)
    with pytest.raises(UsageError, match=r"'0\.flip' has 4 rows for a batch of 8"):
        transform.replay(half, x)


def test_whatever_the_batch(x, keys):
    transform = Compose([RandomFlip(), RandomRotate90()])
    whole = transform(x, keys)
    order = np.random.default_rng(0).permutation(8)
    assert torch.equal(transform(x[order], keys[order]), whole[order])
    for i in range(8):
        assert torch.equal(transform(x[i : i + 1], keys[i : i + 1])[0], whole[i])


def test_place_and_seed_make_a_difference():
    keys = keys_of(500)
    twice = Compose([RandomFlip(), RandomFlip()]).draw(keys)
    assert 0.4 < (twice["0.flip"] == twice["1.flip"]).mean() < 0.6
    again = Compose([RandomFlip()], seed=1).draw(keys)
    assert 0.4 < (twice["0.flip"] == again["0.flip"]).mean() < 0.6
    assert 0.4 < (RandomFlip(seed=1).draw(keys)["flip"] == again["0.flip"]).mean() < 0.6


def test_nothing_moves_nothing_is_copied(x, keys):
    assert RandomFlip(p=0)(x, keys).data_ptr() == x.data_ptr()
    assert torch.equal(RandomFlip(p=1)(x, keys), x.flip(2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomFlip(()), "at least one axis"),
        (lambda: RandomFlip(p=1.5), "probability"),
        (lambda: RandomRotate90([(1, 1)]), "two different axes"),
        (lambda: Compose([RandomFlip(), lambda x: x]), "PerSample"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: RandomFlip()(x), "needs to know the small chunks"),
        (lambda x: RandomFlip()(x.numpy(), keys_of(8)), "got ndarray"),
        (lambda x: RandomFlip()(x[0, 0], keys_of(8)), r"of shape \(96, 96\)"),
        (lambda x: RandomFlip((0, 2))(x, keys_of(8)), "no spatial axis 2"),
        (lambda x: RandomRotate90([(0, -2)])(x, keys_of(8)), "one axis twice"),
        (lambda x: RandomRotate90()(x[..., :50], keys_of(8)), r"extent \(96, 50\)"),
        (lambda x: RandomFlip()(x, keys_of(8), np.zeros((8, 9))), "do not go with"),
        (lambda x: RandomFlip()(x, keys_of(8), np.zeros((7, 9, 9))), "expected 8 label maps"),
    ],
)
def test_wrong_input(x, call, message):
    with pytest.raises(UsageError, match=message):
        call(x)


def test_pickles(x, keys):
    transform = Compose([RandomFlip(), ColorJitter(0.3), RandomRotate90()], seed=4)
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(again(x, keys), transform(x, keys))


def test_reprs():
    t = Compose([RandomFlip(p=0.25, seed=2), ToFloat()], seed=1)
    assert repr(t) == (
        "Compose([RandomFlip(axes=(-2, -1), p=0.25, seed=2), "
        "ToFloat(dtype=torch.float32, scale=None)], seed=1)"
    )
