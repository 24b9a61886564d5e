"""`heatmap` against values computed window by window."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch

from daskdmed import heatmap
from daskdmed.cohort.record import Record
from daskdmed.errors import GeometryError, ResolutionError, StoreError, UsageError
from daskdmed.tiling.grid import WindowGrid


def coordinate_image(shape, channels=0, dtype=np.float64):
    """Each pixel holds its own position, so that a window says where it was cut."""
    planes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    values = sum(p * (n_after) for p, n_after in zip(planes, strides_of(shape), strict=True))
    values = values.astype(dtype)
    return values if not channels else np.stack([values + 1000 * c for c in range(channels)], -1)


def strides_of(shape):
    return [int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape))]


def truth(image, grid: WindowGrid, function, background=0):
    """`function` of every window, each cut by hand from the padded image."""
    ndim = grid.ndim
    pad = [(0, k) for k in grid.kernel_size] + [(0, 0)] * (image.ndim - ndim)
    padded = np.pad(image, pad, constant_values=background)
    out = None
    for index, origin in grid:
        window = padded[
            tuple(slice(o, o + k) for o, k in zip(origin, grid.kernel_size, strict=True))
        ]
        value = np.asarray(function(window[None]), np.float32)[0]
        if out is None:
            out = np.full((*value.shape, *grid.counts), np.nan, np.float32)
        out[(..., *index)] = value
    return out


def first_and_mean(windows):
    """Two values that depend on position, on every pixel, and on the window's own layout."""
    flat = np.asarray(windows, np.float64).reshape(len(windows), -1)
    weights = np.linspace(1, 2, flat.shape[1])
    return np.stack([flat[:, 0], flat @ weights / flat.shape[1]], 1)


def weighted(windows):
    """One value per window that depends on every pixel and its place."""
    return first_and_mean(windows)[:, 1]


@pytest.fixture
def plane():
    """A (y, x, c) array and the same as a chunked Dask array."""
    image = coordinate_image((203, 331), 3, np.uint16)
    return image, da.from_array(image, chunks=(64, 80, 3))


@pytest.mark.parametrize("edge", ["pad", "shift", "drop"])
@pytest.mark.parametrize("stride", [32, 20, 45, (32, 11)])
def test_every_window_of_a_plane(plane, stride, edge):
    image, lazy = plane
    grid = WindowGrid.of(image.shape[:2], 32, stride=stride, edge=edge)
    found = heatmap(
        lazy, weighted, kernel_size=32, stride=stride, edge=edge, block_windows=3, batch_size=7
    )
    assert isinstance(found, da.Array)
    assert found.dtype == np.float32
    assert found.shape == grid.counts
    np.testing.assert_allclose(found.compute(), truth(image, grid, weighted), rtol=1e-6)


@pytest.mark.parametrize("block_windows", [None, 1, (2, 5), 1000])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_blocks_and_batches_do_not_change_the_result(plane, block_windows, batch_size):
    image, lazy = plane
    found = heatmap(
        lazy, weighted, kernel_size=(30, 20), block_windows=block_windows, batch_size=batch_size
    )
    grid = WindowGrid.of(image.shape[:2], (30, 20))
    np.testing.assert_allclose(found.compute(), truth(image, grid, weighted), rtol=1e-6)


def test_vectors_put_their_axis_first(plane):
    image, lazy = plane
    grid = WindowGrid.of(image.shape[:2], 50)
    found = heatmap(lazy, first_and_mean, kernel_size=50, block_windows=2)
    assert found.shape == (2, *grid.counts)
    np.testing.assert_allclose(found.compute(), truth(image, grid, first_and_mean), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [((40, 60, 50), (8, 16, 16), (4, 16, 10)), ((9, 64, 64), (1, 32, 32), None)],
)
@pytest.mark.parametrize("channels", [0, 2])
def test_volumes(shape, kernel, stride, channels):
    image = coordinate_image(shape, channels)
    grid = WindowGrid.of(shape, kernel, stride=stride)
    lazy = da.from_array(image, chunks=(16, 32, 32, *([channels] if channels else [])))
    found = heatmap(lazy, weighted, kernel_size=kernel, stride=stride, block_windows=2)
    np.testing.assert_allclose(found.compute(), truth(image, grid, weighted), rtol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (10, 70), (32, 100), (1, 1)])
def test_images_smaller_than_the_kernel_and_equal_to_it(shape):
    image = coordinate_image(shape)
    found = heatmap(image, weighted, kernel_size=32)
    grid = WindowGrid.of(shape, 32)
    np.testing.assert_allclose(found.compute(), truth(image, grid, weighted), rtol=1e-6)


def test_windows_over_the_border_see_the_background():
    image = np.zeros((30, 30, 3), np.uint8)
    found = heatmap(image, lambda w: w.mean(axis=(1, 2, 3)), kernel_size=20).compute()
    np.testing.assert_allclose(found, [[0, 127.5], [127.5, 191.25]])


def test_a_callable_gets_the_windows_as_they_are(plane):
    _, lazy = plane
    seen = []

    def model(windows):
        seen.append((windows.shape[1:], windows.dtype, windows.flags.writeable))
        assert 1 <= len(windows) <= 5
        windows[...] = 0  # may be used as scratch memory
        return torch.zeros(len(windows))

    heatmap(lazy, model, kernel_size=(16, 24), batch_size=5)
    assert set(seen) == {((16, 24, 3), np.dtype(np.uint16), True)}


def test_a_model_that_scribbles_on_overlapping_windows_harms_only_itself(plane):
    image, lazy = plane

    def model(windows):
        value = weighted(windows)
        windows[...] = 0
        return value

    found = heatmap(lazy, model, kernel_size=32, stride=16, block_windows=4)
    grid = WindowGrid.of(image.shape[:2], 32, stride=16)
    np.testing.assert_allclose(found.compute(), truth(image, grid, weighted), rtol=1e-6)


def test_batches_that_a_model_keeps_stay_what_they_were(plane):
    image, lazy = plane
    kept = []

    def model(windows):
        kept.append(windows)
        return np.zeros(len(windows))

    heatmap(lazy, model, kernel_size=32, stride=20, block_windows=2)
    first_pixels = sorted(int(w[0, 0, 0]) for batch in kept[1:] for w in batch)
    grid = WindowGrid.of(image.shape[:2], 32, stride=20)
    assert first_pixels == sorted(int(image[o][0]) for _, o in grid)


class Net(torch.nn.Module):
    def __init__(self, channels=3, k=2):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 4, 3, stride=2),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
        )
        self.head = torch.nn.Linear(4, k)
        self.seen = set()

    def forward(self, x):
        self.seen.add(
            (tuple(x.shape[1:]), x.dtype, self.training, torch.is_inference_mode_enabled())
        )
        assert x.min() >= 0
        assert x.max() <= 1
        return self.head(self.body(x).view(len(x), -1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("stride", [32, 24])
def test_a_module_gets_scaled_floats_in_evaluation_mode(dtype, stride):
    top = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(0, top + 1, (100, 130, 3)).astype(dtype)
    net = Net()
    net.train()
    net.body[1].eval()
    found = heatmap(image, net, kernel_size=32, stride=stride, batch_size=5, block_windows=3)
    assert net.seen == {((3, 32, 32), torch.float32, False, True)}
    assert net.training  # put back as it was, module by module
    assert not net.body[1].training
    assert net.body[0].training
    net.eval()

    def direct(windows):
        x = torch.from_numpy(windows.astype(np.float32) / np.float32(top)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return net(x.contiguous()).numpy()

    grid = WindowGrid.of(image.shape[:2], 32, stride=stride)
    white = 255 if dtype == np.uint8 else 0
    np.testing.assert_allclose(found.compute(), truth(image, grid, direct, white), atol=1e-6)


def test_a_module_over_an_array_without_channels():
    image = np.random.default_rng(0).random((90, 70)).astype(np.float32)
    net = Net(channels=1, k=1).eval()
    found = heatmap(image, net, kernel_size=32)
    assert found.shape == (3, 3)  # (n, 1) is one value per window
    assert {s[0] for s in net.seen} == {(1, 32, 32)}
    with torch.inference_mode():
        first = net(torch.from_numpy(image[None, None, :32, :32].copy()))
    np.testing.assert_allclose(found.compute()[0, 0], first.item(), rtol=1e-5)


def test_batch_tfms_come_before_the_model():
    image = np.full((64, 64, 3), 7, np.uint8)
    seen = []

    def tfms(x):
        seen.append((tuple(x.shape[1:]), x.dtype))
        return x.float() * 2

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=(1, 2, 3))

    assert (heatmap(image, Mean(), kernel_size=32, batch_tfms=tfms).compute() == 14).all()
    assert set(seen) == {((3, 32, 32), torch.uint8)}
    doubled = heatmap(
        image, lambda w: w.mean(axis=(1, 2, 3)), kernel_size=32, batch_tfms=lambda w: w * 2
    )
    assert (doubled.compute() == 14).all()


def test_a_module_can_be_moved():
    image = np.full((64, 64, 3), 7, np.uint8)
    net = Net()
    same = heatmap(image, net, kernel_size=32, device="cpu").compute()
    np.testing.assert_array_equal(same, heatmap(image, net, kernel_size=32).compute())
    with pytest.raises(UsageError, match="device"):
        heatmap(image, weighted, kernel_size=32, device="cpu")


def test_masks_skip_windows_and_their_pixels(plane):
    image, lazy = plane
    read = []

    def watched(block):
        read.append(block.shape)
        return block

    grid = WindowGrid.of(image.shape[:2], 20)
    mask = np.zeros((11, 17), bool)
    mask[0, 0] = True
    mask[7, 9] = True
    found = heatmap(
        lazy.map_blocks(watched, dtype=lazy.dtype, meta=np.empty((0, 0, 0), lazy.dtype)),
        weighted,
        kernel_size=20,
        mask=mask,
        block_windows=4,
    ).compute()
    expected = truth(image, grid, weighted)
    keep = np.isfinite(found)
    np.testing.assert_allclose(found[keep], expected[keep], rtol=1e-6)
    # cell (0, 0) of the mask lies over rows 0-18.5 and columns 0-19.5: one window
    assert keep[0, 0]
    assert not keep[0, 1]
    assert not keep[1, 0]
    # cell (7, 9) lies over rows 129.2-147.6 and columns 175.2-194.7
    assert keep[6:8, 8:10].all()
    assert keep.sum() == 5
    assert 0 < len(read) <= 6


def test_a_mask_of_ones_changes_nothing_and_one_of_zeros_reads_nothing(plane):
    _, lazy = plane
    plain = heatmap(lazy, weighted, kernel_size=20).compute()
    ones = heatmap(lazy, weighted, kernel_size=20, mask=np.ones((3, 4))).compute()
    np.testing.assert_array_equal(plain, ones)

    def boom(block):
        raise AssertionError("was read")

    lazy = lazy.map_blocks(boom, dtype=lazy.dtype, meta=np.empty((0, 0, 0), lazy.dtype))
    zeros = heatmap(lazy, weighted, kernel_size=20, mask=np.zeros((3, 4)))
    assert np.isnan(zeros.compute()).all()


def test_the_mask_fraction(plane):
    _, lazy = plane
    mask = np.zeros(lazy.shape[:2], bool)
    mask[:, :30] = True  # half of the second column of windows
    for fraction, columns in [(0.0, 2), (0.5, 2), (0.51, 1), (1.0, 1)]:
        found = heatmap(lazy, weighted, kernel_size=20, mask=mask, mask_fraction=fraction)
        assert np.isfinite(found.compute()).any(axis=0).sum() == columns


def test_records_and_their_resolution():
    image = coordinate_image((64, 64))
    record = Record(array=image, mpp=0.5)
    plain = heatmap(image, weighted, kernel_size=16).compute()
    np.testing.assert_array_equal(heatmap(record, weighted, kernel_size=16).compute(), plain)
    found = heatmap(record, weighted, kernel_size=16, mpp=0.5)
    np.testing.assert_array_equal(found.compute(), plain)
    view = record.view(spatial_ndim=2)
    np.testing.assert_array_equal(heatmap(view, weighted, kernel_size=16).compute(), plain)
    with pytest.raises(UsageError, match="view"):
        heatmap(view, weighted, kernel_size=16, mpp=1.0)
    with pytest.raises(ResolutionError):
        heatmap(image, weighted, kernel_size=16, level=1)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda w: w[:, :, :, None, None], "returned shape"),
        (lambda w: w[0], "returned shape"),
        (lambda w: np.zeros((len(w), 0)), "returned shape"),
        (lambda w: np.zeros(len(w) + 1), "returned shape"),
        (lambda w: {"logits": np.zeros(len(w))}, "picks the output"),
        (lambda w: np.zeros(len(w), complex), "real numbers"),
        (lambda w: ["a"] * len(w), "real numbers"),
    ],
)
def test_outputs_that_are_no_values(output, message):
    with pytest.raises(UsageError, match=message):
        heatmap(np.zeros((64, 64)), output, kernel_size=16)


def test_outputs_that_change_their_width():
    def model(windows):
        return np.zeros((len(windows), 2 if windows.any() else 3))

    with pytest.raises(StoreError, match="where its first output had"):
        heatmap(np.ones((64, 64)), model, kernel_size=16)


def test_trailing_axes_of_one_are_dropped():
    found = heatmap(np.ones((32, 32)), lambda w: np.ones((len(w), 3, 1, 1)), kernel_size=16)
    assert found.shape == (3, 2, 2)


def test_bad_arguments():
    image = np.zeros((64, 64))
    with pytest.raises(GeometryError, match="no window"):
        heatmap(image, weighted, kernel_size=65, edge="drop")
    with pytest.raises(UsageError, match="batch_size"):
        heatmap(image, weighted, kernel_size=16, batch_size=0)
    with pytest.raises(UsageError, match="callable"):
        heatmap(image, "resnet", kernel_size=16)
    with pytest.raises(UsageError, match="images are given as"):
        heatmap(3, weighted, kernel_size=16)
    with pytest.raises(UsageError, match="give one"):
        heatmap(image, weighted, kernel_size=16, stride=16, overlap=0.5)
    with pytest.raises(GeometryError, match="block_windows"):
        heatmap(image, weighted, kernel_size=16, block_windows=0)
    with pytest.raises(GeometryError, match="mask"):
        heatmap(image, weighted, kernel_size=16, mask=np.ones(3))
    with pytest.raises(GeometryError, match=r"\[0, 1\]"):
        heatmap(image, weighted, kernel_size=16, mask=np.full((3, 3), 7))


def test_a_model_that_fails_on_background_says_so():
    def model(windows):
        raise ZeroDivisionError("empty")

    with pytest.raises(ZeroDivisionError) as caught:
        heatmap(np.zeros((64, 64)), model, kernel_size=16)
    assert any("background" in note for note in caught.value.__notes__)


def test_progress_is_shown_when_asked_for(plane, capsys):
    _, lazy = plane
    heatmap(lazy, weighted, kernel_size=32, block_windows=4)
    assert capsys.readouterr().err == ""
    heatmap(lazy, weighted, kernel_size=32, block_windows=4, progress=True)
    assert "6/6" in capsys.readouterr().err


def test_the_number_of_threads_is_dasks(plane):
    import threading

    import dask

    _, lazy = plane
    names = set()

    def model(windows):
        names.add(threading.current_thread().name)
        return np.zeros(len(windows))

    with dask.config.set(num_workers=1):
        heatmap(lazy, model, kernel_size=32, block_windows=1)
    names.discard(threading.main_thread().name)  # the probe
    assert len(names) == 1
