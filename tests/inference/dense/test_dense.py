"""The exact dense mode: one run over the whole image, or window by window, piece by piece."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from daskdmed import heatmap, predict
from daskdmed.errors import GeometryError, StoreError, UsageError
from daskdmed.inference.dense import mosaic
from daskdmed.inference.dense.convolutional import halo_of, padded_axis, valid_axis


class UNet(nn.Module):
    """Two poolings, taken back: shifts by 4 pixels commute with it, others do not."""

    def __init__(self, ndim=2, channels=3):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        self.pool = {2: F.max_pool2d, 3: F.max_pool3d}[ndim]
        self.a = conv(channels, 4, 3, padding=1)
        self.b = conv(4, 4, 3, padding=1)
        self.c = conv(4, 4, 3, padding=1)
        self.d = conv(8, 2, 3, padding=1)

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(self.pool(a, 2)))
        c = torch.relu(self.c(self.pool(b, 2)))
        up = F.interpolate(b + F.interpolate(c, scale_factor=2), scale_factor=2)
        return self.d(torch.cat([a, up], 1))


#: what one output of `UNet` may depend on, at most
UNET = {"receptive_field": 30, "output_stride": 4}


def strided():
    """One output per 4 pixels, padded; depends on 11 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 5, 2, padding=2)
    )


def valid():
    """A classifier of 28-pixel windows as a network without padding: 8 + 5 * 4 = 28."""
    return nn.Sequential(nn.Conv2d(3, 8, 8, stride=4), nn.ReLU(), nn.Conv2d(8, 3, 6))


def whole(net, image, stride):
    """The network run once over the image, filled up with white to whole strides."""
    ndim = image.ndim - 1
    pad = [(0, -n % stride) for n in image.shape[:ndim]]
    filled = np.pad(image, [*pad, (0, 0)], constant_values=255 if image.shape[-1] == 3 else 0)
    x = np.moveaxis(filled, -1, 0)[None].astype(np.float32)
    if image.dtype == np.uint8:
        x = x / np.float32(255)
    with torch.no_grad():
        return net(torch.from_numpy(x))[0].numpy()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["one band", "many bands"])
def bands(request, monkeypatch):
    if request.param == "many bands":
        monkeypatch.setattr(mosaic, "_SWEEP_BYTES", 1)


def picture(shape=(171, 230, 3)):
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


@pytest.mark.parametrize("kernel", [80, (96, 128), 400])
@pytest.mark.parametrize("shape", [(171, 230, 3), (80, 64, 3), (9, 200, 3)])
def test_a_padded_network_as_run_over_the_whole_image(shape, kernel, bands):
    image, net = picture(shape), UNet().eval()
    found = predict(image, net, kernel_size=kernel, chunks=50, **UNET)
    wanted = whole(net, image, 4)[:, : shape[0], : shape[1]]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.compute(), wanted, rtol=1e-4, atol=1e-6)


def test_a_padded_network_with_strides(bands):
    image, net = picture(), strided()
    found = predict(image, net, kernel_size=64, chunks=11, receptive_field=11, output_stride=4)
    wanted = whole(net, image, 4)
    assert found.shape == wanted.shape == (2, 43, 58)
    np.testing.assert_allclose(found.compute(), wanted, rtol=1e-4, atol=1e-6)


def test_a_volume():
    image = np.random.default_rng(0).standard_normal((50, 47, 60, 1)).astype(np.float32)
    net = UNet(3, 1).eval()
    found = predict(image, net, kernel_size=(48, 44, 56), chunks=20, post="argmax", **UNET)
    wanted = whole(net, image, 4)[:, :50, :47, :60].argmax(0)
    # equal but for ties within rounding
    assert (found.compute() != wanted).mean() < 1e-4


@pytest.mark.parametrize("kernel", [28, 31, 60, 500])
@pytest.mark.parametrize("shape", [(171, 230, 3), (28, 29, 3), (20, 100, 3)])
def test_a_valid_network_as_its_windows(shape, kernel, bands, tmp_path):
    image, net = picture(shape), valid()
    windowed = heatmap(image, net, kernel_size=28, stride=4, out=tmp_path / "windows.zarr")
    found = predict(
        image,
        net,
        kernel_size=kernel,
        receptive_field=28,
        output_stride=4,
        chunks=13,
        out=tmp_path / "dense.zarr",
    )
    assert found.shape == windowed.shape
    np.testing.assert_allclose(found.compute(), windowed.compute(), rtol=1e-4, atol=1e-6)
    # and it lies at the same place
    places = [
        zarr.open_group(tmp_path / name, mode="r").attrs["ome"]["multiscales"]
        for name in ("windows.zarr", "dense.zarr")
    ]
    assert places[0][0]["datasets"] == places[1][0]["datasets"]


def test_a_callable_may_be_convolutional_too():
    image = picture()

    def blur(windows):
        return sum(np.roll(1.0 * windows, i, 2) for i in (-1, 0, 1))[:, :, 1:-1] / 3.0

    found = predict(
        image, blur, kernel_size=50, receptive_field=(1, 3), output_stride=1, chunks=40
    ).compute()
    wanted = np.moveaxis((0.0 + image[:, :-2] + image[:, 1:-1] + image[:, 2:]) / 3, -1, 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_work_saved():
    """Stride far below the kernel: each pixel is seen about once, and once more in the trial."""
    image, net = picture((400, 400, 3)), valid()
    pixels = {"dense": 0, "windows": 0}

    def count(name):
        def model(windows):
            pixels[name] += windows[..., 0].size
            x = torch.from_numpy(windows.astype(np.float32)).movedim(-1, 1)
            values = net(x).detach().numpy()
            return values if name == "dense" else values[..., 0, 0]

        return model

    found = predict(image, count("dense"), kernel_size=400, receptive_field=28, output_stride=4)
    wanted = heatmap(image, count("windows"), kernel_size=28, stride=4)
    np.testing.assert_allclose(found.compute(), wanted.compute(), rtol=1e-3, atol=1e-3)
    assert pixels["windows"] > 18 * pixels["dense"]


def test_a_mask_and_a_resumed_run(tmp_path):
    image, net = picture(), UNet().eval()
    mask = np.zeros((17, 23), bool)
    mask[3:6, 4:20] = True
    settings = {"kernel_size": 80, "chunks": 50, **UNET}
    expected = predict(image, net, **settings).compute()
    found = predict(image, net, mask=mask, out=tmp_path / "x.zarr", **settings).compute()
    inside = np.isfinite(found[0])
    assert 0.05 < inside.mean() < 0.2
    np.testing.assert_allclose(found[:, inside], expected[:, inside], rtol=1e-4, atol=1e-6)
    again = predict(image, net, mask=mask, out=tmp_path / "x.zarr", resume=True, **settings)
    np.testing.assert_array_equal(again.compute(), found)
    with pytest.raises(StoreError, match="receptive_field"):
        predict(
            image, net, mask=mask, out=tmp_path / "x.zarr", resume=True,
            **{**settings, "receptive_field": 34},
        )  # fmt: skip


# ------------------------------------------------------------------ wrong declarations
@pytest.mark.parametrize("field", [1, 3, 7, (30, 9)])
def test_a_receptive_field_that_is_too_small(field):
    with pytest.raises(UsageError, match=r"receptive_field.*too small.*declare about"):
        predict(picture(), UNet().eval(), kernel_size=80, receptive_field=field, output_stride=4)


def test_how_far_it_reaches_is_told():
    net = nn.Conv2d(3, 2, 9, padding=4)
    with pytest.raises(UsageError, match=r"3 pixels farther to a side.*\(9, 9\)"):
        predict(picture(), net, kernel_size=80, receptive_field=3, output_stride=1)
    predict(picture(), net, kernel_size=80, receptive_field=9, output_stride=1)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_an_output_stride_that_is_too_small(stride):
    with pytest.raises(UsageError, match=r"declare the product of all strides"):
        predict(picture(), UNet().eval(), kernel_size=80, receptive_field=30, output_stride=stride)


@pytest.mark.parametrize(("field", "stride"), [(24, 4), (32, 4), (28, 8), (28, 2)])
def test_a_valid_network_declared_wrongly(field, stride):
    with pytest.raises(UsageError, match=r"returned shape .*receptive_field=|too small|wrong"):
        predict(picture(), valid(), kernel_size=90, receptive_field=field, output_stride=stride)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4)),
    ],
)
def test_networks_that_see_everything(net):
    with pytest.raises(UsageError, match="no exact dense mode"):
        predict(picture(), net, kernel_size=80, receptive_field=3, output_stride=1)


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"receptive_field": 0, "output_stride": 4}, GeometryError, "at least 1"),
        ({"receptive_field": 30, "output_stride": 0}, GeometryError, "at least 1"),
        ({"receptive_field": 30, "output_stride": 4, "kernel_size": 30}, GeometryError, "halos"),
        ({"receptive_field": (30,), "output_stride": 4}, GeometryError, "2 spatial axes"),
    ],
)
def test_declarations_that_do_not_fit(keywords, error, match):
    with pytest.raises(error, match=match):
        predict(picture(), UNet().eval(), **{"kernel_size": 80, **keywords})


def test_a_piece_smaller_than_the_receptive_field():
    with pytest.raises(GeometryError, match="smaller than the receptive field"):
        predict(picture(), valid(), kernel_size=20, receptive_field=28, output_stride=4)


# ------------------------------------------------------------------ geometry
@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 6), st.integers(0, 8), st.data())
def test_pieces_of_padded_networks(size, kernel, stride, halos, data):
    unit = data.draw(st.sampled_from([u for u in range(1, stride + 1) if stride % u == 0]))
    halo = halos * stride
    try:
        axis = padded_axis(size, kernel, stride, halo, unit)
    except GeometryError:
        assert kernel // stride * stride - 2 * halo < stride
        return
    frame = -(-size // stride) * stride
    assert axis.starts == (0, *axis.stops[:-1])
    assert axis.stops[-1] == axis.cells == -(-size // unit)
    for origin, a, b, first in zip(axis.origins, axis.starts, axis.stops, axis.offsets):
        assert origin % stride == 0
        assert origin >= 0
        assert origin + axis.kernel_size <= frame
        assert a <= b
        assert first == a - origin // unit
        # far from the piece's borders, unless these are the image's
        assert origin == 0 or a * unit - origin >= halo
        assert origin + axis.kernel_size == frame or (origin + axis.kernel_size - b * unit >= halo)


@given(st.integers(1, 300), st.integers(0, 100), st.integers(1, 9), st.integers(1, 40))
def test_pieces_of_valid_networks(size, more, stride, field):
    axis = valid_axis(size, field + more, stride, field)
    assert axis.starts == (0, *axis.stops[:-1])
    assert axis.stops[-1] == axis.cells
    assert axis.kernel_size <= max(field + more, field)
    for origin, a, b, first in zip(axis.origins, axis.starts, axis.stops, axis.offsets):
        assert origin == (a - first) * stride
        assert a < b
        assert (b - 1) * stride + field <= origin + axis.kernel_size


def test_halos():
    assert halo_of((1, 3, 4, 9), (1, 1, 1, 1)) == (0, 1, 2, 4)
    assert halo_of((7, 30), (4, 4)) == (8, 20)


def test_lazy_arrays_are_read_piece_by_piece():
    image = da.random.default_rng(0).random((300, 300, 3), chunks=64).astype(np.float32)
    net = nn.Conv2d(3, 1, 3, padding=1)
    found = predict(image, net, kernel_size=100, receptive_field=3, output_stride=1, chunks=70)
    with torch.no_grad():
        wanted = net(torch.from_numpy(image.compute()).movedim(-1, 0)[None])[0, 0].numpy()
    np.testing.assert_allclose(found.compute()[1:-1, 1:-1], wanted[1:-1, 1:-1], 1e-4, 1e-6)
