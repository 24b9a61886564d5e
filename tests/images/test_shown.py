"""What slides, volumes and views look like in a notebook, and what their pictures cost."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import tifffile

from daskdmed import Record, Space, open_slide, open_volume
from daskdmed.core.region import Region
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.shown import (
    Plane,
    cost,
    data_uri,
    shrunk,
    slide_plane,
    upright,
    view_plane,
)
from tests.shown import pictures

NOISE = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """Levels of 1024 and 16 pixels, and none between them."""
    path = tmp_path_factory.mktemp("shown") / "pyramid.tif"
    large = np.tile(NOISE[:64, :64], (16, 16, 1))
    with tifffile.TiffWriter(path) as file:
        how = {"tile": (64, 64), "photometric": "rgb"}
        file.write(large, subifds=0, **how)
        file.write(large[::64, ::64], subfiletype=1, **how)
    return path


def test_pictures_are_exact_until_they_are_too_large():
    page = f'<img src="{data_uri(NOISE)}"><img src="{data_uri(NOISE, 4000)}">'
    exact, like = pictures(page)
    assert np.array_equal(exact, NOISE)
    assert like.shape == NOISE.shape
    assert len(data_uri(NOISE, 4000)) < 4000 * 4 / 3 + 40
    grey = np.repeat(NOISE[..., :1], 3, axis=2)
    assert np.array_equal(pictures(f'src="{data_uri(grey)}"')[0], NOISE[..., 0])
    clear = np.dstack([NOISE, NOISE[..., :1]])
    assert np.array_equal(pictures(f'src="{data_uri(clear)}"')[0], clear)


def test_shrunk_is_a_mean_or_one_of_each():
    small = shrunk(NOISE, 20)
    assert small.shape == (16, 20, 3)
    blocks = NOISE.reshape(16, 4, 20, 4, 3).mean((1, 3))
    assert np.array_equal(small, blocks.astype(np.uint8))
    assert np.array_equal(shrunk(NOISE, 20, labels=True), NOISE[::4, ::4])
    assert shrunk(NOISE, 80) is NOISE
    assert shrunk(NOISE[:2], 20).shape == (1, 20, 3)


def test_no_level_is_decoded_that_is_too_large(pyramid):
    slide = open_slide(pyramid)
    assert slide.level_count == 2
    fine = slide_plane(slide, 192, most=2**24)
    assert fine.pixels.shape == (192, 192, 3)
    coarse = slide_plane(slide, 192, most=2**16)
    assert np.array_equal(coarse.pixels, slide.view(level=1).read(Region.of((16, 16))))
    none = slide_plane(slide, 192, most=100)
    assert none.pixels is None
    assert none.extent == coarse.extent == (1024, 1024)
    view = slide.view(level=0)
    assert view_plane(view, 64, most=2**20).pixels is None
    assert view_plane(view, 64, most=2**22).pixels.shape == (64, 64, 3)


def test_what_a_region_costs(pyramid, tmp_path):
    view = open_slide(pyramid).view(level=0)
    assert cost(view, Region((0, 0), (64, 64))) == 64 * 64 * 3
    assert cost(view, Region((1, 1), (64, 64))) == 128 * 128 * 3
    assert cost(open_slide(pyramid).view(mpp=None), Region((0, 0), (1, 1))) == 64 * 64 * 3
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 7, 8), np.int16), np.eye(4)), path)
    stream = open_volume(path).view()
    assert cost(stream, Region((0, 0, 0), (1, 1, 1))) == 6 * 7 * 8


def test_arrays_are_shown_where_they_lie_in_memory():
    inside = ArrayView(da.from_array(NOISE, chunks=32), 2)
    assert np.array_equal(view_plane(inside, 80).pixels, NOISE)
    assert np.array_equal(view_plane(inside, 40).pixels, NOISE[::2, ::2])
    computed = ArrayView(da.from_array(NOISE, chunks=32) + 1, 2)
    assert view_plane(computed, 80).pixels is None
    assert "png" not in computed._repr_html_()
    assert "64 x 80 x 3" in computed._repr_html_()


@pytest.mark.parametrize("codes", ["SAR", "SPL", "IPL", "RSA", "LSP", "ASR", "SRA"])
def test_volumes_lie_as_people_look_at_them(codes):
    """The pixel that is shown in the upper left corner is the furthest up and left."""
    space = Space(np.eye(4)[:, [2, 1, 0, 3]], (3, 4, 5)).reorient(codes)
    plane = upright(space, (4, 5))
    up, left = plane.words.split()[0], plane.words.split()[3]
    rows, columns = (-1 if mirrored else 0 for mirrored in plane.mirrored)
    corner = space.to_world((0, rows % space.shape[1], columns % space.shape[2]))
    others = space.to_world([(0, y, x) for y in (0, 1) for x in (0, 1)])
    for letter in (up, left):
        axis = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        sign = 1 if letter in "RAS" else -1
        assert (corner[axis] * sign >= others[:, axis] * sign).all()
    assert up in "SAR" or left in "RA", "the convention of radiologists"


def test_pixels_have_their_shape():
    space = Space(np.diag([5.0, 3.0, 1.0, 1.0]), (4, 10, 20))
    plane = upright(space, (10, 20))
    assert plane.aspect == 3
    assert plane.size(60) == (40, 60)
    assert Plane(None, (10, 20)).size(60) == (60, 30)


def test_a_view_and_a_space_in_a_notebook(pyramid):
    view = open_slide(pyramid).with_mpp(0.5).view(mpp=8)
    page = view._repr_html_()
    assert "8 x 8" in page
    assert len(pictures(page)) == 1
    # rules of a page for its own pictures do not move it below what is drawn over it
    assert "padding:0;max-width:none" in page
    assert repr(view).startswith(f"<SlideView of {pyramid}: shape=(64, 64, 3)")
    space = Space(np.diag([2.0, 1.0, 0.5, 1.0]), (12, 16, 18))
    shown = space._repr_html_()
    assert "12 x 16 x 18" in shown
    assert "22, 15, 8.5" in shown
    turned = Record(array=np.zeros(space.shape, "i2"), space=space).view(orientation="RAS")
    assert repr(turned) == (
        "<VolumeView of array of shape (12, 16, 18): shape=(18, 16, 12), dtype=int16>"
    )


def test_a_file_that_went_away_has_its_table(tmp_path):
    path = tmp_path / "<gone>.tif"
    tifffile.imwrite(path, NOISE, tile=(16, 16), photometric="rgb")
    slide = open_slide(path)
    slide.close()
    path.unlink()
    page = slide._repr_html_()
    assert "&lt;gone&gt;.tif" in page
    assert "<table>" in page
    assert not pictures(page)
    assert "type" in slide.view()._repr_html_()
