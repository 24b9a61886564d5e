"""Focal planes and time points: ``plane=`` of `open_slide`, against tifffile and NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tifffile
import zarr

from daskdmed.errors import UsageError
from daskdmed.images.opening import open_slide
from daskdmed.images.readers import choose_planes

SAID = "reads the plane"


def whole(slide, level=0):
    return slide.read_region((0, 0), level, slide.level_dimensions[level])


def noise(*shape, dtype="uint8"):
    return np.random.default_rng(0).integers(1, 255, shape).astype(dtype)


@pytest.fixture(scope="module")
def ome(tmp_path_factory):
    """3 time points, 2 focal planes, 2 channels, 2 levels: t, z, c, y, x."""
    path = tmp_path_factory.mktemp("planes") / "stack.ome.tif"
    full = noise(3, 2, 2, 48, 64, dtype="uint16")
    with tifffile.TiffWriter(path, ome=True) as tif:
        options = {"tile": (16, 32), "photometric": "minisblack", "compression": "zlib"}
        tif.write(full, subifds=1, metadata={"axes": "TZCYX"}, **options)
        tif.write(full[..., ::2, ::2], subfiletype=1, **options)
    return path, full


def test_planes_are_named_and_each_can_be_read(ome):
    path, full = ome
    slide = open_slide(path)
    places = list(itertools.product(range(3), range(2)))
    assert slide.planes == tuple(f"z={z},t={t}" for t, z in places)
    for number, (t, z) in enumerate(places):
        for said in (number, f"z={z},t={t}", f" T={t}, z={z}"):
            one = open_slide(path, plane=said)
            assert one.plane == slide.planes[number]
            for level in range(2):
                want = tifffile.imread(path, series=0, level=level)[t, z]
                assert np.array_equal(whole(one, level), np.moveaxis(want, 0, -1))
    assert np.array_equal(full, tifffile.imread(path))


@pytest.mark.parametrize(
    ("said", "read", "tells"),
    [
        (None, "z=0,t=0", 1),
        ("t=2", "z=0,t=2", 1),
        ("z=1", "z=1,t=0", 1),
        ("z=1,t=2", "z=1,t=2", 0),
        (5, "z=1,t=2", 0),
    ],
)
def test_what_was_not_said_is_told_once(ome, caplog, said, read, tells):
    with caplog.at_level("WARNING", logger="daskdmed.images"):
        slide = open_slide(ome[0], plane=said)
        whole(slide)
        slide.view(level=1)
    assert slide.plane == read
    told = [r for r in caplog.records if r.name == "daskdmed.images" and SAID in r.getMessage()]
    assert len(told) == tells
    assert all(repr(read) in r.getMessage() for r in told)


@pytest.mark.parametrize("plane", [6, -1, "z=2", "q=0", "z", "z=1,t=", "c=0", "z=1;t=1"])
def test_planes_that_are_not_there(ome, plane):
    with pytest.raises(UsageError, match=r"has no plane=.*'z=0,t=0', 'z=1,t=0'"):
        open_slide(ome[0], plane=plane)


def test_an_image_of_one_plane(make, tmp_path):
    make.write_pyramid(tmp_path / "a.tif", (64, 64), 1, compression="deflate")
    assert open_slide(tmp_path / "a.tif", plane=0).plane == ""
    with pytest.raises(UsageError, match=r"has no plane='z=1'; there are none"):
        open_slide(tmp_path / "a.tif", plane="z=1")


def test_planes_of_hamamatsu(make, vendors, tmp_path, caplog):
    path = tmp_path / "stack.ndpi"
    planes = [make.picture(64, 128, seed=seed) for seed in range(3)]
    pages = [(p, 20.0, None, z) for p, z in zip(planes, (-1000, 0, 1000), strict=True)]
    lower = [make.picture(32, 64, seed=seed) for seed in range(3)]
    pages += [(p, 10.0, None, z) for p, z in zip(lower, (-1000, 0, 1000), strict=True)]
    vendors.write_ndpi(path, [*pages, (make.picture(50, 100, seed=9), -1.0, None)])
    slide = open_slide(path, backend="tiff")
    assert (slide.planes, slide.plane) == (("z=0", "z=1", "z=2"), "z=1")
    assert sum(SAID in r.getMessage() for r in caplog.records) == 1
    for level, images in enumerate((planes, lower)):
        for number, plane in enumerate(images):
            got = whole(open_slide(path, backend="tiff", plane=number), level).astype(int)
            assert np.abs(got - plane).mean() == min(np.abs(got - p).mean() for p in images)


def test_focal_planes_of_aperio(make, tmp_path):
    path = tmp_path / "stack.svs"
    planes = [make.picture(64, 96, seed=seed) for seed in range(2)]
    with tifffile.TiffWriter(path) as tif:
        options = {"photometric": "rgb", "compression": "deflate", "metadata": None}
        tiled = {**options, "tile": (32, 48)}
        tif.write(planes[0], description=make.APERIO, **tiled)
        tif.write(planes[0][::4, ::4], description="Aperio\r\nthumbnail", **options)
        tif.write(planes[1], description=make.APERIO, **tiled)
        for plane in planes:
            tif.write(plane[::2, ::2], description=make.APERIO, **tiled)
    assert open_slide(path).planes == ("z=0", "z=1")
    for number, plane in enumerate(planes):
        slide = open_slide(path, plane=f"z={number}")
        assert np.array_equal(whole(slide), plane)
        assert np.array_equal(whole(slide, 1), plane[::2, ::2])


@pytest.mark.parametrize("planar", [False, True])
def test_focal_planes_within_one_directory(tmp_path, planar):
    path, full = tmp_path / "a.tif", noise(3, 48, 64, 3)
    data = np.moveaxis(full, -1, 0) if planar else full
    how = {"planarconfig": "separate"} if planar else {}
    tifffile.imwrite(
        path, data, tile=(1, 16, 32), volumetric=True, photometric="rgb", compression="zlib",
        metadata=None, **how,
    )  # fmt: skip
    assert open_slide(path, backend="tiff").planes == ("z=0", "z=1", "z=2")
    for z in range(3):
        assert np.array_equal(whole(open_slide(path, backend="tiff", plane=z)), full[z])


def test_planes_of_ome_zarr(tmp_path, caplog):
    path, full = tmp_path / "a.zarr", noise(2, 3, 4, 32, 48)  # t, c, z, y, x
    group = zarr.open_group(path, mode="w", zarr_format=3)
    levels = [full, full[:, :, ::2, ::2, ::2]]
    for number, level in enumerate(levels):
        array = group.create_array(
            str(number), shape=level.shape, dtype="u1", chunks=(1, 1, 1, 8, 8)
        )
        array[...] = level
    steps = [[{"type": "scale", "scale": [1, 1, s, s, s]}] for s in (1, 2)]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [
                    {"name": "t", "type": "time"},
                    {"name": "c", "type": "channel"},
                    *({"name": n, "type": "space"} for n in "zyx"),
                ],
                "datasets": [
                    {"path": str(i), "coordinateTransformations": s} for i, s in enumerate(steps)
                ],
            }
        ],
    }
    slide = open_slide(path)
    assert slide.planes == tuple(f"z={z},t={t}" for t in range(2) for z in range(4))
    assert sum(SAID in r.getMessage() for r in caplog.records) == 1
    assert np.array_equal(whole(slide), np.moveaxis(full[0, :, 0], 0, -1))
    for t, z in itertools.product(range(2), range(4)):
        one = open_slide(path, plane=f"t={t},z={z}")
        assert np.array_equal(whole(one), np.moveaxis(full[t, :, z], 0, -1))
        # of a level with half the planes the one that lies there
        assert np.array_equal(whole(one, 1), np.moveaxis(levels[1][t, :, z // 2], 0, -1))


def test_a_choice_along_axes_with_a_usual_place():
    found = choose_planes("a", "t=1", {"t": 2, "z": 3, "r": 1}, {"z": 2})
    assert found.at == {"t": 1, "z": 2, "r": 0}
    assert (found.name, len(found.names)) == ("z=2,t=1", 6)
