"""One rule from an overlap to a stride, whichever function is called."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

import daskdmed
from daskdmed.errors import GeometryError, UsageError
from daskdmed.tiling.grid import spatial_axes, stride_of

FRACTIONS = [0.0, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 0.99]
#: pairs for which two rules of rounding were in use
PAIRS = [
    (10, 0.25),
    (13, 0.5),
    (10, 0.1),
    (10, 0.9),
    (3, 0.99),
    (7, np.float32(0.3)),
    (9, np.int64(2)),
    (8, 3),
    ((9, 10), (0.5, 1)),
]


@pytest.mark.parametrize("kernel", [1, 2, 3, 7, 10, 13, 32, 96, 100, 224, 255, 512, 1000])
def test_a_fraction_is_the_stride_of_monai(kernel):
    for share in FRACTIONS:
        wanted = max(int(kernel * (1 - share)), 1)
        assert stride_of((kernel,), overlap=share) == (wanted,)
        assert stride_of((kernel,), overlap=np.float64(share)) == (wanted,)
        decimal = np.float32(share)  # counts as what it prints as
        assert stride_of((kernel,), overlap=decimal) == stride_of(
            (kernel,), overlap=float(str(decimal))
        )


def test_every_fraction_of_monai_itself():
    utils = pytest.importorskip("monai.inferers.utils")
    for kernel in (10, 13, 96, 100, 255):
        for share in FRACTIONS:
            wanted = utils._get_scan_interval((5000,), (kernel,), 1, (share,))
            assert stride_of((kernel,), overlap=share) == tuple(wanted)


def test_a_tenth_of_ten_is_one_pixel():
    for tenth in (0.1, np.float32(0.1), np.float16(0.1), np.float64(0.1)):
        assert stride_of((10,), overlap=tenth) == (9,)


@pytest.mark.parametrize(("kernel", "overlap"), PAIRS, ids=str)
def test_all_functions_lay_the_same_windows(kernel, overlap, tmp_path):
    image = np.random.default_rng(0).random((41, 37)).astype(np.float32)
    pair = tuple(np.broadcast_to(kernel, 2).tolist())
    stride = stride_of(pair, overlap=overlap)
    keywords = {"kernel_size": kernel, "overlap": overlap}

    def told(path):
        return tuple(zarr.open(path, mode="r").attrs["daskdmed"]["parameters"]["stride"])

    heat = daskdmed.heatmap(image, lambda w: w.mean(axis=(1, 2)), out=tmp_path / "h", **keywords)
    daskdmed.predict(image, lambda w: w, out=tmp_path / "p", **keywords)
    assert told(tmp_path / "h") == told(tmp_path / "p") == stride
    patient = daskdmed.Patient("a", {"x": daskdmed.Record(array=image)})
    dataset = daskdmed.Dataset("all", [patient])
    for _ in daskdmed.infer(dataset, lambda w: w, out=tmp_path / "i", **keywords):
        pass
    (store,) = (p.parent for p in (tmp_path / "i").rglob("0") if (p.parent / "zarr.json").exists())
    assert told(store) == stride
    with daskdmed.SlidingWindowDL(dataset, batch_size=64, **keywords) as loader:
        places = [chunk.location for _, _, chunks in loader for chunk in chunks]
    assert len(places) == heat.size
    rows, columns = (sorted({p[1 - axis] for p in places}) for axis in (0, 1))
    assert (rows[1] - rows[0], columns[1] - columns[0]) == stride


@pytest.mark.parametrize("overlap", [1.0, -0.1, 8, -1, float("nan"), "0.5", (0.1, 0.2, 0.3)])
def test_an_overlap_that_is_none_is_refused_alike(overlap):
    image = np.zeros((20, 20), np.float32)
    for call in (
        lambda: daskdmed.heatmap(image, lambda w: w[:, 0, 0], kernel_size=8, overlap=overlap),
        lambda: daskdmed.predict(image, lambda w: w, kernel_size=8, overlap=overlap),
        lambda: daskdmed.SlidingWindowDL(image, kernel_size=8, overlap=overlap),
    ):
        with pytest.raises(GeometryError, match="overlap"):
            call()


def test_overlap_beside_stride_is_refused_alike():
    image = np.zeros((20, 20), np.float32)
    words = {"kernel_size": 8, "stride": 4, "overlap": 0.5}
    for call in (
        lambda: daskdmed.heatmap(image, lambda w: w[:, 0, 0], **words),
        lambda: daskdmed.predict(image, lambda w: w, **words),
        lambda: daskdmed.SlidingWindowDL(image, **words),
    ):
        with pytest.raises(UsageError, match="give one of them"):
            call()


def test_a_kernel_says_how_many_axes_are_space():
    for one in (8, np.int64(8), np.array(8)):
        assert spatial_axes(one) == 2
    for many in ((8, 8, 8), [8, 8, 8], np.array([8, 8, 8])):
        assert spatial_axes(many) == 3
