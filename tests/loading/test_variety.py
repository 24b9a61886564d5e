"""Explorers, diversity in numbers and pictures, advice."""

from __future__ import annotations

import itertools

import dask.array as da
import numpy as np
import pytest

import daskdmed
from daskdmed import Dataset, LightDL, Patient, Record
from daskdmed.core.region import Region
from daskdmed.errors import BudgetError, UsageError
from daskdmed.explorers import CircleExplorer, GridExplorer, LowDiscrepancyExplorer, SpiralExplorer
from daskdmed.persistence.catalogue import Geometry
from daskdmed.persistence.reading import LoadContext
from daskdmed.samples import make_slide
from tests.loading.conftest import SMALL, assert_true_to_place, coordinate_dataset


def context(nth, shape=(1000, 1400), bigchunk=(256, 256), patient="p"):
    return LoadContext(
        patient=patient,
        record="wsi",
        labels={},
        region=Region((0,) * len(shape), bigchunk),
        shape=shape,
        bigchunk_size=bigchunk,
        downsample=(1.0,) * len(shape),
        mpp=None,
        visit=nth,
        nth=nth,
    )


def walk(explorer, steps, **kwargs):
    rng = np.random.default_rng(0)
    return [
        r for n in range(steps) for r in explorer.extract_bigchunk(None, context(n, **kwargs), rng)
    ]


EXPLORERS = [GridExplorer, SpiralExplorer, CircleExplorer, LowDiscrepancyExplorer]


@pytest.mark.parametrize("explorer", EXPLORERS)
@pytest.mark.parametrize("regions", [1, 4])
@pytest.mark.parametrize("shape", [(1000, 1400), (200, 300), (40, 500, 600)])
def test_regions_lie_inside_and_hold_what_is_allowed(explorer, regions, shape):
    bigchunk = (256,) * len(shape)
    found = walk(explorer(regions=regions), 50, shape=shape, bigchunk=bigchunk)
    assert len(found) == 50 * regions
    for region in found:
        assert all(
            o >= 0 and e <= n for o, e, n in zip(region.origin, region.stop, shape, strict=True)
        )
        assert region.size * regions <= 256 ** len(shape)


@pytest.mark.parametrize("explorer", [GridExplorer, SpiralExplorer])
def test_a_lap_covers_every_pixel(explorer):
    steps = 4 * 6  # ceil((1000 - 256) / 256) + 1 by ceil((1400 - 256) / 256) + 1
    seen = np.zeros((1000, 1400), bool)
    path = walk(explorer(), steps)
    for region in path:
        seen[region.slices] = True
    assert seen.all()
    assert walk(explorer(), 2 * steps)[steps:] == path  # and begins anew


def test_a_spiral_goes_outwards():
    centres = np.array([np.add(r.origin, 128) for r in walk(SpiralExplorer(), 24)])
    distance = np.abs(centres - (500, 700)).max(axis=1)
    assert distance[0] < 200
    assert distance[:4].max() < distance[-4:].min() + 256


def test_a_circle_is_round():
    centres = np.array([np.add(r.origin, 128) for r in walk(CircleExplorer(steps=8), 8)])
    scaled = (centres - (500, 700)) / ((1000 - 256) / 4, (1400 - 256) / 4)
    np.testing.assert_allclose(np.hypot(*scaled.T), 1, atol=0.02)


def test_low_discrepancy_is_more_even_than_chance():
    def unevenness(points):
        counts = np.histogram2d(*points.T, bins=8)[0]
        return counts.std()

    even = np.array([r.origin for r in walk(LowDiscrepancyExplorer(64), 512)])
    rng = np.random.default_rng(0)
    chance = rng.random((512, 2)) * (1000 - 64, 1400 - 64)
    assert unevenness(even) < unevenness(chance) / 2
    assert len(set(map(tuple, even))) > 500
    other = walk(LowDiscrepancyExplorer(64), 1, patient="q")[0].origin
    assert other != tuple(even[0])


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_in_a_loader(explorer):
    with LightDL(coordinate_dataset(), **SMALL, bigchunk_loader=explorer(regions=4)) as loader:
        for _ in range(6):
            x, _, chunks = next(loader)
            assert_true_to_place(x, chunks)
        assert len({c.bigchunk.origin for c in chunks}) > 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: GridExplorer(regions=0),
        lambda: GridExplorer(overlap=1.0),
        lambda: CircleExplorer(radius=2),
        lambda: walk(GridExplorer((1, 2, 3)), 1),
    ],
)
def test_explorers_that_cannot_be(make):
    with pytest.raises(UsageError):
        make()


def test_diversity_counted_by_hand():
    data = coordinate_dataset(3)
    visits, patients, bigchunks, last, gaps = set(), [], [], {}, []
    with LightDL(data, **SMALL) as loader:
        for batch in range(70):  # more than are counted together
            _, who, chunks = next(loader)
            numbers = [c.bigchunk.visit for c in chunks]
            visits.update(numbers)
            patients.append(len({p.id for p in who}))
            bigchunks.append(len(set(numbers)))
            for at, number in enumerate(numbers, batch * 16):
                if number in last:
                    gaps.append(at - last[number])
                last[number] = at
        found = loader.stats().diversity
    assert found.patches_per_visit == 70 * 16 / len(visits)
    assert found.patients_per_batch == np.mean(patients)
    assert found.bigchunks_per_batch == np.mean(bigchunks)
    assert found.repeat_distance == np.mean(gaps)
    assert found.patients == 3
    assert 0.05 < found.coverage <= 1


def test_bookkeeping_is_bounded():
    """PyDmed kept every location for ever; here ten times the batches take no more."""
    import pickle

    sizes = []
    with LightDL(coordinate_dataset(2), **SMALL) as loader:
        for _ in range(2):
            for _ in range(100):
                next(loader)
            maps = loader._diversity
            sizes.append(len(pickle.dumps((maps._maps, maps._reached))))
    assert sizes[0] == sizes[1]


def test_a_picture_of_where_small_chunks_came_from(tmp_path):
    path = tmp_path / "s.tif"
    make_slide(path, 2048, tissue=0.5)
    data = Dataset("x", [Patient("a", {"wsi": Record(path)})])
    with LightDL(data, **SMALL) as loader:
        for _ in range(10):
            next(loader)
        counts = loader._diversity.counts("a")
        assert counts.sum() == 160
        figure = loader.plot_coverage("a")
        figure.savefig(tmp_path / "coverage.png")
        assert "160 small chunks" in figure.axes[0].get_title()
        # of the slide, so that annotations can be drawn over it
        assert [i.get_extent() for i in figure.axes[0].images] == [[0, 2048, 2048, 0]] * 2
        with pytest.raises(UsageError, match="no patient 'b'"):
            loader.plot_coverage("b")
    import matplotlib.image

    picture = matplotlib.image.imread(tmp_path / "coverage.png")
    assert picture.std() > 0.05


def test_advice(tmp_path):
    path = tmp_path / "s.tif"
    make_slide(path, 2048, tissue=0.5)
    data = Dataset("x", [Patient("a", {"wsi": Record(path)})])
    found = daskdmed.advise(
        data,
        smallchunk_size=64,
        resident="24 MiB",
        bigchunk_sizes=(32, 256, 512, 1024),
        draws=(8, 64),
        blocks=2,
    )
    sizes = {c.bigchunk_size for c in found.choices}
    assert sizes == {(256, 256), (512, 512), (1024, 1024)}  # 32 holds no small chunk
    for a, b in itertools.pairwise(c for c in found.choices if c.bigchunk_size == (512, 512)):
        assert b.patches_per_second > a.patches_per_second
        assert b.coverage == a.coverage * 8
    assert all(c.resident_bytes <= 24 << 20 for c in found.choices)
    smallest, largest = found.choices[0], found.choices[-1]
    assert smallest.bigchunks_per_batch > largest.bigchunks_per_batch
    assert found.best(0) in found.choices
    assert found.best(1e12).patches_per_second == max(c.patches_per_second for c in found.choices)
    assert "512 x 512" in str(found)
    assert "<table>" in found._repr_html_()


def test_advice_that_cannot_be_given():
    data = coordinate_dataset(1)
    with pytest.raises(BudgetError, match="at least 2"):
        daskdmed.advise(data, resident="1 MiB", bigchunk_sizes=(1024,))
    with pytest.raises(UsageError, match="at least one value"):
        daskdmed.advise(data, draws=())


def test_advice_for_volumes_is_no_larger_than_they_are():
    values = np.zeros((40, 64, 70), "u2")
    data = Dataset("one", [Patient("p", {"ct": Record(array=da.from_array(values, chunks=16))})])
    found = daskdmed.advise(data, smallchunk_size=(16, 16, 16), draws=(8,), blocks=1)
    assert [c.bigchunk_size for c in found.choices] == [(40, 64, 64), (40, 64, 70)]


def test_the_default_big_chunk_follows_the_number_of_axes():
    assert Geometry.of(224, None).bigchunk == (4096, 4096)
    assert Geometry.of((64, 64, 300), None).bigchunk == (256, 256, 300)
