"""Masks of volumes say where they lie, and have to lie where the image does."""

from __future__ import annotations

import numpy as np
import pytest

from daskdmed import Dataset, Patient, Record, Space, heatmap, infer, predict
from daskdmed.errors import GeometryError

SHAPE = (12, 16, 16)
SPACE = Space(np.diag([3.0, 1.0, 1.0, 1.0]), SHAPE)
HOW = {"kernel_size": (4, 8, 8)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An image, and the right half of it as a mask that is stored in another orientation."""
    folder = tmp_path_factory.mktemp("masks")
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    inside = np.zeros(SHAPE, np.int16)
    inside[:, :, 8:] = 7
    turned = SPACE.reorient("LSP")
    order, flips = SPACE.permutation("LSP")
    stored = np.flip(inside.transpose(order), [a for a, f in enumerate(flips) if f])
    np.save(folder / "image.npy", values)
    np.save(folder / "mask.npy", stored)
    image = Record(folder / "image.npy", space=SPACE)
    return image, Record(folder / "mask.npy", space=turned), values, inside > 0


def own(windows):
    return windows


def test_a_mask_is_read_in_the_orientation_of_the_image(files):
    image, mask, values, inside = files
    letters = SPACE.orientation
    found = predict(image, own, mask=mask, orientation=letters, blend="constant", **HOW).compute()
    np.testing.assert_array_equal(np.isfinite(found), inside)
    np.testing.assert_allclose(found[inside], values[inside], rtol=1e-6)
    view = mask.view(orientation=letters)
    again = predict(image, own, mask=view, orientation=letters, blend="constant", **HOW)
    np.testing.assert_array_equal(again, found)
    means = heatmap(image, lambda w: w.mean((1, 2, 3)), mask=mask, orientation=letters, **HOW)
    np.testing.assert_array_equal(np.isfinite(means), np.arange(2) * np.ones((3, 2, 1)) > 0)
    dataset = Dataset("d", [Patient("p", {"t1": image, "brain": mask})])
    scans = infer(
        dataset, own, record="t1", mask=lambda p: p.records["brain"], orientation=letters, **HOW
    )
    np.testing.assert_array_equal(np.isfinite(next(scans)[1]["y_pred"]), inside)


def test_a_mask_that_lies_elsewhere_is_refused(files):
    image, mask, _, _ = files
    moved = Record(mask.uri, space=mask.space.crop((0, 3, 0), mask.space.shape))
    for one, how in (
        (moved, {"orientation": SPACE.orientation}),
        (mask.view(orientation="LPS"), {}),
    ):
        for run in (predict, heatmap):
            with pytest.raises(GeometryError, match="at the same places|on the same grid"):
                run(image, own, mask=one, **how, **HOW)


def test_a_result_is_a_mask_where_it_was_made(files):
    image, _, _values, _ = files
    coarse = predict(image, own, spacing=(6.0, 2.0, 2.0), kernel_size=(2, 4, 4), post="threshold")
    assert coarse.shape == (6, 8, 8)
    found = predict(image, own, mask=coarse, **HOW).compute()
    wanted = np.repeat(np.repeat(np.repeat(coarse.compute(), 2, 0), 2, 1), 2, 2) > 0
    np.testing.assert_array_equal(np.isfinite(found), wanted)
    with pytest.raises(GeometryError, match="does not lie over"):
        predict(image, own, mask=coarse, orientation="LPI", **HOW)
