"""What a batch looks like in a notebook."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from daskdmed import BigChunk, LightDL, Patient, Record, Space
from daskdmed.images.ngff.metadata import PALETTE, rgb
from daskdmed.loading.chunks import Provenance, SmallChunks
from daskdmed.loading.html import SHOWN
from daskdmed.loading.torchbridge import transform_batch
from tests.loading.conftest import coordinate_dataset
from tests.shown import pictures

SMOOTH = np.indices((16, 20)).sum(0)[..., None] * np.array([1, 5, 6]) % 251


def batch(data, patients=None, *, origins=None, targets=None, space=None, downsample=2.0):
    """Small chunks of a batch as a loader makes them."""
    axes = 2 if space is None else 3
    data = np.asarray(data)
    patients = patients or [patient("p")]
    patients = [patients[i % len(patients)] for i in range(len(data))]
    origins = np.zeros((len(data), axes), int) if origins is None else np.array(origins)
    big = [
        BigChunk(
            None, (0,) * axes, (30,) * axes, p.key, "wsi", 3, (downsample,) * axes, 1, None, space
        )
        for p in patients
    ]
    sources = [Provenance(p, (b,)) for p, b in zip(patients, big, strict=True)]
    zeros = np.zeros(len(data), int)
    return SmallChunks(data, sources, zeros, origins, zeros, targets)


def patient(key, record=None, **labels):
    record = record or Record(array=np.zeros((120, 90, 3), np.uint8))
    return Patient(key, {"wsi": record}, labels)


def smooth(n=3):
    return np.stack([(SMOOTH + 7 * i) % 256 for i in range(n)]).astype(np.uint8)


def boxes(page):
    """(x, y, width, height) of every box."""
    found = re.findall(r'<rect x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)">', page)
    return [tuple(float(v) for v in box) for box in found]


# -- the pictures --------------------------------------------------------------------------
def test_every_small_chunk_is_there_pixel_by_pixel():
    data = smooth()
    shown = pictures(batch(data)._repr_html_())
    assert len(shown) == 4, "three small chunks and their image"
    for chunk, picture in zip(data, shown[:3], strict=True):
        assert np.array_equal(picture, chunk)
    one, whole = pictures(batch(data)[1]._repr_html_())
    assert np.array_equal(one, data[1])
    assert not whole.any()


def test_large_ones_are_averaged():
    data = np.random.default_rng(0).integers(0, 256, (1, 168, 168, 3), np.uint8)
    (shown, _) = pictures(batch(data)._repr_html_())
    means = data[0].reshape(84, 2, 84, 2, 3).mean((1, 3))
    # noise does not compress: as a JPEG, which keeps what is there on the whole
    assert shown.shape == (84, 84, 3)
    assert np.abs(shown - means).mean() < 30
    flat = np.broadcast_to(np.array([9, 99, 200], np.uint8), data.shape)
    assert np.array_equal(pictures(batch(flat)._repr_html_())[0], flat[0, :84, :84])


@pytest.mark.parametrize(
    "data",
    [
        np.linspace(-1, 1, 2 * 16 * 16, dtype="f4").reshape(2, 16, 16),
        np.linspace(0, 60000, 2 * 16 * 16 * 5).reshape(2, 16, 16, 5).astype("u2"),
        np.full((2, 16, 16, 1), np.nan, "f8"),
        np.arange(2 * 16 * 16).reshape(2, 16, 16) % 3 == 0,
        np.arange(2 * 16 * 16 * 40).reshape(2, 16, 16, 40).astype("i4"),
        np.full((2, 16, 16), 2**64 - 1, "u8"),
    ],
    ids=["float", "uint16 x 5", "nan", "bool", "int32 x 40", "uint64"],
)
def test_any_type_and_any_number_of_channels(data):
    shown = pictures(batch(data)._repr_html_())
    assert [p.shape[:2] for p in shown[:2]] == [(16, 16), (16, 16)]
    assert len(shown) == 3


def test_of_one_pixel():
    one, _ = pictures(batch(np.full((1, 1, 1, 3), 9, np.uint8))._repr_html_())
    assert (one == 9).all()


def test_all_of_a_batch_are_brightened_alike():
    data = np.stack([np.full((8, 8), 100, "u2"), np.full((8, 8), 300, "u2")])
    dark, bright, _ = pictures(batch(data)._repr_html_())
    assert dark.max() == 0
    assert bright.min() >= 254


# -- targets -------------------------------------------------------------------------------
def overlay_of(picture, mask):
    """As the page has it, pixel by pixel."""
    wanted = picture.astype(float)
    padded = np.pad(mask, 1, mode="edge")
    for y, x in np.ndindex(mask.shape):
        if mask[y, x]:
            near = padded[y, x + 1], padded[y + 2, x + 1], padded[y + 1, x], padded[y + 1, x + 2]
            share = 0.4 if set(near) == {mask[y, x]} else 1.0
            colour = np.array(rgb(PALETTE[mask[y, x] - 1]), float)
            wanted[y, x] = wanted[y, x] * (1 - share) + colour * share
    return np.rint(wanted)


def test_a_mask_lies_over_its_small_chunk():
    data = smooth(2)
    mask = np.zeros((2, 16, 20), np.uint8)
    mask[0, 3:9, 4:12] = 1
    mask[0, 5:14, 10:18] = 2
    shown = pictures(batch(data, targets=mask)._repr_html_())
    assert np.array_equal(shown[0], overlay_of(data[0], mask[0]))
    assert np.array_equal(shown[1], data[1])
    one = pictures(batch(data, targets=mask)[0]._repr_html_())
    assert np.array_equal(one[0], shown[0])
    # floats that are whole numbers; one channel per class, of an array and of a tensor
    hot = np.stack([mask == 1, mask == 2], -1)
    tensor = torch.from_numpy(hot).movedim(-1, 1)
    for other in (mask.astype("f4"), mask[..., None], hot.astype("f4"), tensor):
        same = pictures(batch(data, targets=other)._repr_html_())
        assert np.array_equal(same[0], shown[0])


def test_a_coarse_mask_is_stretched():
    mask = np.zeros((1, 8, 10), bool)
    mask[0, 2:5, 3:7] = True
    shown = pictures(batch(smooth(1), targets=mask)._repr_html_())[0]
    fine = mask[0].repeat(2, 0).repeat(2, 1).astype(int)
    assert np.array_equal(shown, overlay_of(smooth(1)[0], fine))


def test_what_is_no_mask_is_shown_below():
    values = np.linspace(0, 1, 2 * 16 * 20).reshape(2, 16, 20)
    shown = pictures(batch(smooth(2), targets=values)._repr_html_())
    assert len(shown) == 2 * 2 + 1
    assert np.array_equal(shown[0], smooth(2)[0])
    assert shown[1].max() == 255


def test_a_target_that_a_transform_moved_does_not_lie_on_the_picture():
    chunks = batch(smooth(2), targets=np.ones((2, 16, 20), np.uint8))

    def flip(x, smallchunks):
        return x, smallchunks.targets[:, ::-1]

    def keep(x, smallchunks):
        return x, smallchunks.targets

    for transform in (keep, flip):
        transform.needs_smallchunks = True
        transform_batch(chunks.data, transform, chunks)
        shown = pictures(chunks._repr_html_())
        moved = transform is flip
        assert len(shown) == (5 if moved else 3)
        assert np.array_equal(shown[0], smooth(2)[0]) == moved


def test_numbers_are_captions():
    page = batch(smooth(1), [patient("p", grade=3, site="A")], targets=np.array([0.25]))
    page = page._repr_html_()
    assert "grade: 3, site: A, target 0.25" in page
    page = batch(smooth(1), targets=np.array(["<benign>"]))._repr_html_()
    assert "&lt;benign&gt;" in page


# -- where they came from ------------------------------------------------------------------
def test_boxes_lie_where_the_small_chunks_do():
    page = batch(smooth(2), origins=[(10, 20), (44, 25)])._repr_html_()
    assert 'viewBox="0 0 90 120"' in page
    assert boxes(page) == [(40, 20, 40, 32), (50, 88, 40, 32)], "x, y in level-0 pixels"
    assert "0: p / wsi at (40, 20), level 1, visit 3, draw 0" in page


def test_each_image_has_its_small_chunks():
    people = [patient("a"), patient("b")]
    page = batch(smooth(3), people, origins=[(0, 0), (1, 1), (2, 2)])._repr_html_()
    of_a, of_b = (part.split("</svg>")[0] for part in page.split("<svg")[1:])
    assert len(boxes(of_a)) == 2
    assert len(boxes(of_b)) == 1


def test_a_file_that_is_gone_is_a_word(tmp_path):
    gone = Record(tmp_path / "<script>gone.svs")
    page = batch(smooth(2), [patient("p", gone)])._repr_html_()
    assert "there is no such file" in page
    assert "its size is not known here" in page
    assert len(pictures(page)) == 2
    assert 'viewBox="0 0 60 60"' in page, "as far as its big chunk is known"


def test_middle_slices_of_volumes_lie_as_people_look_at_them():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])[:, [2, 1, 0, 3]]  # z to S, y to A, x to R
    space = Space(affine, (8, 12, 10))
    volume = np.arange(8 * 12 * 10, dtype="u1").reshape(8, 12, 10)
    owner = Patient("v", {"wsi": Record(array=volume, space=space)})
    crop = volume[2:6, 1:9, 2:9]
    chunks = batch([crop], [owner], origins=[(2, 1, 2)], space=space, downsample=1.0)
    page = chunks._repr_html_()
    small, whole = pictures(page)
    low, high = crop[2].min(), crop[2].max()
    assert np.array_equal(small, (crop[2] - low) * (255 / (high - low)) // 1)
    assert whole.shape == (12, 10)
    assert page.count("transform:scale(-1,-1)") == 2, "A is up, R is left"
    assert "A is up, R is left" in page
    assert boxes(page) == [(2, 1, 7, 8)]
    assert len(pictures(chunks[0]._repr_html_())) == 2


def test_of_slices_among_their_neighbours_the_middle_one():
    space = Space(np.eye(4)[:, [2, 1, 0, 3]], (8, 12, 10))
    volume = np.arange(8 * 12 * 10, dtype="i2").reshape(8, 12, 10)
    owner = Patient("v", {"wsi": Record(array=volume, space=space)})
    around = np.stack([volume[2], volume[3], volume[4]], -1)
    for data in (around[None], around):  # as it is, and squeezed
        chunks = batch([data], [owner], origins=[(3, 0, 0)], space=space, downsample=1.0)
        chunks.spatial_ndim = data.ndim - 1
        for shown in (chunks, chunks[0]):
            small, _ = pictures(shown._repr_html_())
            low, high = volume[3].min(), volume[3].max()
            assert np.array_equal(small, (volume[3] - low) * (255 / (high - low)) // 1)


# -- bounds, and what is odd ---------------------------------------------------------------
def test_its_size_is_bounded():
    noise = np.random.default_rng(0).integers(0, 256, (64, 100, 100, 3), np.uint8)
    pixels = noise[0].repeat(3, 0).repeat(3, 1)
    people = [patient(f"p{i}", Record(array=pixels)) for i in range(20)]
    targets = noise[..., 0] % 9
    for given in (None, targets, targets / 7):
        page = batch(noise, people, targets=given)._repr_html_()
        assert len(page) < 300_000
        assert page.count("<figcaption>") == SHOWN + 8
        assert f"and {64 - SHOWN} more<" in page
        assert "and 12 more images" in page


def test_text_is_escaped():
    odd = patient("<script>a()</script>", **{"<b>": "<i>"})
    for shown in (batch(smooth(1), [odd]), batch(smooth(1), [odd])[0]):
        page = shown._repr_html_()
        assert "<script>" not in page
        assert "&lt;script&gt;a()" in page
        assert "<i>" not in page
        assert "<b>" not in page


class Graph:
    def __repr__(self):
        return "<Graph & 12 cells>" + "." * 500


def test_objects_are_words():
    objects = np.empty(3, object)
    objects[:] = [Graph(), {"a": 1}, None]
    objects[2] = np.zeros((5, 7), "f4")
    chunks = batch(objects)
    page = chunks._repr_html_()
    assert "3 small chunks, objects" in page
    assert "&lt;Graph &amp; 12 cells&gt;" in page
    assert "ndarray 5 x 7, float32" in page
    assert len(page) < 10_000
    assert boxes(page) == [(0, 0, 60, 60)] * 3, "the big chunk"
    assert "Graph" in chunks[0]._repr_html_()


def test_a_batch_that_was_made_on_a_device():
    chunks = batch(smooth(2))
    chunks.made = torch.from_numpy(chunks.made)
    page = chunks._repr_html_()
    assert "2 small chunks, 16 x 20 x 3" in page
    assert np.array_equal(pictures(page)[1], smooth(2)[1])


def test_what_cannot_be_drawn_has_its_numbers_all_the_same(monkeypatch):
    def fail(*args):
        raise RuntimeError("no")

    monkeypatch.setattr("daskdmed.loading.html.pictures", fail)
    assert "3 small chunks" in batch(smooth())._repr_html_()
    page = batch(smooth())[0]._repr_html_()
    assert "location" in page
    assert not pictures(page)


def test_none_at_all():
    assert "0 small chunks" in batch(np.zeros((0, 8, 8, 3), np.uint8))._repr_html_()


def test_reprs_hold_no_pixels():
    chunk = batch(smooth(1), origins=[(4, 6)])[0]
    assert repr(chunk) == "<SmallChunk of p / wsi: location=(12, 8), shape=(16, 20, 3)>"
    assert repr(chunk.bigchunk) == ("<BigChunk of p / wsi: origin=(0, 0), shape=(30, 30), visit=3>")


def test_a_big_chunk_shows_its_pixels_where_they_are():
    big = BigChunk(smooth(1)[0], (0, 0), (16, 20), "<p>", "wsi", 0, (1.0, 1.0))
    page = big._repr_html_()
    assert np.array_equal(pictures(page)[0], smooth(1)[0])
    assert "&lt;p&gt;" in page
    assert not pictures(batch(smooth(1))[0].bigchunk._repr_html_())


def test_a_batch_of_a_loader():
    options = {"smallchunk_size": 32, "bigchunk_size": 128, "resident": "8 MiB"}
    with LightDL(coordinate_dataset(2), batch_size=4, **options) as loader:
        _, _, chunks = next(loader)
    page = chunks._repr_html_()
    assert len(pictures(page)) == 4 + len({p.key for p in chunks.patients})
    # small ones are drawn larger, about their centre
    centres = sorted((x + w / 2 - 16, y + h / 2 - 16) for x, y, w, h in boxes(page))
    assert centres == sorted(map(tuple, chunks.locations.tolist()))
