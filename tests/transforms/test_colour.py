"""Colours against scikit-image, torchvision's definitions, and analytic answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from skimage import color

pytest.importorskip("torch")
import torch

from daskdmed.errors import UsageError
from daskdmed.transforms import ColorJitter, Compose, HEDJitter, Normalize, ToDevice, ToFloat
from daskdmed.transforms.colourspace import HED_STAINS, lab_to_rgb, rgb_to_lab, shift_hue
from tests.transforms.conftest import batch_of, keys_of, stained

CHANNELS_LAST = torch.channels_last


def planar(rgb):
    """(n, 3) to a block [1, 3, n]."""
    return torch.from_numpy(rgb.astype(np.float32)).T[None].contiguous()


def all_colours(step=15):
    values = np.arange(0, 256, step)
    return np.stack(np.meshgrid(values, values, values), -1).reshape(-1, 3) / 255


# -- colour spaces ------------------------------------------------------------------------


def test_lab_is_that_of_skimage():
    rgb = all_colours()
    lab = rgb_to_lab(planar(rgb))
    assert np.abs(lab[0].T.numpy() - color.rgb2lab(rgb)).max() < 1e-3
    assert np.abs(lab_to_rgb(lab)[0].T.numpy() - rgb).max() < 2e-5
    # outside sRGB too, clipped as skimage clips
    rng = np.random.default_rng(0)
    lab = np.stack(
        [rng.uniform(30, 95, 500), rng.uniform(-60, 60, 500), rng.uniform(-40, 60, 500)], 1
    )
    expected = color.lab2rgb(lab)
    assert np.abs(lab_to_rgb(planar(lab))[0].T.numpy() - expected).max() < 2e-4


def test_hue_is_that_of_hsv():
    rgb = all_colours()
    for turns in (-0.5, -0.1, 0.0, 0.07, 0.5):
        hsv = color.rgb2hsv(rgb)
        hsv[:, 0] = (hsv[:, 0] + turns) % 1
        moved = shift_hue(planar(rgb), torch.tensor([[turns]]))
        assert np.allclose(moved[0].T.numpy(), color.hsv2rgb(hsv), atol=1e-5)


def test_stain_vectors_are_those_of_skimage():
    assert np.array_equal(HED_STAINS, color.rgb_from_hed)


# -- HED jitter ---------------------------------------------------------------------------


def test_hed_jitter_against_skimage():
    """Separate, change, and combine by skimage; on mixtures, because skimage clips others."""
    rng = np.random.default_rng(3)
    hed = rng.uniform(0, 0.03, (4, 20, 20, 3))
    rgb = color.hed2rgb(hed)
    x = torch.from_numpy(rgb).movedim(-1, 1)
    jitter = HEDJitter(alpha=0.2, beta=(0.0, 0.05))
    params = jitter.draw(keys_of(4))
    unit = -np.log(1e-6)
    alpha, beta = (params[n][:, None, None] for n in ("alpha", "beta"))
    expected = color.hed2rgb(color.rgb2hed(rgb) * alpha + beta / unit)
    y = jitter(x, keys_of(4)).movedim(1, -1).numpy()
    assert np.abs(expected - rgb).max() > 0.05
    assert np.allclose(y, expected, atol=1e-5)
    # and on what users have: integers, within their rounding
    x8 = batch_of((rgb * 255).round().astype(np.uint8))
    y8 = jitter(x8, keys_of(4))
    assert y8.dtype == torch.uint8
    exact = jitter(x8.to(torch.float64) / 255, keys_of(4)) * 255
    assert (y8 - exact).abs().max() <= 0.5001


def test_hed_jitter_without_change_gives_the_image_back(x, keys):
    assert torch.equal(HEDJitter(0, 0)(x, keys), x)
    assert torch.equal(HEDJitter(0.5, 0.5, p=0)(x, keys), x)
    everything = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(1, 3, 16, 16)
    assert torch.equal(HEDJitter(0, 0)(everything, keys_of(1)), everything)


def test_hed_jitter_ranges_and_own_stains():
    params = HEDJitter(0.2, (0.0, 0.1)).draw(keys_of(3000))
    for values, low, high in ((params["alpha"], 0.8, 1.2), (params["beta"], 0.0, 0.1)):
        for stain in values.T:
            uniform = stats.uniform(low, high - low)
            assert stats.kstest(stain, uniform.cdf).pvalue > 1e-3
        assert abs(np.corrcoef(values.T)[0, 1]) < 0.06
    share = HEDJitter(p=0.3).draw(keys_of(3000))["alpha"][:, 0]
    assert abs((share != 1).mean() - 0.3) < 0.03
    # red, green and blue as "stains": each channel has a power and a factor of its own
    jitter = HEDJitter(0.3, 0.1, stains=np.eye(3))
    grey = torch.full((2, 3, 4, 4), 0.5)
    params = jitter.draw(keys_of(2))
    expected = 0.5 ** params["alpha"] * np.exp(-params["beta"])
    assert np.allclose(jitter(grey, keys_of(2))[:, :, 0, 0].numpy(), expected, atol=1e-6)


# -- colour jitter ------------------------------------------------------------------------


def by_definition(image, b, c, s, h):
    """torchvision's definitions, in NumPy, for images in which nothing is clipped."""
    luma = np.array([0.299, 0.587, 0.114])
    image = image * b
    image = c * image + (1 - c) * (image @ luma).mean()
    image = s * image + (1 - s) * (image @ luma)[..., None]
    hsv = color.rgb2hsv(image)
    hsv[..., 0] = (hsv[..., 0] + h) % 1
    return color.hsv2rgb(hsv)


def test_colour_jitter_by_definition():
    rng = np.random.default_rng(5)
    image = rng.uniform(0.3, 0.6, (6, 12, 12, 3))
    x = torch.from_numpy(image).movedim(-1, 1)
    jitter = ColorJitter(0.2, 0.2, 0.3, 0.1)
    params = jitter.draw(keys_of(6))
    y = jitter(x, keys_of(6)).movedim(1, -1).numpy()
    for i in range(6):
        factors = (params[n][i] for n in ("brightness", "contrast", "saturation", "hue"))
        assert np.allclose(y[i], by_definition(image[i], *factors), atol=1e-5)


def test_colour_jitter_against_torchvision():
    try:
        from torchvision.transforms import functional
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision: {error}")
    x = torch.from_numpy(np.random.default_rng(5).uniform(0.3, 0.6, (6, 3, 12, 12)))
    jitter = ColorJitter(0.2, 0.2, 0.3, 0.1)
    params = jitter.draw(keys_of(6))
    y = jitter(x, keys_of(6))
    for i in range(6):
        z = functional.adjust_brightness(x[i], params["brightness"][i])
        z = functional.adjust_contrast(z, params["contrast"][i])
        z = functional.adjust_saturation(z, params["saturation"][i])
        z = functional.adjust_hue(z, params["hue"][i])
        assert torch.allclose(y[i], z, atol=5e-4)  # its luma weights sum to 0.9999


def test_colour_jitter_draws_what_it_says():
    params = ColorJitter(0.4, (0.5, 2), 1.5, (-0.2, 0.1), p=0.5).draw(keys_of(4000))
    changed = params["contrast"] != 1
    assert abs(changed.mean() - 0.5) < 0.03
    bounds = {
        "brightness": (0.6, 1.4),
        "contrast": (0.5, 2),
        "saturation": (0, 2.5),
        "hue": (-0.2, 0.1),
    }
    for name, (low, high) in bounds.items():
        uniform = stats.uniform(low, high - low)
        assert stats.kstest(params[name][changed], uniform.cdf).pvalue > 1e-3
        assert np.unique(params[name][~changed]).tolist() == [float(name != "hue")]


# -- what holds for all of them --------------------------------------------------------------

JITTERS = [HEDJitter(0.2, 0.2), ColorJitter(0.3, 0.3, 0.3), ColorJitter(0.3, 0.3, 0.3, 0.5)]


@pytest.mark.parametrize("jitter", JITTERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float16])
def test_type_and_layout_stay(jitter, dtype, x, keys):
    expected = jitter(x.to(torch.float64) / 255, keys)
    white = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    source = (x.to(torch.float64) / 255 * white).to(dtype).contiguous(memory_format=CHANNELS_LAST)
    before = source.clone()
    y = jitter(source, keys)
    assert y.dtype == dtype
    assert y.stride() == source.stride()
    assert torch.equal(source, before)
    off = (y.to(torch.float64) / white - expected).abs()
    # a truncated or rounded sample may be of another hue where there is hardly any
    assert off.mean() < 4e-3
    assert torch.equal(jitter(source.contiguous(), keys), y)


@pytest.mark.parametrize("jitter", JITTERS, ids=repr)
def test_whatever_the_batch(jitter, keys):
    x = batch_of([stained(i, size=200) for i in range(8)])
    whole = jitter(x, keys)
    assert len({image.numpy().tobytes() for image in whole}) == 8
    order = np.random.default_rng(0).permutation(8)
    assert torch.equal(jitter(x[order], keys[order]), whole[order])
    for i in range(8):
        assert torch.equal(jitter(x[i : i + 1], keys[i : i + 1])[0], whole[i])


@pytest.mark.parametrize("value", [0, 1, 128, 255])
@pytest.mark.parametrize("jitter", JITTERS, ids=repr)
def test_images_of_one_value(jitter, value, keys):
    for x in (torch.full((8, 3, 9, 9), value, dtype=torch.uint8), torch.zeros(8, 3, 0, 0)):
        y = jitter(x, keys)
        assert y.shape == x.shape
        assert (y == y[:, :, :1, :1]).all()
    floats = jitter(torch.full((8, 3, 9, 9), value / 255), keys)
    assert torch.isfinite(floats).all()
    assert floats.min() >= 0
    assert floats.max() <= 1


def test_colour_volumes(keys):
    x = torch.randint(0, 255, (8, 3, 4, 6, 5), dtype=torch.uint8)
    for jitter in JITTERS:
        flat = jitter(x.flatten(3), keys)
        assert torch.equal(jitter(x, keys).flatten(3), flat)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: HEDJitter(alpha=(1.2, 1.1)), "must not be empty"),
        (lambda x: HEDJitter(alpha=(-0.1, 1.1)), "lie in"),
        (lambda x: HEDJitter(stains=np.ones((3, 3))), "independent"),
        (lambda x: ColorJitter(hue=0.6), "hue=0.6"),
        (lambda x: ColorJitter(p=2), "probability"),
        (lambda x: HEDJitter()(x), "needs to know the small chunks"),
        (lambda x: HEDJitter()(x[:, :1], keys_of(8)), "RGB"),
        (lambda x: ColorJitter(1)(x.to(torch.int16), keys_of(8)), "torch.int16"),
        (lambda x: ToFloat(torch.int32), "floating"),
        (lambda x: ToFloat(scale=0), "scale=0"),
        (lambda x: Normalize(0.5, 0), "positive"),
        (lambda x: Normalize(0.5, 1, dtype=torch.uint8), "floating"),
        (lambda x: Normalize((0.5, 0.5), 1)(x), "2 numbers for 3 channels"),
    ],
)
def test_wrong(x, call, message):
    with pytest.raises(UsageError, match=message):
        call(x)


# -- conversion ---------------------------------------------------------------------------------


def test_to_float(x):
    y = ToFloat()(x)
    assert torch.equal(y, x.float() / 255)
    assert y.is_contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(ToFloat(torch.float16)(x), x.half() / 255)
    wide = torch.tensor([[[0, 65535, 6553]]], dtype=torch.uint16)
    assert torch.allclose(ToFloat()(wide), torch.tensor([[[0, 1, 0.1]]]), atol=1e-5)
    ct = torch.tensor([[[-1000, 400]]], dtype=torch.int16)
    assert ToFloat()(ct).tolist() == [[[-1000.0, 400.0]]]
    assert ToFloat(scale=1000)(ct).tolist() == [[[-1.0, pytest.approx(0.4)]]]
    ready = torch.rand(2, 3, 4, 4)
    assert ToFloat()(ready) is ready


def test_normalize(x):
    mean, std = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)
    shape = (1, 3, 1, 1)
    expected = (x.double() / 255 - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(
        shape
    )
    y = Normalize(mean, std)(x)
    assert y.dtype == torch.float32
    assert torch.allclose(y.double(), expected, atol=1e-5)
    assert torch.allclose(Compose([ToFloat(), Normalize(mean, std)])(x), y, atol=1e-5)
    ct = torch.randint(-1000, 1000, (2, 1, 3, 4, 5), dtype=torch.int16)
    assert torch.allclose(Normalize(-100, 300)(ct), (ct + 100) / 300, atol=1e-5)


def test_devices(x, keys):
    labels = np.zeros((8, 96, 96), np.uint8)
    assert ToDevice("cpu")(x, keys) is x
    y, target = ToDevice("meta")(x, keys, labels)
    assert y.device.type == target.device.type == "meta"
    _, channels = ToDevice("meta")(x, keys, labels[..., None])
    assert channels.shape == (8, 1, 96, 96)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(x, keys):
    for jitter in JITTERS:
        off = jitter(x.cuda(), keys).cpu().int() - jitter(x, keys).int()
        assert off.abs().max() <= 1
