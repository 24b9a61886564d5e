"""Batches as a pretrained network wants them: resized as Pillow does, by what a folder says."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from PIL import Image

from daskdmed.core.fingerprint import fingerprint
from daskdmed.errors import UsageError
from daskdmed.transforms import Compose, Normalize, RandomFlip, Resize, model_input
from tests.transforms.conftest import batch_of

MEAN, STD = [0.707, 0.579, 0.704], [0.212, 0.230, 0.178]
#: as timm's save_for_hf writes them, and HuggingFace's save_pretrained
TIMM = {
    "architecture": "vit_large_patch16_224",
    "num_classes": 0,
    "pretrained_cfg": {
        "input_size": [3, 56, 56], "interpolation": "bicubic", "crop_pct": 0.875,
        "crop_mode": "center", "mean": MEAN, "std": STD,
    },
}  # fmt: skip
BIT = {
    "do_center_crop": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "crop_size": {"height": 56, "width": 56}, "size": {"shortest_edge": 64}, "resample": 3,
    "image_mean": MEAN, "image_std": STD, "rescale_factor": 0.00392156862745098,
    "image_processor_type": "BitImageProcessor",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    def make(name, told):
        place = tmp_path / name
        place.mkdir()
        file = "config.json" if "architecture" in told else "preprocessor_config.json"
        (place / file).write_text(json.dumps(told))
        return place

    return make


def by_pillow(images, size, interpolation):
    how = getattr(Image.Resampling, interpolation.upper())
    return np.stack([np.asarray(Image.fromarray(i).resize(size[::-1], how)) for i in images])


@pytest.mark.parametrize("size", [(64, 64), (32, 160), (160, 96)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_planes_are_resized_as_by_pillow(images, interpolation, size):
    x = batch_of(images[:2])
    y = Resize(size, interpolation)(x)
    assert y.dtype == torch.uint8
    assert y.movedim(1, -1).is_contiguous()
    wanted = by_pillow(images[:2], size, interpolation)
    off = np.abs(y.movedim(1, -1).numpy().astype(int) - wanted)
    # Pillow rounds between the two axes
    assert off.max() <= {"nearest": 0, "bilinear": 1, "bicubic": 3}[interpolation]
    assert off.mean() < 0.2


def test_what_has_the_size_stays_and_floats_stay_floats(x):
    assert Resize(96)(x) is x
    assert torch.equal(Resize(96, crop=40)(x), x[:, :, 28:68, 28:68])
    y = Resize((48, 48))(x.float() / 255)
    assert y.dtype == torch.float32
    assert (y * 255 - Resize(48)(x)).abs().max() <= 0.51
    wide = (x.int() * 100).to(torch.int16)
    assert torch.equal(Resize(48, "nearest")(wide), Resize(48, "nearest")(x.int() * 100))


@pytest.mark.parametrize("layout", ["labels", "array", "tensor"])
def test_targets_take_the_nearest_pixel(x, layout):
    labels = (x[:, 0] % 7).numpy()
    wanted = by_pillow(labels, (32, 160), "nearest")
    targets = {
        "labels": labels,
        "array": np.stack([labels, labels], -1),
        "tensor": torch.from_numpy(np.stack([labels, labels], 1)),
    }[layout]
    y, moved = Resize((32, 160), "bicubic", crop=(28, 153))(x, None, targets)
    assert y.shape == (8, 3, 28, 153)
    one = {"labels": moved, "array": moved[..., 1], "tensor": moved[:, 1]}[layout]
    # one pixel more on the left, as torchvision has it: round(3.5) is 4
    assert np.array_equal(np.asarray(one), wanted[:, 2:30, 4:157])


def test_what_cannot_be_resized(x):
    with pytest.raises(UsageError, match="planes.*spacing="):
        Resize(20)(torch.zeros(2, 1, 8, 8, 8))
    for wrong in (0, -3, 2.5, (3,), (3, 4, 5), (3, "4")):
        with pytest.raises(UsageError, match="size must be a positive whole number"):
            Resize(wrong)
    with pytest.raises(UsageError, match="does not lie within"):
        Resize(20, crop=21)
    with pytest.raises(UsageError, match="interpolation must be one of"):
        Resize(20, "lanczos")


@pytest.mark.parametrize("told", [TIMM, BIT], ids=["timm", "huggingface"])
@pytest.mark.parametrize("crop", [False, True])
def test_windows_as_a_folder_says(images, folder, told, crop):
    """As the evaluation transforms of both are written down, done by hand with Pillow."""
    x = batch_of(images[:2])
    transform = model_input(folder("model", told), crop=crop)
    size = 64 if crop else 56
    shown = by_pillow(images[:2], (size, size), "bicubic") / 255
    if crop:
        shown = shown[:, 4:60, 4:60]
    wanted = (shown - MEAN) / STD
    y = transform(x)
    assert y.dtype == torch.float32
    assert y.shape == (2, 3, 56, 56)
    assert np.abs(y.movedim(1, -1).numpy() - wanted).max() <= 2.1 / 255 / min(STD)
    # a value: the same features tomorrow, in another process
    assert fingerprint(transform) == fingerprint(model_input(told, crop=crop))
    assert fingerprint(transform) == fingerprint(pickle.loads(pickle.dumps(transform)))
    assert fingerprint(transform) != fingerprint(model_input(told, crop=not crop))


def test_every_way_to_say_it(folder):
    class Model(torch.nn.Module):
        pretrained_cfg = TIMM["pretrained_cfg"]

    place = folder("timm", TIMM)
    same = [place, str(place), place / "config.json", TIMM, TIMM["pretrained_cfg"], Model()]
    assert len({repr(model_input(source)) for source in same}) == 1
    # what transformers writes beside its own config.json is asked first
    (place / "preprocessor_config.json").write_text(json.dumps({**BIT, "resample": 2}))
    assert "bilinear" in repr(model_input(place))


@pytest.mark.parametrize(
    ("changes", "crop", "wanted"),
    [
        ({}, False, [Resize(56, "bicubic"), Normalize(MEAN, STD)]),
        ({}, True, [Resize(64, "bicubic", crop=56), Normalize(MEAN, STD)]),
        ({"do_center_crop": False}, True, [Resize(64, "bicubic"), Normalize(MEAN, STD)]),
        ({"do_resize": False, "do_center_crop": False}, False, [Normalize(MEAN, STD)]),
        (
            {"size": {"height": 40, "width": 50}, "do_center_crop": False, "resample": 0},
            False,
            [Resize((40, 50), "nearest"), Normalize(MEAN, STD)],
        ),
        (
            {"size": 30, "crop_size": 28},
            True,
            [Resize(30, "bicubic", crop=28), Normalize(MEAN, STD)],
        ),
        ({"do_normalize": False}, False, [Resize(56, "bicubic"), Normalize(0, 1)]),
        # ConvNeXt: cropped where it is small
        (
            {"do_center_crop": False, "crop_pct": 0.875, "size": {"shortest_edge": 224}},
            True,
            [Resize(256, "bicubic", crop=224), Normalize(MEAN, STD)],
        ),
        (
            {"do_center_crop": False, "crop_pct": 0.875, "size": {"shortest_edge": 384}},
            True,
            [Resize(384, "bicubic"), Normalize(MEAN, STD)],
        ),
    ],
)
def test_what_image_processors_say(changes, crop, wanted):
    assert repr(model_input({**BIT, **changes}, crop=crop)) == repr(Compose(wanted))


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"rescale_factor": 1 / 127.5}, lambda v: (v / 127.5 - 0.5) / 0.25),
        ({"do_rescale": False}, lambda v: (v - 0.5) / 0.25),
        ({"do_normalize": False, "do_rescale": False}, lambda v: v),
    ],
)
def test_other_scales_of_the_samples(x, changes, value):
    told = {**BIT, "do_resize": False, "do_center_crop": False, "image_mean": 0.5,
            "image_std": [0.25] * 3, **changes}  # fmt: skip
    np.testing.assert_allclose(model_input(told)(x), value(x.double()), rtol=1e-4, atol=1e-3)


def test_what_says_nothing(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    for source, said in (
        (tmp_path / "empty", "holds neither preprocessor_config.json nor config.json"),
        (tmp_path / "gone", "is not there.*nothing is downloaded"),
        ("hf-hub:bioptimus/H-optimus-0", "is not there.*from a folder on this machine"),
        (torch.nn.Linear(1, 1), "Linear has no pretrained_cfg"),
        (7, "int has no pretrained_cfg"),
        (folder("architecture", {"architectures": ["ViTModel"], "hidden_size": 3}), "KeyError"),
        ({**BIT, "image_std": [1, 0, 1]}, "no positive numbers"),
        ({**BIT, "image_mean": [float("nan")] * 3}, "no numbers"),
        ({**BIT, "image_mean": []}, "no numbers"),
        ({**BIT, "image_mean": "abc"}, "ValueError"),
        ({**BIT, "crop_size": {"height": 0, "width": 3}}, "no size in pixels"),
        ({**BIT, "size": {"longest_edge": 3}, "do_center_crop": False}, "KeyError"),
        ({**BIT, "rescale_factor": 0}, "rescale_factor is 0"),
        ({**BIT, "resample": 1}, "interpolation 'lanczos'.*Compose"),
        ({"input_size": [56, 56], "mean": MEAN, "std": STD}, "ValueError"),
        ({**TIMM["pretrained_cfg"], "crop_mode": "border"}, "crop_mode is 'border'"),
        ({**TIMM["pretrained_cfg"], "interpolation": "random"}, "interpolation 'random'"),
    ):
        with pytest.raises(UsageError, match=said):
            model_input(source)
    for content, said in ((b"{", "as JSON"), (b"[1]", "holds list"), (b" " * 2**21, "bytes"),
                          (b"[" * 100_000, "as JSON")):  # fmt: skip
        (tmp_path / "wrong.json").write_bytes(content)
        with pytest.raises(UsageError, match=said):
            model_input(tmp_path / "wrong.json")


def test_in_a_training_pipeline(x, keys):
    labels = (x[:, 0] > 100).numpy()
    whole = Compose([RandomFlip(), model_input(BIT)])
    y, moved = whole(x, keys, labels)
    assert y.shape == (8, 3, 56, 56)
    assert moved.shape == (8, 56, 56)
    _, same = RandomFlip()(x, keys, labels)
    assert not np.array_equal(same, labels)
    assert Compose([RandomFlip(), Resize(56)])(x, keys).shape == (8, 3, 56, 56)
