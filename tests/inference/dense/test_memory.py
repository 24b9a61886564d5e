"""Labels are made step by step: memory never holds maps of all classes over the whole image."""

from __future__ import annotations

import tracemalloc

import dask
import numpy as np
import pytest
import zarr

from daskdmed import Record, predict

CLASSES, SHAPE = 12, (16, 32, 160)
#: of maps of all classes
WHOLE = CLASSES * np.prod(SHAPE) * 4
HOW = {"kernel_size": (16, 16, 16), "chunks": 16, "batch_size": 1, "post": "argmax"}


def classes(windows):
    """As many maps as there are classes."""
    found = np.zeros((len(windows), CLASSES, *windows.shape[1:]), np.float32)
    np.put_along_axis(found, windows[:, None].astype(np.int64), 1, axis=1)
    return found


@pytest.fixture(scope="module")
def image():
    made = np.random.default_rng(0).integers(0, CLASSES, SHAPE).astype(np.uint8)
    predict(Record(array=made, spatial_ndim=3), classes, **HOW)  # imports
    return made


def test_peak_of_a_label_volume(image, tmp_path):
    with dask.config.set(num_workers=1):
        tracemalloc.start()
        try:
            found = predict(
                Record(array=image, spatial_ndim=3), classes, out=tmp_path / "labels.zarr", **HOW
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < WHOLE / 2
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.compute(), image)
    group = zarr.open_group(tmp_path / "labels.zarr", mode="r")
    assert {array.dtype for _, array in group.arrays()} == {np.dtype("uint8")}


def test_the_peak_is_that_of_maps_where_these_are_wanted(image):
    """The measure sees what it is to see: without arg-max all maps are in memory."""
    with dask.config.set(num_workers=1):
        tracemalloc.start()
        try:
            found = predict(
                Record(array=image, spatial_ndim=3), classes, **{**HOW, "post": None}
            ).compute()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert found.nbytes == WHOLE
    assert peak > WHOLE
