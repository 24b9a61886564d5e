"""`SlidingWindowDL` in this process: every window once, where it says, within its budget."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
import torch

from daskdmed import Dataset, LightDL, Patient, Record, Region, SlidingWindowDL, open_slide
from daskdmed.errors import (
    BudgetError,
    DatasetError,
    GeometryError,
    LoaderClosedError,
    LoaderError,
    ResolutionError,
    SampleNotAvailableError,
    StateError,
    UsageError,
)
from daskdmed.images.tiff.decode import count_tiles
from daskdmed.loading.sliding.plan import Load, LoadPlan, fit_block, needed_regions
from daskdmed.loading.sliding.read import Throttle
from daskdmed.samples import fetch, make_slide
from daskdmed.tiling.grid import WindowGrid
from tests.waiting import until


def coordinates(shape, number=0, chunks=128):
    """Pixels that say where they are: (*shape, 4) uint8."""
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    channels = [np.full(shape, number), sum(g * 31**i for i, g in enumerate(grids)) % 251]
    channels += [grids[0] % 253, grids[-1] % 247]
    pixels = np.stack(channels, -1).astype("u1")
    return da.from_array(pixels, chunks=(*(min(chunks, n) for n in shape), 4)), pixels


def dataset_of(sizes, chunks=128, mpp=None):
    arrays = [coordinates(size, number=i, chunks=chunks) for i, size in enumerate(sizes)]
    patients = [
        Patient(f"p{i}", {"wsi": Record(array=a, spatial_ndim=len(s), mpp=mpp)}, {"n": i})
        for i, ((a, _), s) in enumerate(zip(arrays, sizes))
    ]
    return Dataset("coordinates", patients), [pixels for _, pixels in arrays]


def cut(pixels, origin, kernel, background=0):
    """One window by hand, padded with the background."""
    inside = pixels[tuple(slice(o, o + k) for o, k in zip(origin, kernel))]
    pad = [(0, k - n) for k, n in zip(kernel, inside.shape)]
    return np.pad(inside, [*pad, (0, 0)], constant_values=background)


def seen(batches, images=None, kernel=None):
    """(patient, index) of every window; with images, its pixels are checked too."""
    out = []
    for x, patients, windows in batches:
        assert x.shape[0] == len(patients) == len(windows) > 0
        data = np.moveaxis(x.numpy(), 1, -1)
        for row, patient, window in zip(data, patients, windows, strict=True):
            assert window.patient is patient
            image = window.image
            assert image.grid.origin(window.index) == window.origin
            expected = tuple(
                round(o * d) for o, d in zip(window.origin, image.downsample, strict=True)
            )
            assert window.location == expected[::-1]
            if images is not None:
                pixels = images[patient.labels["n"]]
                assert np.array_equal(row, cut(pixels, window.origin, kernel)), window.origin
            out.append((patient.id, window.index))
    return out


# -- exactly once -----------------------------------------------------------------------


@st.composite
def cases(draw):
    ndim = draw(st.integers(1, 3))
    longest = {1: 200, 2: 60, 3: 16}[ndim]
    shapes = draw(st.lists(st.tuples(*[st.integers(1, longest)] * ndim), min_size=1, max_size=3))
    kernel = draw(st.tuples(*[st.integers(1, 12)] * ndim))
    stride = draw(st.tuples(*[st.integers(2, 14)] * ndim))
    return {
        "shapes": shapes,
        "kernel": kernel,
        "stride": stride,
        "edge": draw(st.sampled_from(["pad", "shift"])),
        "order": draw(st.sampled_from(["sequential", "interleaved"])),
        "at_once": draw(st.integers(1, 3)),
        "batch": draw(st.integers(1, 40)),
        "blocks": draw(st.one_of(st.none(), st.integers(1, 7))),
        "chunks": draw(st.integers(3, 50)),
        "world": draw(st.integers(1, 3)),
        "masked": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


@settings(max_examples=60)
@given(cases())
def test_every_window_once_against_brute_force(case):
    dataset, images = dataset_of(case["shapes"], case["chunks"])
    kernel, stride = case["kernel"], case["stride"]
    rng = np.random.default_rng(case["seed"])
    masks = {p.id: rng.random(s) < 0.3 for p, s in zip(dataset, case["shapes"])}
    expected = {}
    for patient, shape in zip(dataset, case["shapes"]):
        grid = WindowGrid(shape, kernel, stride, case["edge"])
        expected[patient.id] = [
            index
            for index, origin in grid
            if not case["masked"]
            or masks[patient.id][tuple(slice(o, o + k) for o, k in zip(origin, kernel))].any()
        ]
    found = []
    for rank in range(case["world"]):
        with SlidingWindowDL(
            dataset,
            kernel_size=kernel,
            stride=stride,
            edge=case["edge"],
            batch_size=case["batch"],
            order=case["order"],
            slides_at_once=case["at_once"],
            block_windows=case["blocks"],
            mask=masks if case["masked"] else None,
            rank=rank,
            world_size=case["world"],
            resident="4 MiB",
        ) as loader:
            batches = list(loader)
            assert len(batches) == len(loader)
            assert all(len(x) == case["batch"] for x, _, _ in batches[:-1])
            mine = seen(batches, images, kernel)
            assert len(mine) == loader.windows == sum(loader.windows_of.values())
            found += mine
    assert sorted(found) == sorted((p, i) for p, indices in expected.items() for i in indices)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [
        ((1000, 1000), 100, 100),
        ((1030, 1050), 100, 100),
        ((1000, 1000), 100, 50),
        ((1000, 1000), 100, 200),
        ((150, 150), 100, 100),
        ((500, 100), 100, 100),
        ((100, 500), 100, 100),
        ((500, 90), 100, 100),
    ],
)
def test_the_sizes_at_which_the_seed_left_out_or_repeated_windows(size, kernel, stride):
    dataset, images = dataset_of([size])
    with SlidingWindowDL(dataset, kernel_size=kernel, stride=stride) as loader:
        found = seen(loader, images, (kernel, kernel))
    assert len(set(found)) == len(found) == len(WindowGrid.of(size, kernel, stride=stride))
    covered = np.zeros(size, bool)
    for _, (i, j) in found:
        covered[i * stride : i * stride + kernel, j * stride : j * stride + kernel] = True
    gaps = np.logical_and.outer(*(np.arange(n) % stride < kernel for n in size))
    assert np.array_equal(covered, gaps)
    assert covered.all() or stride > kernel


def test_windows_over_the_border_see_the_background(tmp_path):
    slide = open_slide(make_slide(tmp_path / "a.tif", (300, 260), levels=1).path)
    with SlidingWindowDL(slide, kernel_size=200) as loader:
        ((x, _, windows),) = list(loader)
    pixels = slide.view().read(Region((0, 0), (260, 300)))
    for sample, window in zip(x, windows):
        expected = cut(pixels, window.origin, (200, 200), background=255)
        assert np.array_equal(sample.permute(1, 2, 0).numpy(), expected)


def test_windows_know_their_index():
    dataset, _ = dataset_of([(100, 90), (80, 70)])
    with SlidingWindowDL(dataset, kernel_size=32, batch_size=5) as loader:
        _, _, windows = next(loader)
    first = windows[1]
    assert (first.index, first.origin, first.location) == ((0, 1), (0, 32), (32, 0))
    assert (first.level, first.mpp, first.record) == (0, None, "wsi")
    assert windows.indices.tolist()[:4] == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert windows.table()[3]["index"] == (1, 0)
    assert [w.index for w in windows[1:3]] == [(0, 1), (0, 2)]
    keys = {tuple(k) for k in windows.keys.tolist()}
    assert len(keys) == 5


def test_batches_run_on_over_images_and_images_take_turns():
    dataset, images = dataset_of([(64, 64)] * 3)
    options = {"kernel_size": 16, "batch_size": 10, "block_windows": 2}
    with SlidingWindowDL(dataset, **options) as loader:
        plain = seen(loader, images, (16, 16))
    assert [p for p, _ in plain] == ["p0"] * 16 + ["p1"] * 16 + ["p2"] * 16
    with SlidingWindowDL(dataset, **options, order="interleaved", slides_at_once=2) as loader:
        turns = seen(loader, images, (16, 16))
    assert sorted(turns) == sorted(plain)
    order = [p for p, _ in turns]
    assert order[:16] == ["p0"] * 4 + ["p1"] * 4 + ["p0"] * 4 + ["p1"] * 4
    assert order[-16:] == ["p2"] * 16  # begins when one of the first two is over


# -- storage tiles ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "made.svs"
    return open_slide(make_slide(path, (3584, 2816), levels=2, tissue=0.5, mpp=0.5, seed=3).path)


TILES = 14 * 11


@pytest.mark.parametrize("blocks", [None, 8])
def test_aligned_windows_decode_each_tile_once(slide, blocks):
    with count_tiles() as count:
        with SlidingWindowDL(slide, kernel_size=224, block_windows=blocks) as loader:
            assert sum(len(x) for x, _, _ in loader) == 16 * 13
            assert loader.stats().total_blocks > 1
    assert count.tiles == TILES


@pytest.mark.parametrize(("kernel", "stride"), [(224, 112), (300, 300), (256, 200), (512, 384)])
def test_other_windows_decode_little_twice(slide, kernel, stride):
    with count_tiles() as count:
        with SlidingWindowDL(slide, kernel_size=kernel, stride=stride) as loader:
            for _ in loader:
                pass
    assert TILES <= count.tiles <= 1.15 * TILES


def tiles_under(grid, keep, tile=256):
    under = np.zeros([-(-n // tile) for n in grid.shape], bool)
    for index, origin in grid:
        if keep[index]:
            stop = [min(o + k, n) for o, k, n in zip(origin, grid.kernel_size, grid.shape)]
            under[tuple(slice(o // tile, -(-s // tile)) for o, s in zip(origin, stop))] = True
    return under


def test_a_mask_skips_background_without_reading_it(slide):
    grid = WindowGrid.of((2816, 3584), 224)
    mask = np.zeros((11, 14), bool)
    mask[1, 2:5] = mask[8, 8] = mask[9, 12] = True
    with count_tiles() as count, SlidingWindowDL(slide, kernel_size=224, mask=mask) as loader:
        found = seen(loader)
    keep = np.zeros(grid.counts, bool)
    for _, index in found:
        keep[index] = True
    expected = np.zeros(grid.counts, bool)
    blown = np.kron(mask, np.ones((256, 256), bool))
    for index, (y, x) in grid:
        expected[index] = blown[y : y + 224, x : x + 224].any()
    assert np.array_equal(keep, expected)
    assert 0 < count.tiles == tiles_under(grid, keep).sum() < TILES / 3


def test_gaps_between_windows_are_not_read(slide):
    with count_tiles() as count:
        with SlidingWindowDL(slide, kernel_size=256, stride=1024) as loader:
            assert sum(len(x) for x, _, _ in loader) == 4 * 3
    assert count.tiles == 12


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.integers(1, 9)),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 2**31),
)
def test_needed_regions_are_the_tiles_under_windows(axes, seed):
    from types import SimpleNamespace

    shape, kernel, stride, tile = zip(*axes, strict=True)
    grid = WindowGrid(shape, kernel, stride)
    keep = np.random.default_rng(seed).random(grid.counts) < 0.4
    if not keep.any():
        return
    block = grid.box((0,) * grid.ndim, grid.counts)
    image = SimpleNamespace(grid=grid, view=SimpleNamespace(tile_shape=tile))
    read = np.zeros(shape, int)
    for region in needed_regions(Load(0, image, block, keep, 0, 1, 0)):
        read[region.slices] += 1
    assert read.max() == 1
    needed = np.zeros(shape, bool)
    for index, origin in grid:
        if keep[index]:
            needed[
                tuple(
                    slice(o // t * t, min(-(-(o + k) // t) * t, n))
                    for o, k, t, n in zip(origin, kernel, tile, shape)
                )
            ] = True
    spanned = np.zeros(shape, bool)
    spanned[block.region.slices] = True
    assert np.array_equal(read == 1, needed & spanned)


# -- resolutions and masks --------------------------------------------------------------


@pytest.mark.parametrize(
    "resolution", [{"level": 1}, {"mpp": 0.8}, {"power": 10}], ids=lambda r: next(iter(r))
)
def test_resolutions_are_values_or_functions(slide, resolution):
    ((name, value),) = resolution.items()
    view = slide.view(**resolution)
    pixels = view.read(Region((0, 0), view.shape[:2]))
    for given_ in (value, lambda patient: value):
        with SlidingWindowDL(slide, kernel_size=300, **{name: given_}) as loader:
            for x, _, windows in loader:
                for sample, window in zip(x, windows):
                    expected = cut(pixels, window.origin, (300, 300), background=255)
                    assert np.array_equal(sample.permute(1, 2, 0).numpy(), expected)
                    assert window.level == (1 if name == "level" else None)
                    assert window.mpp == pytest.approx(view.mpp)
                    assert window.location == tuple(
                        round(o * d) for o, d in zip(window.origin[::-1], view.downsample[::-1])
                    )
    (image,) = loader.images
    assert image.grid.shape == view.shape[:2]


def test_each_patient_has_its_own_level(slide, tmp_path):
    other = make_slide(tmp_path / "b.tif", 1024, levels=2, seed=9).path
    dataset = Dataset(
        "two scanners",
        [
            Patient("40x", {"wsi": Record(slide.uri)}, {"level": 1}),
            Patient("20x", {"wsi": Record(other)}, {"level": 0}),
        ],
    )
    with SlidingWindowDL(dataset, kernel_size=256, level=lambda p: p.labels["level"]) as loader:
        levels = {(w.patient.id, w.level, w.image.grid.shape) for b in loader for w in b[2]}
    assert levels == {("40x", 1, (704, 896)), ("20x", 0, (1024, 1024))}


class ScaledMask:
    """As tissue masks are: `data`, and level-0 pixels per mask pixel along (y, x)."""

    def __init__(self, data, scale):
        self.data, self.scale = data, scale


def test_masks_of_every_kind(slide):
    grid = WindowGrid.of((704, 896), 64)
    data = np.zeros((22, 28), bool)
    data[4:9, 10:20] = True  # level 0: 512 to 1152, 1280 to 2560; level 1: 128 to 288, 320 to 640
    inside = {
        index for index, (y, x) in grid if y + 64 > 128 and y < 288 and x + 64 > 320 and x < 640
    }
    scaled = ScaledMask(np.pad(data, [(0, 3), (0, 1)]), (128.0, 128.0))
    for mask in (data, data.astype(float), scaled, {"made": scaled}, lambda patient: scaled):
        with SlidingWindowDL(slide, kernel_size=64, level=1, mask=mask) as loader:
            assert {index for _, index in seen(loader)} == inside
    with SlidingWindowDL(slide, kernel_size=64, level=1, mask=data, min_mask=0.6) as loader:
        half = {index for _, index in seen(loader)}
    # 128 to 288 is two windows and a half
    assert half == {i for i in inside if i[0] < 4}
    with SlidingWindowDL(slide, kernel_size=64, level=1, mask={"made": None}) as loader:
        assert loader.windows == len(grid)


def test_the_tissue_of_a_slide_is_a_mask(slide):
    from daskdmed import tissue_mask

    found = tissue_mask(slide)
    with SlidingWindowDL(slide, kernel_size=128, mask=found, min_mask=0.5) as loader:
        kept = {index for _, index in seen(loader)}
    assert 0 < len(kept) < len(loader.images[0].grid)
    y, x = np.mgrid[:2816, :3584]
    blown = found.data[
        np.minimum((y / found.scale[0]).astype(int), found.data.shape[0] - 1),
        np.minimum((x / found.scale[1]).astype(int), found.data.shape[1] - 1),
    ]
    for index, (y0, x0) in loader.images[0].grid:
        share = blown[y0 : y0 + 128, x0 : x0 + 128].mean()
        if abs(share - 0.5) > 0.05:
            assert (index in kept) == (share > 0.5)
    patient = Patient("made", {"wsi": Record(slide.uri)})
    for mask in ({patient: found}, lambda p: tissue_mask(p.record())):
        with SlidingWindowDL(patient, kernel_size=128, mask=mask, min_mask=0.5) as loader:
            assert {index for _, index in seen(loader)} == kept


def test_a_patient_without_tissue_has_no_windows():
    dataset, images = dataset_of([(100, 100)] * 3)
    masks = {"p0": np.ones((2, 2)), "p1": np.zeros((2, 2)), "p2": np.ones((2, 2))}
    with SlidingWindowDL(dataset, kernel_size=20, mask=masks) as loader:
        found = seen(loader, images, (20, 20))
    assert {p for p, _ in found} == {"p0", "p2"}
    assert loader.windows_of == {("p0", "wsi"): 25, ("p1", "wsi"): 0, ("p2", "wsi"): 25}
    with pytest.raises(UsageError, match="one array cannot lie over several images"):
        SlidingWindowDL(dataset, kernel_size=20, mask=np.zeros((2, 2)))
    with SlidingWindowDL(dataset, kernel_size=20, mask=lambda p: np.zeros((2, 2))) as loader:
        assert list(loader) == []
        assert len(loader) == 0


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (np.zeros(4), GeometryError),
        (np.full((4, 4), 7), GeometryError),
        ({"other": np.ones((4, 4))}, UsageError),
        (ScaledMask(np.ones((4, 4)), (8.0,)), GeometryError),
        (ScaledMask(np.ones((4, 4)), (8.0, 0.0)), GeometryError),
        (lambda patient: "tissue", GeometryError),
        (lambda patient: 1 / 0, ZeroDivisionError),
    ],
)
def test_bad_masks_name_the_patient(mask, error):
    dataset, _ = dataset_of([(100, 100)])
    with pytest.raises(error):
        SlidingWindowDL(dataset, kernel_size=20, mask=mask)
    if error is not ZeroDivisionError:
        with pytest.raises(error, match="p0"):
            SlidingWindowDL(dataset, kernel_size=20, mask=mask)


def test_the_real_slide():
    try:
        slide = open_slide(fetch("CMU-1-Small-Region.svs"))
    except SampleNotAvailableError as error:
        pytest.skip(str(error))
    total = 0
    with SlidingWindowDL(slide, kernel_size=224, stride=300, edge="shift") as loader:
        for x, _, windows in loader:
            for sample, window in zip(x, windows):
                expected = slide.read_region(window.location, 0, (224, 224))
                assert np.array_equal(sample.permute(1, 2, 0).numpy(), expected)
                total += 1
    assert total == loader.windows == len(windows.images[0].grid)


# -- memory and slow consumers ----------------------------------------------------------


class Watched:
    """Counts blocks that are read, and how many are alive."""

    def __init__(self, fail=None, times=10**9):
        self.lock = threading.Lock()
        self.reads = 0
        self.fail, self.left = fail, times

    def __call__(self, block, block_info=None):
        with self.lock:
            self.reads += 1
            place = tuple(a for a, _ in block_info[0]["array-location"][:2])
            if self.fail is not None and place == self.fail and self.left > 0:
                self.left -= 1
                raise OSError(f"no block at {place}")
        return block

    def __dask_tokenize__(self):
        return id(self)


def watched_dataset(watch, size=(640, 640), chunk=64, n=1):
    meta = np.empty((0, 0, 0), "u1")  # without it Dask calls the function to find out
    patients, images = [], []
    for i in range(n):
        array, pixels = coordinates(size, number=i, chunks=chunk)
        patients.append(
            Patient(f"p{i}", {"wsi": Record(array=array.map_blocks(watch, meta=meta))}, {"n": i})
        )
        images.append(pixels)
    return Dataset("watched", patients), images


def test_a_slow_consumer_loses_nothing_and_nothing_grows():
    watch = Watched()
    dataset, images = watched_dataset(watch)
    budget = 5 * 64 * 64 * 4
    with SlidingWindowDL(
        dataset, kernel_size=64, batch_size=1, block_windows=1, resident=budget
    ) as loader:
        loop = iter(loader)
        found = seen(itertools.islice(loop, 1), images, (64, 64))
        until(lambda: loader.stats().batches_ready >= 4)
        # time in which all 100 could be read, were the reader not held back
        time.sleep(0.5)
        # what may be: in the budget, waiting as batches, in the consumer's and thread's hands
        assert watch.reads <= 5 + 4 + 2
        found += seen(loop, images, (64, 64))
        assert loader.stats().peak_bytes <= budget
    assert len(set(found)) == len(found) == 100
    assert watch.reads == 100


def test_big_windows_and_tiny_batches():
    dataset, images = dataset_of([(900, 700)] * 2)
    with SlidingWindowDL(
        dataset, kernel_size=600, stride=300, batch_size=1, resident="3 MiB", order="interleaved"
    ) as loader:
        found = seen(loader, images, (600, 600))
        stats = loader.stats()
    assert len(set(found)) == len(found) == 2 * 2 * 2
    assert stats.peak_bytes <= stats.budget_bytes


def test_batches_keep_no_blocks_alive():
    dataset, _ = dataset_of([(512, 512)])
    with SlidingWindowDL(dataset, kernel_size=64, batch_size=4) as loader:
        x, _, windows = next(loader)
        assert x.numpy().base.nbytes <= 2 * 4 * 64 * 64 * 4
        assert windows[0].bigchunk.data is None
        for _ in loader:
            pass
        assert loader.stats().resident_bytes == 0


def test_blocks_shrink_into_the_budget_and_are_refused_below_two_windows():
    grid = WindowGrid.of((51_200, 51_200), 224)
    wide = fit_block(grid, (256, 256), 3, 1 << 30)
    small = fit_block(grid, (256, 256), 3, 24 << 20)
    assert math.prod(small) < math.prod(wide)
    assert all(n % 8 == 0 for n in small)  # still on storage tiles
    assert 2 * math.prod(n * 224 for n in small) * 3 <= 24 << 20
    assert fit_block(grid, (256, 256), 3, 2 * 224 * 224 * 3) == (1, 1)
    with pytest.raises(BudgetError, match="ask for 301056 bytes"):
        fit_block(grid, (256, 256), 3, 2 * 224 * 224 * 3 - 1)
    dataset, _ = dataset_of([(512, 512)])
    with pytest.raises(BudgetError, match="p0"):
        SlidingWindowDL(dataset, kernel_size=256, resident="100 kB")


def test_the_interval_between_loads():
    throttle = Throttle(2.0)
    assert throttle.reserve(100.0) == 0
    assert throttle.reserve(100.5) == 1.5
    assert throttle.reserve(100.5) == 3.5
    assert throttle.reserve(110.0) == 0
    assert Throttle(0).reserve(5.0) == 0
    # and the loader keeps to it: 4 blocks, 3 intervals
    dataset, images = dataset_of([(64, 64)])
    options = {"kernel_size": 32, "block_windows": 1, "batch_size": 1}
    with SlidingWindowDL(dataset, **options, min_interval=0.1) as loader:
        assert len(seen(loader, images, (32, 32))) == 4
        assert loader.stats().seconds >= 0.3
    # closing does not wait for it
    with SlidingWindowDL(dataset, **options, min_interval=10_000.0) as loader:
        next(loader)


# -- going on ---------------------------------------------------------------------------

GOING = {"kernel_size": 24, "stride": 17, "batch_size": 7, "block_windows": 5}


@pytest.mark.parametrize("order", ["sequential", "interleaved"])
@pytest.mark.parametrize("taken", [5, 10**6])
def test_resume_is_exact(order, taken):
    sizes = [(100, 90), (80, 120), (30, 30)]
    dataset, _ = dataset_of(sizes)
    masks = {
        f"p{i}": np.random.default_rng(i).random((h // 10, w // 10)) < 0.5
        for i, (h, w) in enumerate(sizes)
    }
    options = {**GOING, "order": order, "mask": masks}

    def batches(loader, n=None):
        return [
            (x.numpy().copy(), w.indices.copy(), [p.id for p in ps])
            for x, ps, w in itertools.islice(loader, n)
        ]

    with SlidingWindowDL(dataset, **options) as loader:
        whole = batches(loader)
    with SlidingWindowDL(dataset, **options) as loader:
        first = batches(loader, taken)
        state = json.loads(json.dumps(loader.state_dict()))
    # another process has other objects: the same arrays, made again
    again, _ = dataset_of(sizes)
    loader = SlidingWindowDL(again, **options)
    loader.load_state_dict(state)
    with loader:
        rest = batches(loader)
        assert loader.stats().windows == loader.windows
    if taken > len(whole):  # nothing was left: the next pass
        assert len(first) == len(whole)
        first = []
    for (xa, ia, pa), (xb, ib, pb) in zip(first + rest, whole, strict=True):
        assert np.array_equal(xa, xb)
        assert np.array_equal(ia, ib)
        assert pa == pb


def test_states_of_other_loaders_are_refused():
    dataset, _ = dataset_of([(100, 90)])
    state = SlidingWindowDL(dataset, **GOING).state_dict()
    for change in ({"stride": 16}, {"edge": "shift"}, {"block_windows": 4}):
        with pytest.raises(StateError, match="another loader"):
            SlidingWindowDL(dataset, **{**GOING, **change}).load_state_dict(state)
    with pytest.raises(StateError, match="images"):
        other, _ = dataset_of([(100, 91)])
        SlidingWindowDL(other, **GOING).load_state_dict(state)
    with pytest.raises(StateError, match="position -1"):
        SlidingWindowDL(dataset, **GOING).load_state_dict({**state, "position": -1})


def test_each_loop_is_a_pass_and_one_can_be_left_and_gone_on_with():
    dataset, images = dataset_of([(100, 100)])
    with SlidingWindowDL(dataset, kernel_size=10, batch_size=30) as loader:
        first = seen(loader, images, (10, 10))
        assert seen(loader, images, (10, 10)) == first
        loop = iter(loader)
        head = seen(itertools.islice(loop, 2), images, (10, 10))
        assert loader.position == 60
        assert head + seen(loop, images, (10, 10)) == first
        assert loader.position == 0
        for _ in range(2):
            with pytest.raises(StopIteration):
                loader.get()
        loader.rewind()
        next(loader)
        assert loader.position == 30
        loader.rewind()
        assert seen(loader, images, (10, 10)) == first
    with pytest.raises(LoaderClosedError):
        loader.rewind()


def test_ranks_share_windows_evenly():
    dataset, _ = dataset_of([(200, 200)] * 5)
    counts = []
    for rank in range(4):
        loader = SlidingWindowDL(dataset, kernel_size=10, block_windows=5, rank=rank, world_size=4)
        counts.append(loader.windows)
    assert sum(counts) == 5 * 400
    assert max(counts) - min(counts) <= 2 * 25


def test_a_plan_of_many_slides_is_small_and_quick_to_search():
    dataset, _ = dataset_of([(50, 50)])
    view = SlidingWindowDL(dataset, kernel_size=5)._plan.images[0]
    plan = LoadPlan([view] * 500, order="interleaved", at_once=7)
    assert plan.windows == 500 * 100
    for position in (0, 1, 99, 100, 49_999):
        number, offset = plan.locate(position)
        load = plan.load(number)
        assert load.first <= position < load.first + load.count
        assert load.first + offset == position


# -- errors -----------------------------------------------------------------------------


def torn(slide, tmp_path, *tiles):
    """A copy of a slide in which some tiles of level 0 are no JPEG any more."""
    from pathlib import Path

    import tifffile

    copy = tmp_path / "torn.svs"
    copy.write_bytes(Path(slide.uri).read_bytes())
    with tifffile.TiffFile(copy) as tiff:
        page = tiff.pages[0]
        places = [(page.dataoffsets[t], page.databytecounts[t]) for t in tiles]
    with copy.open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            file.write(b"\0" * size)
    return copy


def test_a_torn_tile_is_an_error_that_says_where(slide, tmp_path):
    path = torn(slide, tmp_path, 16)  # row 1, column 2
    with SlidingWindowDL(path, kernel_size=128, block_windows=4) as loader:
        with pytest.raises(LoaderError, match=r"'torn'.*'wsi'.*windows .*pixels .*torn\.svs") as e:
            for _ in loader:
                pass
        assert (e.value.patient, e.value.record) == ("torn", "wsi")
        with pytest.raises(LoaderError):  # and again
            loader.get()


def test_a_torn_tile_becomes_background_where_that_is_asked_for(slide, tmp_path):
    path = torn(slide, tmp_path, 16)
    with SlidingWindowDL(path, kernel_size=256, tile_error="fill") as loader:
        white = [w.index for x, _, ws in loader for v, w in zip(x, ws) if bool((v == 255).all())]
        assert (1, 2) in white
        assert not loader.stats().failed
    with LightDL(path, smallchunk_size=256, tissue=True, tile_error="fill") as loader:
        assert next(iter(loader))[0].shape[-1] == 256
        assert not loader.stats().failed


def test_a_torn_tile_costs_its_windows_only(slide, tmp_path):
    path = torn(slide, tmp_path, 16, 150)
    grid = WindowGrid.of((2816, 3584), 100)
    lost = {
        index
        for index, (y, x) in grid
        for row, column in [(1, 2), (10, 10)]
        if y < 256 * row + 256 and y + 100 > 256 * row
        if x < 256 * column + 256 and x + 100 > 256 * column
    }
    options = {"kernel_size": 100, "on_error": "skip"}
    with SlidingWindowDL(path, **options, batch_size=50) as loader:
        batches = list(loader)
        stats = loader.stats()
        state = loader.state_dict()
    found = [i for _, i in seen(batches)]
    assert set(found) == {i for i, _ in grid} - lost
    assert len(found) == len(set(found))
    assert all(len(x) == 50 for x, _, _ in batches[:-1])
    reported = [tuple(w) for f in stats.failed for w in f.windows.tolist()]
    assert sorted(reported) == sorted(lost)
    assert stats.lost_windows == len(lost)
    assert stats.windows + stats.lost_windows == stats.total_windows
    assert all("torn.svs" in f.message and f.patient == "torn" for f in stats.failed)
    # what was left out survives in the state
    loader = SlidingWindowDL(path, **options, batch_size=50)
    loader.load_state_dict(json.loads(json.dumps(state)))
    assert loader.stats().lost_windows == len(lost)
    # pixels of what is left are right
    with SlidingWindowDL(slide, kernel_size=100, batch_size=10**4) as whole:
        x, _, windows = next(whole)
    truth = {w.index: s for s, w in zip(x, windows)}
    for x, _, windows in batches:
        assert all(torch.equal(s, truth[w.index]) for s, w in zip(x, windows))


def test_what_fails_for_a_while_is_read_again():
    watch = Watched(fail=(128, 64), times=2)
    dataset, images = watched_dataset(watch)
    with SlidingWindowDL(dataset, kernel_size=64, block_windows=2) as loader:
        assert len(set(seen(loader, images, (64, 64)))) == 100
        assert loader.stats().retries == 2
        assert not loader.stats().failed


def test_what_fails_for_good_is_raised_or_left_out():
    for fail in ((128, 64), (0, 0)):
        watch = Watched(fail=fail)
        dataset, images = watched_dataset(watch, n=2)
        options = {"kernel_size": 64, "block_windows": 2}
        with SlidingWindowDL(dataset, **options) as loader:
            with pytest.raises(LoaderError, match=r"p0.*no block at"):
                list(loader)
        with SlidingWindowDL(dataset, **options, on_error="skip") as loader:
            found = seen(loader, images, (64, 64))
            failed = loader.stats().failed
        bad = (fail[0] // 64, fail[1] // 64)
        assert len(found) == len(set(found)) == 198
        assert [f.windows.tolist() for f in failed] == [[list(bad)], [list(bad)]]


def test_errors_that_will_not_pass_are_not_tried_again():
    def broken(block):
        raise ValueError("not of this kind")

    array, _ = coordinates((64, 64))
    with SlidingWindowDL(
        Record(array=array.map_blocks(broken, dtype="u1")), kernel_size=32
    ) as loader:
        with pytest.raises(LoaderError, match="not of this kind"):
            loader.get()
        assert loader.stats().retries == 0


def test_a_slide_that_cannot_be_opened(slide, tmp_path):
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    dataset = Dataset(
        "d",
        [
            Patient("bad", {"wsi": Record(tmp_path / "bad.svs")}),
            Patient("good", {"wsi": Record(slide.uri)}),
        ],
    )
    with pytest.raises(LoaderError, match="'bad'") as caught:
        SlidingWindowDL(dataset, kernel_size=512)
    assert caught.value.patient == "bad"
    with SlidingWindowDL(dataset, kernel_size=512, on_error="skip") as loader:
        assert {p for p, _ in seen(loader)} == {"good"}
        (failure,) = loader.stats().failed
    assert (failure.patient, failure.where, len(failure.windows)) == ("bad", "open", 0)
    with pytest.raises(DatasetError, match="none of the 1"):
        SlidingWindowDL(dataset[:1], kernel_size=512, on_error="skip")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kernel_size": 0}, GeometryError),
        ({"kernel_size": "64"}, GeometryError),
        ({"kernel_size": (8, 8, 8)}, UsageError),
        ({"stride": 0}, GeometryError),
        ({"stride": 8, "overlap": 0.5}, UsageError),
        ({"overlap": 1.0}, GeometryError),
        ({"level": 3}, ResolutionError),
        ({"level": -1}, ResolutionError),
        ({"level": 1, "mpp": 0.5}, ResolutionError),
        ({"mpp": 0.5}, ResolutionError),
        ({"power": 20}, ResolutionError),
        ({"record": "other"}, DatasetError),
        ({"edge": "mirror"}, UsageError),
        ({"kernel_size": 999, "edge": "drop"}, GeometryError),
        ({"order": "random"}, UsageError),
        ({"slides_at_once": 0}, UsageError),
        ({"resident": 0}, UsageError),
        ({"min_interval": -1}, UsageError),
        ({"min_interval": float("nan")}, UsageError),
        ({"min_mask": 2, "mask": np.ones((2, 2))}, GeometryError),
        ({"block_windows": 0}, GeometryError),
    ],
    ids=str,
)
def test_bad_arguments(change, error):
    dataset, _ = dataset_of([(100, 100)])
    with pytest.raises(error):
        SlidingWindowDL(dataset, **{"kernel_size": 10, **change})


def test_images_that_differ_are_refused():
    a, _ = coordinates((50, 50))
    mixed = Dataset(
        "m", [Patient("a", {"x": Record(array=a)}), Patient("b", {"x": Record(array=a[..., :3])})]
    )
    with pytest.raises(UsageError, match="channels"):
        SlidingWindowDL(mixed, kernel_size=10)


def test_every_kind_of_image(slide):
    array, pixels = coordinates((60, 60))
    for image in (array, pixels, Record(array=array), Patient("i", {"x": Record(array=array)})):
        with SlidingWindowDL(image, kernel_size=20) as loader:
            assert len(seen(loader)) == 9
    for image in (slide, slide.uri, Record(slide.uri), slide.view(), slide.view(level=1)):
        with SlidingWindowDL(image, kernel_size=700) as loader:
            shape = loader.images[0].grid.shape
            assert len(seen(loader)) == len(WindowGrid.of(shape, 700))
            assert loader.images[0].patient == "made"
    with pytest.raises(UsageError, match="view"):
        SlidingWindowDL(slide.view(), kernel_size=700, level=1)


# -- looking at it ------------------------------------------------------------------------


def test_what_it_shows():
    dataset, _ = dataset_of([(100, 100)])
    with SlidingWindowDL(dataset, kernel_size=10, batch_size=30) as loader:
        list(loader)
        assert "1 images, 100 windows of 10x10, 4 batches, running" in repr(loader)
        text = str(loader.stats())
        assert "100 of 100" in text
        assert "left out" in loader._repr_html_()
