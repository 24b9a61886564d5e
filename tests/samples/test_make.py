"""Made slides: readable by others, consistent between levels, true to their ground truth."""

from __future__ import annotations

import csv
import hashlib
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile

from daskdmed.errors import UsageError
from daskdmed.samples import MadeSlide, make_cohort, make_slide

openslide = pytest.importorskip("openslide")


def level(path: Path, index: int) -> np.ndarray:
    with tifffile.TiffFile(path) as f:
        return f.series[0].levels[index].asarray()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeSlide:
    return make_slide(tmp_path_factory.mktemp("made") / "odd.tif", (4517, 3333), seed=3)


def test_both_readers_see_all_levels(made: MadeSlide) -> None:
    sizes = ((4517, 3333), (1129, 833))
    assert made.level_dimensions == sizes
    with openslide.OpenSlide(made.path) as slide:
        assert slide.level_dimensions == sizes
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
    with tifffile.TiffFile(made.path) as f:
        assert [x.shape for x in f.series[0].levels] == [(3333, 4517, 3), (833, 1129, 3)]
        assert all(p.is_tiled and p.jpegtables for p in f.pages)


@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
def test_pixels_are_the_same_for_both_readers(tmp_path: Path, subsampling: str) -> None:
    made = make_slide(tmp_path / "s.tif", (700, 530), tile=128, subsampling=subsampling, levels=2)
    for index, size in enumerate(made.level_dimensions):
        with openslide.OpenSlide(made.path) as slide:
            theirs = np.asarray(slide.read_region((0, 0), index, size))[..., :3]
        np.testing.assert_array_equal(level(made.path, index), theirs)


@pytest.mark.parametrize("factor", [2, 4])
def test_every_level_is_the_mean_of_level_0(tmp_path: Path, factor: int) -> None:
    made = make_slide(
        tmp_path / "s.tif", (2100, 1900), levels=3, downsample=factor, quality=95, subsampling="444"
    )
    base = level(made.path, 0).astype(np.float64)
    for index in (1, 2):
        image = level(made.path, index).astype(np.float64)
        d = factor**index
        h, w = image.shape[:2]
        mean = base[: h * d, : w * d].reshape(h, d, w, d, 3).mean((1, 3))
        # JPEG noise only: a shift by one tile or one pixel gives more than 10
        assert np.abs(image - mean).mean() < 2.5
        assert abs((image - mean).mean()) < 0.5


def test_tiles_join_without_seams(made: MadeSlide) -> None:
    image = level(made.path, 0).astype(np.int16)
    step = np.abs(np.diff(image, axis=1)).mean((0, 2))
    at_edges = step[255::256].mean()
    assert at_edges < 1.3 * step.mean()


def test_mask_agrees_with_pixels(made: MadeSlide) -> None:
    image = level(made.path, 0)
    cell = made.cell
    assert made.class_map.shape == (-(-3333 // cell), -(-4517 // cell))
    h, w = 3333 // cell, 4517 // cell
    cells = image[: h * cell, : w * cell].reshape(h, cell, w, cell, 3).mean((1, 3))
    truth = made.class_map[:h, :w]
    saturation = cells.max(-1) - cells.min(-1)
    assert np.median(saturation[truth == 0]) < 5
    assert ((saturation > 15) == (truth > 0)).mean() > 0.95
    # the two classes are told apart by how red they are
    tissue = truth > 0
    assert ((cells[..., 0] < 195) == (truth == 2))[tissue].mean() > 0.9


def test_fractions(made: MadeSlide) -> None:
    background, first, second = made.class_fractions
    assert made.tissue_fraction == pytest.approx(1 - background)
    assert made.tissue_fraction == pytest.approx(0.5, abs=0.12)
    assert first / (first + second) == pytest.approx(0.5, abs=0.15)
    assert made.label == ("benign" if first >= second else "tumour")


@pytest.mark.parametrize(("tissue", "expected"), [(0.0, {0}), (1.0, {1, 2})])
def test_all_or_no_tissue(tmp_path: Path, tissue: float, expected: set[int]) -> None:
    made = make_slide(tmp_path / "s.tif", 1500, tissue=tissue)
    assert set(np.unique(made.class_map)) == expected


def test_one_class(tmp_path: Path) -> None:
    made = make_slide(tmp_path / "s.tif", 1500, classes=1)
    assert set(np.unique(made.class_map)) == {0, 1}


def test_mask_at_other_downsamples(made: MadeSlide) -> None:
    np.testing.assert_array_equal(made.mask(), made.class_map)
    fine = made.mask(made.cell / 4)
    assert fine.shape == (-(-3333 * 4 // made.cell), -(-4517 * 4 // made.cell))
    np.testing.assert_array_equal(fine[1::4, 1::4][:50, :50], made.class_map[:50, :50])
    y, x = 1000, 2000
    assert made.label_at(x, y) == made.class_map[y // made.cell, x // made.cell]
    assert made.mask(1e9).shape == (1, 1)
    with pytest.raises(UsageError, match="outside"):
        made.label_at(4517, 0)
    with pytest.raises(UsageError, match="positive"):
        made.mask(0)


def test_made_slide_pickles_small(made: MadeSlide) -> None:
    assert made.class_map.any()
    data = pickle.dumps(made)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again == made
    assert hash(again) == hash(made)
    np.testing.assert_array_equal(again.class_map, made.class_map)


def test_whole_numbers_of_any_type(tmp_path: Path) -> None:
    made = make_slide(tmp_path / "s.tif", np.int64(128), tile=64.0)  # type: ignore[arg-type]
    assert (made.size, made.tile) == ((128, 128), 64)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    a, b, c = (
        make_slide(tmp_path / f"{n}.tif", 300, tile=64, seed=s)
        for n, s in (("a", 1), ("b", 1), ("c", 2))
    )
    assert digest(a.path) == digest(b.path) != digest(c.path)
    assert digest(a.mask_path) == digest(b.mask_path) != digest(c.mask_path)


def test_sizes_that_are_no_multiple_of_anything(tmp_path: Path) -> None:
    for size, tile, levels in (((17, 300), 16, 2), ((1, 1), 256, 1), ((257, 1025), 256, 2)):
        made = make_slide(tmp_path / "s.tif", size, tile=tile, levels=levels)
        with openslide.OpenSlide(made.path) as slide:
            assert slide.dimensions == size
            image = np.asarray(slide.read_region((0, 0), 0, size))
        assert image.shape[:2] == size[::-1]
        assert made.class_map.shape == tuple(-(-n // made.cell) for n in size[::-1])


def test_default_levels(tmp_path: Path) -> None:
    assert make_slide(tmp_path / "s.tif", 2048).level_dimensions == ((2048, 2048),)
    assert make_slide(tmp_path / "s.tif", (2049, 3)).level_dimensions == ((2049, 3),)
    long = make_slide(tmp_path / "s.tif", (9000, 70), tile=64)
    assert long.level_dimensions == ((9000, 70), (2250, 17), (562, 4))


def test_aperio_header_has_power(tmp_path: Path) -> None:
    made = make_slide(tmp_path / "s.svs", 600, power=40, mpp=0.2527)
    with openslide.OpenSlide(made.path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.properties["openslide.objective-power"] == "40"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.2527)


def test_bigtiff(tmp_path: Path) -> None:
    small, big = (
        make_slide(tmp_path / f"{n}.tif", (900, 700), levels=2, bigtiff=n == "big")
        for n in ("small", "big")
    )
    with tifffile.TiffFile(big.path) as f:
        assert f.is_bigtiff
    with tifffile.TiffFile(small.path) as f:
        assert not f.is_bigtiff
    for index in (0, 1):
        np.testing.assert_array_equal(level(small.path, index), level(big.path, index))


def test_shared_tiles_same_pixels_smaller_file(tmp_path: Path) -> None:
    plain = make_slide(tmp_path / "plain.tif", 4096, tissue=1.0, tumour=0.0)
    shared = make_slide(tmp_path / "shared.tif", 4096, tissue=1.0, tumour=0.0, share_tiles=True)
    for index in range(len(plain.level_dimensions)):
        np.testing.assert_array_equal(level(plain.path, index), level(shared.path, index))
    assert os.path.getsize(shared.path) < 0.8 * os.path.getsize(plain.path)


def test_memory_is_bounded(tmp_path: Path) -> None:
    make_slide(tmp_path / "warm.tif", 300)
    tracemalloc.start()
    try:
        make_slide(tmp_path / "s.tif", 8192, share_tiles=True)  # 200 MB of pixels
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * 2**20


class StripedSlide:
    """Left half glass, right half tissue that gets bluer downwards."""

    dimensions = (2048, 2048)

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> np.ndarray:
        assert level == 0
        image = np.full((size[1], size[0], 3), 240, np.uint8)
        if location[0] >= 1024:
            image[:] = (200, 90, 150) if location[1] < 1024 else (120, 80, 190)
        return image


def test_tiles_from_a_slide(tmp_path: Path) -> None:
    made = make_slide(tmp_path / "s.tif", 3000, tiles_from=StripedSlide(), quality=95)
    image = level(made.path, 0)
    for cls, colour in enumerate([(240, 240, 240), (200, 90, 150), (120, 80, 190)]):
        ys, xs = np.nonzero(made.class_map[:90, :90] == cls)
        pixels = image[ys * made.cell + made.cell // 2, xs * made.cell + made.cell // 2]
        assert np.abs(np.median(pixels, axis=0) - colour).max() <= 4


def test_tiles_from_a_real_slide(tmp_path: Path, real_slide: Path) -> None:
    with openslide.OpenSlide(real_slide) as source:
        made = make_slide(tmp_path / "s.tif", 2500, tiles_from=source, tile=240, tissue=1.0)
        theirs = np.asarray(source.get_thumbnail((300, 300)))[..., :3].reshape(-1, 3)
    tissue = theirs[np.ptp(theirs, axis=1) > 20]
    ours = level(made.path, 1)
    assert np.abs(ours.mean((0, 1)) - tissue.mean(0)).max() < 25


def test_tiles_from_a_path(tmp_path: Path, real_slide: Path) -> None:
    pytest.importorskip("daskdmed.images.slide")
    made = make_slide(tmp_path / "a.tif", 1000, tiles_from=real_slide, tile=240)
    with openslide.OpenSlide(real_slide) as source:
        other = make_slide(tmp_path / "b.tif", 1000, tiles_from=source, tile=240)
    np.testing.assert_array_equal(level(made.path, 0), level(other.path, 0))


def test_tiles_from_an_empty_slide(tmp_path: Path) -> None:
    class Glass(StripedSlide):
        dimensions = (1024, 2048)

    with pytest.raises(UsageError, match="tissue"):
        make_slide(tmp_path / "s.tif", 1000, tiles_from=Glass())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 0}, "size"),
        ({"size": (100, 100, 3)}, "size"),
        ({"size": 100.5}, "size"),
        ({"size": "big"}, "size"),
        ({"tile": 250}, "tile"),
        ({"tile": 0}, "tile"),
        ({"levels": 0}, "levels"),
        ({"levels": 9}, "too many"),
        ({"downsample": 3}, "downsample"),
        ({"quality": 0}, "quality"),
        ({"quality": 101}, "quality"),
        ({"subsampling": "411"}, "subsampling"),
        ({"tissue": 1.1}, "tissue"),
        ({"tissue": float("nan")}, "tissue"),
        ({"tumour": -0.1}, "tumour"),
        ({"classes": 3}, "classes"),
        ({"mpp": 0}, "mpp"),
        ({"power": float("inf")}, "power"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make_slide(tmp_path / "s.tif", **{"size": 500, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from daskdmed.samples import _pyramid

    def broken(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(_pyramid.PyramidWriter, "finish", broken)
    with pytest.raises(OSError, match="disk full"):
        make_slide(tmp_path / "s.tif", 300)
    assert not list(tmp_path.glob("*.tif*"))


def test_cohort(tmp_path: Path) -> None:
    made = make_cohort(tmp_path, 4, 1536, seed=5)
    with (tmp_path / "labels.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["label"] for r in rows] == ["benign", "tumour", "benign", "tumour"]
    assert [r["slide"] for r in rows] == [m.path.name for m in made]
    assert [m.label for m in made] == [r["label"] for r in rows]
    assert len({digest(m.path) for m in made}) == 4
    again = make_cohort(tmp_path / "again", 4, 1536, seed=5)
    assert [digest(m.path) for m in again] == [digest(m.path) for m in made]


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 1.5}, {"purity": (0.4, 0.9)}, {"tile": 100}])
def test_cohort_bad_arguments(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(UsageError):
        make_cohort(tmp_path, **{"n": 1, "size": 500, **arguments})
