"""`TissueMask` as a value: shares against brute force, packing, files."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import Region, TissueMask
from daskdmed.errors import CorruptImageError, GeometryError, ImageNotFoundError, StoreError

RNG = np.random.default_rng(0)


def brute_force(mask: TissueMask, region: Region) -> float:
    """Every level-0 pixel cut into as many parts as the mask has pixels: no rounding."""
    fine = mask.data
    for axis, (n, extent) in enumerate(zip(mask.shape, mask.shape0)):
        # position in units of 1 / n of a level-0 pixel
        fine = fine.take(np.arange(extent * n) // extent, axis=axis)
    inside = tuple(
        slice(max(0, o) * n, max(0, min(e, o + s)) * n)
        for o, s, n, e in zip(region.origin, region.shape, mask.shape, mask.shape0)
    )
    part = fine[inside]
    return float(part.mean()) if part.size else 0.0


@st.composite
def masks_and_regions(draw):
    axes = draw(st.integers(1, 3))
    most = {1: 12, 2: 6, 3: 4}[axes]
    shape = tuple(draw(st.integers(1, most)) for _ in range(axes))
    shape0 = tuple(draw(st.integers(n, 3 * most)) for n in shape)
    bits = draw(st.integers(0, 2 ** int(np.prod(shape)) - 1))
    data = np.array([(bits >> i) & 1 for i in range(int(np.prod(shape)))], bool).reshape(shape)
    origin = tuple(draw(st.integers(-4, e + 2)) for e in shape0)
    size = tuple(draw(st.integers(0, e + 4)) for e in shape0)
    return TissueMask(data, shape0=shape0), Region(origin, size)


@given(masks_and_regions())
@settings(max_examples=150)
def test_share_of_a_region_is_exact(case):
    mask, region = case
    expected = brute_force(mask, region)
    assert mask.fraction_of(region) == pytest.approx(expected, abs=1e-12)
    many = mask.fractions([region.origin, region.origin], region.shape)
    assert many == pytest.approx([expected] * 2, abs=1e-9)


def test_numbers():
    data = np.zeros((10, 20), bool)
    data[2:4, 5:9] = True
    mask = TissueMask(data, scale=(16, 16), mpp=(0.5, 0.25))
    assert mask.shape0 == (160, 320)
    assert mask.scale == (16.0, 16.0)
    assert mask.fraction == 8 / 200
    assert mask.area == 8 * 256
    assert mask.area_um2 == 8 * 256 * 0.125
    assert mask.bounds == Region((32, 80), (32, 64))
    assert mask.fraction_of(Region((32, 80), (32, 64))) == 1
    assert mask.fraction_of(Region((24, 80), (16, 64))) == 0.5
    assert not mask.empty
    nothing = TissueMask(np.zeros((3, 3)), shape0=(30, 31))
    assert nothing.empty
    assert nothing.bounds is None
    assert nothing.area_um2 is None
    assert nothing.fraction_of(Region((0, 0), (30, 31))) == 0


def test_it_is_a_frozen_value_equal_by_content():
    data = RNG.random((30, 41)) < 0.4
    mask = TissueMask(data, shape0=(300, 410), method="one")
    same = TissueMask(data.astype(int) * 7, scale=(10, 10), method="two", picture=b"x")
    assert mask == same
    assert hash(mask) == hash(same)
    assert tokenize(mask) == tokenize(same)
    assert mask != TissueMask(~data, shape0=(300, 410))
    assert mask != TissueMask(data, shape0=(300, 411))
    assert mask != TissueMask(data, shape0=(300, 410), mpp=(0.5, 0.5))
    assert mask != "mask"
    data[:] = False
    assert mask == same, "it is a copy"
    assert mask.data.dtype == bool
    with pytest.raises(ValueError, match="read-only"):
        mask.data[0, 0] = True
    with pytest.raises(AttributeError, match="cannot be changed"):
        mask.method = "three"
    assert np.array_equal(np.asarray(mask), mask.data)
    assert np.asarray(mask, dtype=np.uint8).dtype == np.uint8


def test_it_is_small_in_memory_and_on_the_wire():
    yy, xx = np.ogrid[:2000, :1600]
    data = (yy - 1000) ** 2 + (xx - 800) ** 2 < 600**2
    mask = TissueMask(data, scale=(25, 25))
    wire = pickle.dumps(mask)
    assert len(wire) < 20_000, "3.2 MB as it is"
    again = pickle.loads(wire)
    assert again == mask
    assert np.array_equal(again.data, data)
    assert (again.method, again.scale, again.shape0) == (mask.method, mask.scale, mask.shape0)
    first = mask.data
    assert mask.data is first, "unpacked once while somebody holds it"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "scale= or shape0="),
        ({"scale": (2,)}, "scale must be 2 positive numbers"),
        ({"shape0": (0, 5)}, "shape0 must be 2 positive numbers"),
        ({"scale": (2, 2), "shape0": (8, 20)}, "does not give"),
    ],
)
def test_contradictions(arguments, words):
    with pytest.raises(GeometryError, match=words):
        TissueMask(np.ones((4, 4)), **arguments)


def test_no_pixels_and_wrong_axes():
    with pytest.raises(GeometryError, match="no pixels"):
        TissueMask(np.ones((0, 4)), scale=(1, 1))
    mask = TissueMask(np.ones((4, 4)), scale=(1, 1))
    with pytest.raises(GeometryError, match="3 axes"):
        mask.fraction_of(Region((0, 0, 0), (1, 1, 1)))
    with pytest.raises(GeometryError, match="origins"):
        mask.fractions([1, 2], (2, 2))
    with pytest.raises(GeometryError, match="axes"):
        mask.fractions([[1, 2]], (2, 2, 2))


def test_files(tmp_path):
    data = RNG.random((7, 30, 41)) < 0.4
    mask = TissueMask(data, scale=(1, 2, 3), method="mine", picture=b"abc")
    path = tmp_path / "deep" / "mask.npz"
    mask.save(path)
    again = TissueMask.load(path)
    assert again == mask
    assert (again.method, again.picture, again.mpp) == ("mine", b"abc", None)
    flat = TissueMask(data[0], scale=(2, 2), mpp=(0.5, 0.25))
    flat.save(path)
    assert TissueMask.load(path).mpp == (0.5, 0.25)
    assert [p.name for p in path.parent.iterdir()] == ["mask.npz"], "nothing half-written stays"
    with pytest.raises(StoreError, match="cannot be written"):
        mask.save(path / "below" / "a-file.npz")


def test_damaged_files(tmp_path):
    path = tmp_path / "mask.npz"
    with pytest.raises(ImageNotFoundError, match="no such tissue mask"):
        TissueMask.load(path)
    TissueMask(np.ones((50, 50)), scale=(4, 4)).save(path)
    whole = path.read_bytes()
    damaged = [b"", b"nonsense", whole[: len(whole) // 2], whole[:60] + b"\0" * 40 + whole[100:]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CorruptImageError, match="mask.npz"):
            TissueMask.load(path)
    np.savez(path, packed=np.zeros(3, np.uint8), shape=[10**6, 10**6], shape0=[1, 1])
    with pytest.raises(CorruptImageError, match="3 bytes of pixels"):
        TissueMask.load(path)
    np.savez(path, packed=np.array([{}], dtype=object), shape=[1, 1])
    with pytest.raises(CorruptImageError, match="allow_pickle"):
        TissueMask.load(path)
    np.savez(path, packed=np.zeros(1, np.uint8), shape=[2, 2], shape0=[2.0**70, 4], mpp=())
    with pytest.raises(CorruptImageError, match="mask.npz"):
        TissueMask.load(path)
    np.savez(path, packed=np.zeros(1, np.uint8), shape=[2, 2], shape0=["a", "b"], mpp=())
    with pytest.raises(CorruptImageError, match="mask.npz"):
        TissueMask.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        text = b"{'descr': '<i8', 'fortran_order': False, 'shape': (".ljust(117) + b"\n"
        head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
        archive.writestr("shape.npy", head + text)
    with pytest.raises(CorruptImageError, match=r"mask.npz.*TokenError|SyntaxError"):
        TissueMask.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("packed.npy", bytes(2**27))
    with pytest.raises(CorruptImageError, match="134217728 bytes"):
        TissueMask.load(path)


def test_shown():
    mask = TissueMask(np.eye(30) > 0, scale=(4, 4), mpp=(0.5, 0.5), method="<eye>")
    assert "3.3% tissue" in repr(mask)
    shown = mask._repr_html_()
    assert "data:image/png;base64" in shown
    assert "3.3%, 0.00012 mm" in shown
    assert "&lt;eye&gt;" in shown
    assert "none" in TissueMask(np.zeros((5, 6, 7)), scale=(1, 1, 1))._repr_html_()
    assert "100.0%" in TissueMask(np.ones(9), scale=(1,))._repr_html_()
