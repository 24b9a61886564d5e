"""Transforms of other libraries, image by image; whichever is installed."""

from __future__ import annotations

import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from daskdmed.errors import UsageError
from daskdmed.transforms import Compose, PerSample, RandomFlip, ToFloat
from tests.transforms.conftest import keys_of


def noise_of_all_kinds(image):
    """Draws from every global generator."""
    a = torch.rand(1).item() + float(np.random.random()) + random.random()  # noqa: NPY002
    return image.float() * 0 + a


def random_flip(image):
    """Moves pixels only."""
    return image.flip(-1) if torch.rand(1) < 0.5 else image


def assert_reproducible(transform, x, keys):
    before = x.clone()
    y = transform(x, keys)
    assert torch.equal(x, before)
    assert torch.equal(transform(x, keys), y)
    order = np.random.default_rng(0).permutation(len(x))
    assert torch.equal(transform(x[order], keys[order]), y[order])
    assert torch.equal(transform.replay(transform.draw(keys), x), y)
    return y


def test_seeded_by_the_small_chunk(x, keys):
    y = assert_reproducible(PerSample(noise_of_all_kinds), x, keys)
    drawn = y[:, 0, 0, 0]
    assert len(drawn.unique()) == 8
    other = PerSample(noise_of_all_kinds, seed=1)(x, keys)[:, 0, 0, 0]
    assert not (other == drawn).any()


def test_loaders_that_share_a_function_do_not_mix_its_numbers(x, keys):
    """Each calls it in a thread of its own, and here they meet there, if they can."""
    meeting = threading.Barrier(2)

    class Noise:
        """Holds its generator, as albumentations' and MONAI's do."""

        def set_random_seed(self, seed):
            self.generator = np.random.default_rng(seed)

        def __call__(self, image):
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(0.2)
            return image.float() * 0 + self.generator.random()

    shared = PerSample(Noise())
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(shared, (x, x), (keys, keys[::-1])))
    assert meeting.broken
    for found, seed in zip(together, (keys, keys[::-1]), strict=True):
        assert torch.equal(found, shared(x, seed))


def test_global_generators_go_on_as_before(x, keys):
    def numbers():
        return torch.rand(3).tolist(), np.random.random(3).tolist(), random.random()  # noqa: NPY002

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    expected = numbers()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    PerSample(noise_of_all_kinds)(x, keys)
    with pytest.raises(ZeroDivisionError):
        PerSample(lambda image: torch.rand(1) + 1 / 0)(x, keys)
    assert numbers() == expected


def test_functions_may_write_into_their_image(x, keys):
    expected = x + 1
    for style in ("tensor", "array"):

        def add(image):
            image += 1
            return image

        before = x.clone()
        assert torch.equal(PerSample(add, style=style)(x, keys), expected)
        assert torch.equal(x, before)


def test_arrays(x, keys):
    seen = []

    def crop(image):
        seen.append((type(image), image.shape, image.flags.c_contiguous))
        return image[8:-8, 8:-8, ::-1]

    y = PerSample(crop, style="array")(x, keys)
    assert torch.equal(y, x[:, :, 8:-8, 8:-8].flip(1))
    assert set(seen) == {(np.ndarray, (96, 96, 3), True)}


@pytest.mark.parametrize("layout", ["labels", "array", "tensor"])
@pytest.mark.parametrize("style", ["tensor", "array"])
def test_joint(x, keys, style, layout):
    function = random_flip
    if style == "array":

        def function(image):
            return image[:, ::-1] if torch.rand(1) < 0.5 else image

    targets = {
        "labels": x[:, 0].numpy(),
        "array": x.movedim(1, -1).numpy(),
        "tensor": x.clone(),
    }[layout]
    y, moved = PerSample(function, style=style, joint=True)(x, keys, targets)
    assert not torch.equal(y, x)
    expected = {"labels": y[:, 0], "array": y.movedim(1, -1), "tensor": y}[layout]
    assert type(moved) is type(targets)
    assert np.array_equal(moved, expected)
    _, same = PerSample(function, style=style, joint=False)(x, keys, targets)
    assert np.array_equal(same, targets)
    with pytest.raises(UsageError, match="joint=True"):
        PerSample(function, style=style)(x, keys, targets)


class Paired:
    """A dictionary transform that no seeding of each call by itself could replace.

    It looks at the target to move the image, and at the image to change the target.
    """

    def __call__(self, pair):
        shift = torch.randint(1, 9, ()).item() + int(pair["label"].max())
        image = pair["image"].roll(shift, -1)
        return {"image": image, "label": pair["label"] + image[:1], "other": 3}


@pytest.mark.parametrize("layout", ["labels", "array", "tensor"])
def test_dictionary_transforms_see_image_and_target_together(x, keys, layout):
    targets = {
        "labels": x[:, 0].numpy() // 9,
        "array": x.movedim(1, -1).numpy() // 9,
        "tensor": x // 9,
    }[layout]
    before = x.clone(), targets.copy() if isinstance(targets, np.ndarray) else targets.clone()
    transform = PerSample(Paired(), keys=("image", "label"))
    y, moved = transform(x, keys, targets)
    assert torch.equal(x, before[0])
    assert np.array_equal(targets, before[1])
    shifts = set()
    for i in range(len(x)):
        largest = int(targets[i].max())
        (found,) = [n for n in range(1, 9) if torch.equal(x[i].roll(n + largest, -1), y[i])]
        shifts.add(found)
        added = {"labels": y[i, 0], "array": y[i, :1].movedim(0, -1), "tensor": y[i, :1]}[layout]
        assert np.array_equal(moved[i], np.asarray(targets[i]) + np.asarray(added))
    assert len(shifts) > 1
    assert type(moved) is type(targets)
    again, same = transform.replay(transform.draw(keys), x, targets)
    assert torch.equal(again, y)
    assert np.array_equal(same, moved)
    # in the order of their places, with others around it and within another
    around = [RandomFlip(p=1.0), PerSample(Paired(), keys=("image", "label")), ToFloat(scale=1)]
    for whole in (Compose(around), Compose([Compose(around)])):
        y, moved = whole(x, keys, targets)
        flipped = RandomFlip(p=1.0)(x, keys, targets)[1]
        image = np.asarray(y.byte())
        own = {"labels": image[:, 0], "array": np.moveaxis(image[:, :1], 1, -1),
               "tensor": image[:, :1]}[layout]  # fmt: skip
        assert np.array_equal(np.asarray(moved), np.asarray(flipped) + own)


def test_dictionary_transforms_without_a_target(x, keys):
    seen = []

    def invert(pair):
        seen.append(set(pair))
        return {"image": 255 - pair["image"]}

    assert torch.equal(PerSample(invert, keys=("image", "label"))(x, keys), 255 - x)
    assert seen == [{"image"}] * 8


def test_what_a_dictionary_transform_may_not_give(x, keys):
    labels = x[:, 0].numpy()
    for result, said in (
        ([{"image": 1}], "gave list.*quotas="),
        ({"image": x[0]}, r"a dict of \['image'\].*with 'label'"),
        ({"label": x[0]}, r"a dict of \['label'\].*with 'image'"),
    ):
        transform = PerSample(lambda pair, result=result: result, keys=("image", "label"))
        with pytest.raises(UsageError, match=said):
            transform(x, keys, labels)
    for wrong in ("ab", ("image",), ("image", "image"), ("image", 3), 7):
        with pytest.raises(UsageError, match="keys are the names of the image and of the target"):
            PerSample(Paired(), keys=wrong)
    for options in ({"joint": True}, {"style": "array"}):
        with pytest.raises(UsageError, match="leave style="):
            PerSample(Paired(), keys=("image", "label"), **options)
    alone = PerSample(Paired(), keys=("image", "label"))
    with pytest.raises(UsageError, match="on_both"):
        alone.on_target(x[:, 0], alone.draw(keys), (1, 2))


def test_in_a_compose(x, keys):
    augment = Compose([RandomFlip(), PerSample(random_flip, joint=True), ToFloat()])
    y, moved = augment(x, keys, x[:, 0].numpy())
    assert np.array_equal(moved, (y[:, 0] * 255).round().byte().numpy())


def test_results_of_differing_shapes(x, keys):
    crop = PerSample(lambda image: image[:, : 50 + int(torch.randint(0, 9, ()))])
    with pytest.raises(UsageError, match="differing shapes"):
        crop(x, keys)


def test_wrong_arguments(x):
    with pytest.raises(UsageError, match="function of one image"):
        PerSample(3)
    with pytest.raises(UsageError, match="style"):
        PerSample(random_flip, style="pil")
    with pytest.raises(UsageError, match="know the small chunks"):
        PerSample(random_flip)(x)
    for seed in (None, 1.5, "0"):
        with pytest.raises(UsageError, match="seed must be an integer.*secrets"):
            PerSample(random_flip, seed=seed)


@pytest.mark.parametrize("result", [None, {"image": 1}, object()], ids=["None", "dict", "object"])
def test_what_a_function_may_not_give(x, keys, result):
    with pytest.raises(UsageError, match="gave .*; it must give a tensor or an array"):
        PerSample(lambda image: result)(x, keys)


# -- libraries --------------------------------------------------------------------------------


def test_albumentations(x, keys):
    albumentations = pytest.importorskip("albumentations")
    pipeline = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.RandomRotate90(p=1),
            albumentations.RandomBrightnessContrast(p=1),
        ]
    )
    y = assert_reproducible(PerSample(pipeline), x, keys)
    assert y.dtype == torch.uint8
    assert y.shape == x.shape
    assert not torch.equal(y, x)
    # one transform by itself, with its masks
    flip = PerSample(albumentations.HorizontalFlip(p=0.5), joint=True)
    labels = x[:, 1].numpy()
    y, moved = flip(x, keys, labels)
    assert np.array_equal(moved, y[:, 1])
    changed = [not torch.equal(a, b) for a, b in zip(x, y, strict=True)]
    assert 0 < sum(changed) < 8
    y, channels = flip(x, keys, x.movedim(1, -1).numpy())
    assert np.array_equal(channels, y.movedim(1, -1))


def test_monai():
    monai = pytest.importorskip("monai.transforms")
    volume = torch.randint(-100, 100, (40, 1, 8, 8, 8), dtype=torch.int16)
    keys = keys_of(40)
    for transform in (
        monai.RandFlip(prob=0.5, spatial_axis=1),
        monai.Compose(
            [monai.RandFlip(prob=0.5, spatial_axis=0), monai.RandRotate90(prob=0.7, max_k=3)]
        ),
    ):
        y = assert_reproducible(PerSample(transform), volume, keys)
        assert type(y) is torch.Tensor
        assert y.dtype == torch.int16
        same = [torch.equal(a, b) for a, b in zip(volume, y, strict=True)]
        assert 0 < sum(same) < 40
        y, moved = PerSample(transform, joint=True)(volume, keys, volume[:, 0].numpy())
        assert np.array_equal(moved, y[:, 0])


def test_dictionary_transforms_of_monai(x, keys):
    monai = pytest.importorskip("monai.transforms")
    both = ["image", "label"]
    function = monai.Compose(
        [
            monai.RandFlipd(both, prob=0.5, spatial_axis=0),
            monai.RandRotate90d(both, prob=0.7, max_k=3),
            monai.RandShiftIntensityd("image", offsets=50, prob=1.0),
        ]
    )
    labels = (x[:, 1] // 2).numpy()
    transform = PerSample(function, keys=("image", "label"))
    y, moved = transform(x.float(), keys, labels)
    # the label has moved as the image has, and only the image has changed
    shift = y[:, 1].numpy() // 1 - moved * 2.0
    assert len({float(np.median(s)) for s in shift}) == 8
    assert all(np.ptp(s) <= 2 for s in shift)
    assert moved.dtype == np.uint8
    assert not all(np.array_equal(a, b) for a, b in zip(labels, moved, strict=True))
    order = np.random.default_rng(0).permutation(len(x))
    again, same = transform(x[order].float(), keys[order], labels[order])
    assert torch.equal(again, y[order])
    assert np.array_equal(same, moved[order])


def test_torchvision(x, keys):
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision: {error}")
    pipeline = v2.Compose(
        [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.ColorJitter(0.2, 0.2)]
    )
    y = assert_reproducible(PerSample(pipeline), x, keys)
    assert y.dtype == torch.uint8
    assert not torch.equal(y, x)
    # masks are moved but not coloured
    labels = (torch.arange(96 * 96) % 251).reshape(96, 96).to(torch.uint8).expand(8, 96, 96).numpy()
    y, moved = PerSample(pipeline, joint=True)(x, keys, labels)
    allowed = [labels[0], labels[0][::-1], labels[0][:, ::-1], labels[0][::-1, ::-1]]
    which = [[np.array_equal(m, a) for a in allowed].index(True) for m in moved]
    assert len(set(which)) > 1
    flips = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()])
    y, moved = PerSample(flips, joint=True)(x, keys, x[:, 2].numpy())
    assert np.array_equal(moved, y[:, 2])
