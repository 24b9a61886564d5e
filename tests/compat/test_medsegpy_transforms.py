"""MedSegPy's transforms: they do what they are called, on an image and its masks alike."""

from __future__ import annotations

import numpy as np
import pytest

from daskdmed.compat.medsegpy.data import build_loader
from daskdmed.compat.medsegpy.data.transforms import (
    AffineNormalization,
    CropTransform,
    FlipTransform,
    MedTransform,
    NoOpTransform,
    RandomCrop,
    TransformGen,
    TransformList,
    Windowing,
    ZeroMeanNormalization,
    apply_transform_gens,
    build_preprocessing,
)
from daskdmed.errors import GeometryError, UsageError
from tests.compat.made import SHAPE, config

IMAGE = np.random.default_rng(0).normal(50, 9, (8, 6, 2)).astype(np.float32)


def test_a_crop_is_a_part():
    np.testing.assert_array_equal(CropTransform((1, 2), (4, 3)).apply_image(IMAGE), IMAGE[1:5, 2:5])
    for wrong, told in (((6, 0), "does not lie in"), ((-1, 0), "whole numbers")):
        with pytest.raises(GeometryError, match=told):
            CropTransform(wrong, (4, 3)).apply_image(IMAGE)


def test_an_axis_of_0_is_flipped_too():
    for axis in (0, 1, (0, 1)):
        flip = FlipTransform(axis)
        np.testing.assert_array_equal(flip.apply_image(IMAGE), np.flip(IMAGE, axis))
        np.testing.assert_array_equal(flip.undo(flip.apply_segmentation(IMAGE)), IMAGE)
    np.testing.assert_array_equal(FlipTransform().apply_image(IMAGE), IMAGE[::-1, ::-1])
    with pytest.raises(GeometryError, match="no axis"):
        FlipTransform(3).apply_image(IMAGE)


def test_mean_0_and_deviation_1():
    found = ZeroMeanNormalization().apply_image(IMAGE)
    assert abs(found.mean()) < 1e-6
    assert abs(found.std() - 1) < 1e-6
    each = ZeroMeanNormalization(axis=(0, 1)).apply_image(IMAGE)
    np.testing.assert_allclose(each.std((0, 1)), 1, rtol=1e-5)
    assert not ZeroMeanNormalization().apply_image(np.full((3, 3), 7)).any()
    np.testing.assert_array_equal(ZeroMeanNormalization().apply_segmentation(IMAGE), IMAGE)


def test_scale_and_windows():
    np.testing.assert_allclose(
        AffineNormalization(scale=(2, 4), bias=(1, 0)).apply_image(IMAGE),
        (IMAGE - (1, 0)) / (2, 4),
        rtol=1e-6,
    )
    windows = Windowing([(40, 50), (0, 45)]).apply_image(IMAGE[..., :1])
    np.testing.assert_array_equal(windows[..., 0], np.clip(IMAGE[..., 0], 40, 50))
    np.testing.assert_array_equal(windows[..., 1], np.clip(IMAGE[..., 0], 0, 45))
    for make in (lambda: AffineNormalization(scale=0), lambda: Windowing([(3, 3)])):
        with pytest.raises(UsageError, match=r"scale=0|bounds"):
            make()


@pytest.mark.parametrize(
    ("kind", "size", "shapes"),
    [
        ("absolute", (5, 3), {(5, 3)}),
        ("relative", (0.5, 0.5), {(4, 3)}),
        ("relative_range", (0.5, 1), {(n, 6) for n in range(4, 9)}),
    ],
)
def test_random_crops_of_the_image_and_its_masks(kind, size, shapes):
    rng, found = np.random.default_rng(0), set()
    places = set()
    for _ in range(40):
        crop, applied = apply_transform_gens([RandomCrop(kind, size)], IMAGE, rng)
        np.testing.assert_array_equal(applied.apply_segmentation(IMAGE), crop)
        found.add(crop.shape[:2])
        places.add(applied.transforms[0].coords0)
    assert found <= shapes
    assert len(found) >= min(len(shapes), 3)
    assert len(places) > 2
    again = apply_transform_gens([RandomCrop(kind, size)], IMAGE, np.random.default_rng(0))[0]
    rest = apply_transform_gens([RandomCrop(kind, size)], IMAGE, np.random.default_rng(0))[0]
    np.testing.assert_array_equal(again, rest)


def test_crops_that_cannot_be():
    for kind, size in (("absolute", (0.5,)), ("relative", (2,))):
        with pytest.raises(GeometryError, match="crop_size="):
            RandomCrop(kind, size)
    with pytest.raises(UsageError, match="crop_type must be one of relative_range"):
        RandomCrop("half", (1,))
    with pytest.raises(GeometryError, match="larger than the image"):
        RandomCrop("absolute", (9,)).get_transform(IMAGE)


def test_lists_and_further_kinds_of_data():
    both = TransformList([NoOpTransform()]) + TransformList([FlipTransform(0)])
    assert len(both) == 2
    np.testing.assert_array_equal(
        (both + TransformList([FlipTransform(0)])).apply_image(IMAGE), IMAGE
    )
    FlipTransform.register_type("rows", lambda flip, rows: [-r for r in rows])
    NoOpTransform.register_type("rows", lambda nothing, rows: rows)
    assert both.apply_rows([1, 2]) == [-1, -2]
    with pytest.raises(UsageError, match="holds MedTransforms"):
        TransformList([len])


def test_a_configuration_names_them():
    cfg = config(
        PREPROCESSING=["Windowing", "ZeroMeanNormalization", FlipTransform(1)],
        PREPROCESSING_ARGS=[{"bounds": [(40, 60)]}, {}, {}],
    )
    found, masks = build_preprocessing(cfg).apply(IMAGE[..., :1], IMAGE[..., 1:])
    wanted = np.clip(IMAGE[..., 0], 40, 60)[:, ::-1]
    np.testing.assert_allclose(found[..., 0], (wanted - wanted.mean()) / wanted.std(), atol=1e-5)
    np.testing.assert_array_equal(masks[..., 0], IMAGE[:, ::-1, 1])
    for names, arguments, told in (
        (["Windowin"], [{}], "no transform 'Windowin'; is 'Windowing' meant"),
        (["Windowing"], [{}, {}], "1 entries, cfg.PREPROCESSING_ARGS 2"),
        (["Windowing"], [{"bound": 1}], "Windowing does not take"),
    ):
        with pytest.raises(UsageError, match=told):
            build_preprocessing(config(PREPROCESSING=names, PREPROCESSING_ARGS=arguments))


class Shift(TransformGen):
    """As somebody wrote it for MedSegPy: its random numbers are its own."""

    def get_transform(self, img):
        class Add(MedTransform):
            def apply_image(self, img):
                return img + 1

            def apply_segmentation(self, segmentation):
                return segmentation

        return Add()


def test_loaders_transform_each_image_on_its_own_and_its_masks_alike(registered):
    def loader(**options):
        cfg = config(
            PREPROCESSING=["RandomCrop", "ZeroMeanNormalization", Shift()],
            PREPROCESSING_ARGS=[{"crop_type": "absolute", "crop_size": (8, 8)}, {}, {}],
        )
        return build_loader(cfg, "slices", is_test=True, drop_last=False, **options)

    cropped = loader(batch_size=7, shuffle=False)
    x, y, raw = cropped[0]
    assert (x.shape, y.shape, raw.shape) == ((7, 8, 8, 1), (7, 8, 8, 4), (7, *SHAPE[:2], 1))
    np.testing.assert_allclose(x.mean((1, 2, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(x.std((1, 2, 3)), 1, atol=1e-5)
    # masks are where the image is bright, wherever the crop is: brighter than what is outside
    for one, mask in zip(x[..., 0], y[..., 0]):
        assert one[mask == 1].min() > one[mask == 0].max()
    # what a slice becomes depends on no other slice, nor on the size of batches
    np.testing.assert_array_equal(loader(batch_size=3, shuffle=False)[1][0][1], x[4])
    cropped.on_epoch_end()
    assert not np.array_equal(cropped[0][0], x)
    with pytest.raises(UsageError, match="draws at random .RandomCrop, Shift."):
        cropped.inference(lambda batch: batch)
