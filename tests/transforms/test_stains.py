"""Stain normalisation against torchstain, an implementation in NumPy, and known stains."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from skimage import color

pytest.importorskip("torch")
import torch

from daskdmed import Patient, Record, open_slide
from daskdmed.errors import SampleNotAvailableError, UsageError
from daskdmed.samples import fetch
from daskdmed.transforms import Compose, MacenkoNormalizer, ReinhardNormalizer, Samples
from tests.transforms.conftest import BLUISH, PURPLE, batch_of, keys_of, stained, unit

NORMALIZERS = [
    MacenkoNormalizer(),
    ReinhardNormalizer().fit(stained(50)),
    ReinhardNormalizer(luminosity=None).fit(stained(50)),
]


@pytest.fixture(scope="module")
def tissue():
    """Patches of a real slide, with tissue."""
    try:
        slide = open_slide(fetch("CMU-1-Small-Region.svs"))
    except SampleNotAvailableError as error:
        pytest.skip(str(error))
    with slide:
        places = [(900, 1700), (700, 1300), (1200, 600), (1500, 2000)]
        return [slide.read_region(p, 0, (192, 192))[..., :3].copy() for p in places]


def macenko_in_numpy(image, target, threshold=0.15, percentile=1.0):
    """The paper's steps for one image (y, x, 3), in float64, with NumPy's percentiles."""

    def analyse(rgb):
        density = -np.log((rgb.reshape(-1, 3).astype(float) + 1) / 240)
        coloured = density[(density >= threshold).all(1)]
        _, vectors = np.linalg.eigh(np.cov(coloured.T))
        plane = vectors[:, 1:]
        plane = plane * np.where(coloured.mean(0) @ plane < 0, -1, 1)
        angle = np.arctan2(*(coloured @ plane).T[::-1])
        ends = [
            plane @ (np.cos(a), np.sin(a))
            for a in np.percentile(angle, [percentile, 100 - percentile])
        ]
        stains = np.stack(sorted(ends, key=lambda v: -v[0]), axis=1)
        amounts = np.linalg.lstsq(stains, density.T, rcond=None)[0]
        return stains, amounts, np.percentile(amounts, 99, axis=1)

    wanted, _, wanted_high = analyse(target)
    _, amounts, high = analyse(image)
    rgb = 240 * np.exp(-wanted @ (amounts * (wanted_high / high)[:, None]))
    return np.clip(rgb, 0, 255).T.reshape(image.shape)


def reinhard_in_numpy(image, target):
    lab, wanted = (color.rgb2lab(i).reshape(-1, 3) for i in (image, target))
    moved = (lab - lab.mean(0)) / lab.std(0) * wanted.std(0) + wanted.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of colours outside sRGB
        return color.lab2rgb(moved.reshape(image.shape)) * 255


def close(result, expected, worst=1.0):
    """The same picture, within rounding."""
    off = np.abs(result.movedim(0, -1).numpy().astype(float) - expected)
    return off.max() <= worst and off.mean() < 0.51


# -- against others ---------------------------------------------------------------------------


def test_macenko_against_numpy(images, x):
    target = stained(40, BLUISH)
    result = MacenkoNormalizer().fit(target)(x)
    for image, y in zip(images, result, strict=True):
        assert close(y, macenko_in_numpy(image, target))
    other = MacenkoNormalizer(threshold=0.3, percentile=5).fit(target)(x)
    for image, y in zip(images, other, strict=True):
        assert close(y, macenko_in_numpy(image, target, 0.3, 5))


def test_macenko_against_torchstain(images, tissue):
    torchstain = pytest.importorskip("torchstain")
    for group in (images, tissue):
        for target in (None, group[0]):
            peer = torchstain.normalizers.MacenkoNormalizer(backend="numpy")
            ours = MacenkoNormalizer()
            if target is not None:
                ours.fit(target)
                peer.fit(target)
            result = ours(batch_of(group))
            for image, y in zip(group, result, strict=True):
                expected, _, _ = peer.normalize(image, stains=False)
                # it truncates and we round
                assert close(y, expected + 0.5, 1.5)


def test_reinhard_against_numpy_and_torchstain(images, tissue):
    for group in (images, tissue):
        target = group[-1]
        ours = ReinhardNormalizer(luminosity=None).fit(target)
        result = ours(batch_of(group))
        for image, y in zip(group, result, strict=True):
            off = np.abs(y.movedim(0, -1).numpy() - reinhard_in_numpy(image, target))
            # scikit-image clips Z of colours outside sRGB
            assert (off > 0.51).mean() < 0.01
    torchstain = pytest.importorskip("torchstain")
    peer = torchstain.normalizers.ReinhardNormalizer(backend="numpy")
    peer.fit(target)
    for image, y in zip(tissue, result, strict=True):
        assert close(y, peer.normalize(image).astype(float) + 0.5, 1.6)


# -- what they are for ------------------------------------------------------------------------


def test_macenko_finds_the_stains():
    for stains in (PURPLE, BLUISH):
        found = MacenkoNormalizer(percentile=1).fit(stained(7, stains, 256)).target["stains"]
        cosine = (unit(stains) * found.T).sum(1)
        assert np.all(cosine > 0.995)


def test_laboratories_become_alike():
    """The same tissue stained twice is the same after normalisation."""
    a, b = (stained(11, s, 256, k) for s, k in ((PURPLE, (0.6, 0.4)), (BLUISH, (0.35, 0.5))))
    apart = np.abs(a.astype(float) - b).mean()
    reference = stained(12, PURPLE, 256, (0.6, 0.4))
    y, z = MacenkoNormalizer().fit(reference)(batch_of([a, b])).float()
    assert (y - z).abs().mean() < 0.3 * apart
    # means and deviations alone cannot do as much
    y, z = ReinhardNormalizer().fit(reference)(batch_of([a, b])).float()
    assert (y - z).abs().mean() < 0.9 * apart
    own = MacenkoNormalizer().fit(a)(batch_of([a]))[0].movedim(0, -1).numpy()
    assert (own - a.astype(float)).std() < 1  # its own target, but for what is no stain


def test_statistics_of_tissue_only():
    """How much background there is does not change what becomes of the tissue."""
    normalise = ReinhardNormalizer().fit(stained(3))
    image = stained(4, background=0.0, size=96)
    padded = image.copy()
    framed = np.full((192, 96, 3), 244, np.uint8)
    framed[96:] = image
    y, z = normalise(batch_of([padded]))[0], normalise(batch_of([framed]))[0]
    assert torch.equal(z[:, 96:], y)
    all_pixels = ReinhardNormalizer(luminosity=None).fit(stained(3))
    z = all_pixels(batch_of([framed]))[0]
    assert (z[:, 96:].float() - all_pixels(batch_of([padded]))[0].float()).abs().mean() > 5


def patient(name):
    return Patient(name, {"wsi": Record(array=np.zeros((9, 9, 3), np.uint8))})


def test_per_patient():
    slides = {"a": stained(20, PURPLE, 256), "b": stained(21, BLUISH, 256)}
    for normalise in (
        MacenkoNormalizer(per="patient"),
        ReinhardNormalizer(per="patient").fit(stained(50)),
    ):
        for name, slide in slides.items():
            normalise.fit_patient(patient(name) if name == "a" else name, slide)
        names = ["a", "b", "b", "a"]
        crops = [slides[n][i * 20 : i * 20 + 64, 64:128] for i, n in enumerate(names, 4)]
        x = batch_of(crops)
        samples = Samples.of(keys_of(4))
        samples = Samples(4, samples.state, tuple(names))
        y = normalise(x, samples)
        # the whole slide at once gives the same pixels
        for i, (name, crop) in enumerate(zip(names, y, strict=True), 4):
            whole = type(normalise)().fit(stained(50))
            whole._target = normalise._target
            reference = whole(batch_of([slides[name]]))[0][:, i * 20 : i * 20 + 64, 64:128]
            assert (crop.int() - reference.int()).abs().max() <= 1
        # a blank one is treated like its slide, and replayed
        params = Compose([normalise]).draw(samples)
        assert torch.equal(Compose([normalise]).replay(params, x), y)
        assert torch.isfinite(normalise(torch.full((4, 3, 8, 8), 1.0), samples)).all()


# -- degenerate images ------------------------------------------------------------------------


def degenerate():
    rng = np.random.default_rng(0)
    noise = np.clip(rng.normal(243, 2, (96, 96, 3)), 0, 255).astype(np.uint8)
    one = np.full((96, 96, 3), (150, 80, 160), np.uint8)
    few = np.full((96, 96, 3), 245, np.uint8)
    few[0, :20] = stained(1)[50, :20]
    return {
        "white": np.full((96, 96, 3), 255, np.uint8),
        "black": np.zeros((96, 96, 3), np.uint8),
        "glass": noise,
        "one colour": one,
        "few pixels": few,
    }


@pytest.mark.parametrize("kind", degenerate())
@pytest.mark.parametrize("normalise", NORMALIZERS[:2], ids=repr)
def test_images_without_stains_stay(normalise, kind, images):
    image = degenerate()[kind]
    mixed = batch_of([images[0], image, images[1]])
    for x in (mixed, mixed.float() / 255):
        y = normalise(x)
        assert torch.isfinite(y.float()).all()
        assert torch.allclose(y[1].float(), x[1].float(), atol=1e-6)
        # and do not disturb their neighbours
        assert torch.equal(y[[0, 2]], normalise(x[[0, 2]]))
    with pytest.raises(UsageError, match="target image.*96, 96.*colour"):
        type(normalise)().fit(image)
    with pytest.raises(UsageError, match="patient 'p'"):
        type(normalise)(per="patient").fit_patient("p", image)


@pytest.mark.parametrize("kind", degenerate())
def test_all_pixels_of_degenerate_images(kind):
    y = NORMALIZERS[2](batch_of([degenerate()[kind].astype(np.float32) / 255]))
    assert torch.isfinite(y).all()


def test_one_stain_only():
    """Grey levels of one stain: two cannot be told apart, or one is not there."""
    density = np.random.default_rng(0).uniform(0.2, 1, (96, 96, 1)) * unit(PURPLE)[1]
    x = batch_of([(240 * np.exp(-density)).astype(np.float32) / 255])
    assert torch.allclose(MacenkoNormalizer()(x), x, atol=1e-6)


# -- the rest -----------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", NORMALIZERS, ids=repr)
def test_whatever_the_batch(normalise, x):
    whole = normalise(x)
    for i in range(8):
        assert torch.equal(normalise(x[i : i + 1])[0], whole[i])
    assert whole.stride() == x.stride()
    floats = normalise(x.float() / 255)
    assert (floats * 255 - whole).abs().max() < 0.51
    wide = normalise((x.int() * 257).to(torch.uint16))
    assert (wide.float() / 257 - whole).abs().max() < 0.51


def test_fit_takes_tensors():
    image = stained(30)
    a = MacenkoNormalizer().fit(image).target
    b = MacenkoNormalizer().fit(batch_of([image])[0]).target
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert a["stains"].shape == (3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: MacenkoNormalizer(per="slide"), "'image' or 'patient'"),
        (lambda x: MacenkoNormalizer(background=0), "background"),
        (lambda x: MacenkoNormalizer(percentile=60), "percentile"),
        (lambda x: ReinhardNormalizer(luminosity=3), "luminosity"),
        (lambda x: ReinhardNormalizer()(x), "no target yet"),
        (lambda x: MacenkoNormalizer()(x[:, :2]), "RGB"),
        (lambda x: MacenkoNormalizer().fit(np.zeros((5, 5))), r"tensor|RGB"),
        (lambda x: MacenkoNormalizer().fit_patient("p", stained(1)), 'per="patient"'),
        (lambda x: MacenkoNormalizer(per="patient")(x, keys_of(8)), "know the patients"),
        (
            lambda x: MacenkoNormalizer(per="patient")(
                x, Samples(8, np.zeros(8, np.uint64), tuple("abcdefgh"))
            ),
            r"patient 'a' \(8 in this batch\)",
        ),
    ],
)
def test_wrong(x, call, message):
    with pytest.raises(UsageError, match=message):
        call(x)
