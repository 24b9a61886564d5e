"""What a user of the loader meets, in-process, on arrays."""

from __future__ import annotations

import itertools
import sys
import threading

import dask.array as da
import numpy as np
import pytest
import torch

from daskdmed import (
    BigChunkLoader,
    Dataset,
    LightDL,
    Patient,
    Quota,
    Record,
    Region,
    SmallChunkCollector,
)
from daskdmed.errors import (
    BudgetError,
    DatasetError,
    GeometryError,
    LoaderError,
    ResolutionError,
    StateError,
    UsageError,
)
from daskdmed.loading import prefetch
from tests.loading.conftest import (
    SMALL,
    assert_same_batches,
    assert_true_to_place,
    collect,
    coordinate_array,
    coordinate_dataset,
)
from tests.waiting import until


def test_batches_are_true_to_their_places(dataset):
    with LightDL(dataset, **SMALL) as loader:
        for _, (x, patients, chunks) in zip(range(60), loader):
            assert x.shape == (16, 3, 64, 64)
            assert x.dtype == torch.uint8
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert len(patients) == len(chunks) == 16
            assert_true_to_place(x, chunks)


def test_rotation_visits_every_patient_and_stays_within_the_budget(dataset):
    seen = set()
    with LightDL(dataset, **SMALL) as loader:
        for _, (_, patients, _) in zip(range(60), loader):
            seen |= {p.id for p in patients}
            stats = loader.stats()
            assert stats.resident_bytes <= stats.budget_bytes
    assert seen == {"p0", "p1", "p2", "p3"}
    assert stats.visits_evicted > 20
    assert stats.batches == 60
    assert stats.patches == 960


def test_every_visit_gives_its_draws(dataset):
    draws = {}
    with LightDL(dataset, **SMALL) as loader:
        for _, (_, _, chunks) in zip(range(80), loader):
            for chunk in chunks:
                assert chunk.draw == draws.get(chunk.bigchunk.visit, -1) + 1
                draws[chunk.bigchunk.visit] = chunk.draw
    finished = [v for v in draws if v < max(draws) - 12]
    assert finished
    assert all(draws[v] == 19 for v in finished)


def test_same_seed_same_batches_other_seed_other_batches(dataset):
    def batches(seed):
        with LightDL(dataset, **SMALL, seed=seed) as loader:
            return collect(loader, 10)

    first = batches(3)
    assert_same_batches(first, batches(3))
    assert not np.array_equal(first[0][2], batches(4)[0][2])


def test_visits_do_not_share_random_numbers(dataset):
    with LightDL(dataset, **SMALL) as loader:
        places = {}
        for _, (_, _, chunks) in zip(range(40), loader):
            for c in chunks:
                offset = tuple(np.subtract(c.origin, c.bigchunk.origin).tolist())
                places.setdefault(c.bigchunk.visit, []).append(offset)
    lists = [tuple(p[:5]) for p in places.values() if len(p) >= 5]
    assert len(set(lists)) == len(lists)


def test_crops_are_uniform_in_the_big_chunk():
    from scipy.stats import chisquare

    dataset = coordinate_dataset(1, height=512, width=512)
    with LightDL(dataset, **{**SMALL, "batch_size": 500, "smallchunk_size": 32}) as loader:
        origins = np.concatenate([o for _, _, o in collect(loader, 10)])
    for axis in range(2):
        counts, _ = np.histogram(origins[:, axis], bins=13, range=(0, 481))
        assert chisquare(counts).pvalue > 1e-4


# -- shapes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shape"), [((32, 64, 64), (4, 1, 32, 64, 64)), ((1, 96, 96), (4, 1, 1, 96, 96))]
)
def test_volumes(size, shape):
    z, y, x = np.mgrid[0:80, 0:150, 0:140]
    volume = da.from_array((z * 1_000_000 + y * 1000 + x).astype("i4"), chunks=(40, 64, 64))
    dataset = Dataset("v", [Patient("a", {"ct": Record(array=volume)})])
    with LightDL(
        dataset,
        smallchunk_size=size,
        batch_size=4,
        bigchunk_size=(48, 128, 128),
        resident="16 MiB",
        smallchunks_per_bigchunk=10,
    ) as loader:
        for _, (batch, _, chunks) in zip(range(8), loader):
            assert batch.shape == shape
            assert batch.dtype == torch.int32
            for sample, chunk in zip(batch, chunks, strict=True):
                expected = volume[Region(chunk.origin, size).slices]
                assert np.array_equal(sample[0].numpy(), expected.compute(scheduler="sync"))
                assert chunk.location == tuple(reversed(chunk.origin))


def test_grey_images_get_one_channel():
    dataset = Dataset("g", [Patient(1, {"x": Record(array=np.ones((300, 300), "u2"))})])
    with LightDL(dataset, **SMALL) as loader:
        x, *_ = next(loader)
    assert x.shape == (16, 1, 64, 64)
    assert x.dtype == torch.uint16


def test_records_of_different_sizes_and_smaller_than_a_big_chunk():
    sizes = [(64, 64), (100, 1000), (700, 65), (1500, 1300)]
    dataset = Dataset(
        "sizes",
        [
            Patient(f"p{i}", {"wsi": Record(array=coordinate_array(*s, number=i))})
            for i, s in enumerate(sizes)
        ],
    )
    with LightDL(dataset, **SMALL) as loader:
        seen = set()
        for _, (x, patients, chunks) in zip(range(40), loader):
            assert_true_to_place(x, chunks)
            seen |= {p.id for p in patients}
    assert len(seen) == 4


def test_a_slide_smaller_than_a_small_chunk_is_named_or_padded():
    dataset = Dataset(
        "s",
        [
            Patient("tiny", {"wsi": Record(array=coordinate_array(50, 200))}),
            Patient("fine", {"wsi": Record(array=coordinate_array(300, 300))}),
        ],
    )
    with pytest.raises(GeometryError, match=r"'tiny'.*\(50, 200\).*\(64, 64\).*pad=True"):
        LightDL(dataset, **SMALL)
    with LightDL(dataset, **SMALL, pad=True) as loader:
        for _, (x, patients, chunks) in zip(range(10), loader):
            for sample, patient, chunk in zip(x, patients, chunks, strict=True):
                if patient.id == "tiny":
                    assert (sample[:, 50:] == 255).all()
                    assert (sample[0, :50, 0].numpy() == np.arange(50)).all()
                    assert chunk.origin[0] == 0


def test_one_patient_with_one_block_and_many_slots():
    dataset = coordinate_dataset(1, height=100, width=100)
    with LightDL(dataset, **SMALL) as loader:
        for _, (x, _, chunks) in zip(range(30), loader):
            assert_true_to_place(x, chunks)
        assert loader.stats().visits_evicted > 10


def test_levels_as_function_of_the_patient_and_exclusive(dataset):
    asked = []

    def level(patient):
        asked.append(patient.id)
        return 0

    with LightDL(dataset, **SMALL, level=level) as loader:
        _, _, chunks = next(loader)
    assert set(asked) == {"p0", "p1", "p2", "p3"}
    assert chunks[0].level == 0
    with pytest.raises(UsageError, match="exclude each other"):
        LightDL(dataset, **SMALL, level=1, mpp=0.5)
    with pytest.raises(ResolutionError, match="p0"):
        LightDL(dataset, **SMALL, mpp=0.5)


def test_target_record_rides_along():
    def patient(i):
        image = coordinate_array(number=i)
        return Patient(
            f"p{i}", {"wsi": Record(array=image), "mask": Record(array=image[..., 0] // 2)}
        )

    dataset = Dataset("t", [patient(i) for i in range(3)])
    with LightDL(dataset, **SMALL, record="wsi", target="mask") as loader:
        for _, (x, _, chunks) in zip(range(20), loader):
            assert_true_to_place(x, chunks)
            assert chunks.targets.shape == (16, 64, 64)
            assert np.array_equal(chunks.targets, x[:, 0].numpy() // 2)
            assert np.array_equal(chunks[3].target, chunks.targets[3])


def test_target_of_another_size_is_refused():
    records = {"wsi": Record(array=coordinate_array()), "mask": Record(array=np.zeros((10, 10)))}
    with pytest.raises(GeometryError, match=r"'a'.*target record 'mask'"):
        LightDL(Dataset("t", [Patient("a", records)]), **SMALL, record="wsi", target="mask")


# -- transforms and hooks ------------------------------------------------------------------


class CornerCollector(SmallChunkCollector):
    def extract_smallchunk(self, bigchunk, context, rng):
        assert not bigchunk.data.flags.writeable
        return (0, 0)


@pytest.mark.parametrize("collector", [CornerCollector, CornerCollector()])
def test_collector_class_or_object(dataset, collector):
    with LightDL(dataset, **SMALL, smallchunk_collector=collector) as loader:
        x, _, chunks = next(loader)
    assert all(c.origin == c.bigchunk.origin for c in chunks)
    assert_true_to_place(x, chunks)


def test_collector_function_may_give_pixels_of_its_own(dataset):
    def mirrored(bigchunk, context, rng):
        y, x = rng.integers(100, size=2)
        return bigchunk.data[y : y + 64, x : x + 64][:, ::-1], (y, x)

    with LightDL(dataset, **SMALL, smallchunk_collector=mirrored) as loader:
        x, _, chunks = next(loader)
    assert_true_to_place(x.flip(-1), [Plain(c, x.flip(-1)[i]) for i, c in enumerate(chunks)])


class Plain:
    def __init__(self, chunk, pixels):
        self.__dict__.update(
            origin=chunk.origin,
            patient=chunk.patient,
            location=chunk.location,
            bigchunk=chunk.bigchunk,
            data=np.moveaxis(pixels.numpy(), 0, -1),
        )


def test_none_ends_the_visit(dataset):
    calls = {}

    def five_each(bigchunk, context, rng):
        if context.draw >= 5:
            calls[context.visit] = calls.get(context.visit, 0) + 1
            return None
        return tuple(rng.integers(100, size=2))

    with LightDL(dataset, **SMALL, smallchunk_collector=five_each) as loader:
        draws = {}
        for _, (x, _, chunks) in zip(range(20), loader):
            assert_true_to_place(x, chunks)
            for c in chunks:
                draws.setdefault(c.bigchunk.visit, []).append(c.draw)
    assert all(d == list(range(len(d))) and len(d) <= 5 for d in draws.values())
    assert len(draws) > 40
    assert max(calls.values()) == 1, "a visit that said None must not be asked again"


def test_a_collector_that_never_gives_anything_is_an_error(dataset):
    with (
        LightDL(dataset, **SMALL, smallchunk_collector=lambda *_: None) as loader,
        pytest.raises(LoaderError, match="returned None"),
    ):
        next(loader)


@pytest.mark.parametrize(
    ("answer", "message"),
    [((5000, 0), "must lie inside"), (np.zeros((3, 3, 3), "u1"), "expected"), ("x", "invalid")],
)
def test_what_a_collector_may_not_return(dataset, answer, message):
    with (
        LightDL(dataset, **SMALL, smallchunk_collector=lambda *_: answer) as loader,
        pytest.raises(LoaderError, match=rf"patient 'p\d', record 'wsi'.*{message}"),
    ):
        next(loader)


class TwoCorners(BigChunkLoader):
    def extract_bigchunk(self, read, context, rng):
        h, w = context.shape
        assert read(Region((0, 0), (1, 1))).shape == (1, 1, 3)
        return [Region((0, 0), (100, 100)), Region((h - 200, w - 200), (200, 200))]


def test_big_chunk_loader_may_choose_several_regions(dataset):
    with LightDL(dataset, **SMALL, bigchunk_loader=TwoCorners) as loader:
        shapes = []
        for _, (x, _, chunks) in zip(range(20), loader):
            assert_true_to_place(x, chunks)
            shapes += [c.bigchunk.shape for c in chunks]
    assert set(shapes) == {(100, 100), (200, 200)}
    # in proportion to the positions that each offers
    assert np.mean([s == (200, 200) for s in shapes]) > 0.8


def test_random_regions_by_function(dataset):
    def anywhere(read, context, rng):
        y, x = (int(rng.integers(n - 256)) for n in context.shape)
        return Region((y, x), (256, 256))

    with LightDL(dataset, **SMALL, bigchunk_loader=anywhere) as loader:
        origins = set()
        for _, (x, _, chunks) in zip(range(20), loader):
            assert_true_to_place(x, chunks)
            origins |= {c.bigchunk.origin for c in chunks}
    assert any(o[0] % 256 for o in origins)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (Region((0, 0), (5000, 5000)), "outside the image"),
        ([Region((0, 0), (600, 600))], "bigchunk_size"),
        ([], "must return a Region"),
        (Region((0, 0), (10, 10)), "holds no small chunk"),
    ],
)
def test_what_a_big_chunk_loader_may_not_choose(dataset, regions, message):
    with (
        LightDL(dataset, **SMALL, bigchunk_loader=lambda *_: regions) as loader,
        pytest.raises(LoaderError, match=message),
    ):
        next(loader)


def test_hooks_that_are_neither_are_refused(dataset):
    with pytest.raises(UsageError, match="smallchunk_collector=3"):
        LightDL(dataset, **SMALL, smallchunk_collector=3)
    with pytest.raises(UsageError, match="bigchunk_loader='x'"):
        LightDL(dataset, **SMALL, bigchunk_loader="x")


# -- life ----------------------------------------------------------------------------------


def test_epochs(dataset):
    with LightDL(dataset, **SMALL, epoch_length=4) as loader, LightDL(dataset, **SMALL) as endless:
        assert len(loader) == 4
        epochs = [[c.origins.copy() for _, _, c in loader] for _ in range(3)]
        assert [len(e) for e in epochs] == [4, 4, 4]
        straight = [o for _, _, o in collect(endless, 12)]
        assert all(
            np.array_equal(a, b) for a, b in zip(itertools.chain(*epochs), straight, strict=True)
        )
        with pytest.raises(TypeError, match="epoch_length"):
            len(endless)


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_finite_plan_ends(dataset, drop_last):
    from daskdmed.persistence.policy import Sequential

    small = {**SMALL, "batch_size": 50}
    with LightDL(dataset, **small, policy=Sequential(), drop_last=drop_last) as loader:
        sizes = [len(chunks) for _, _, chunks in loader]
        total = 4 * 9 * 20
        assert sum(sizes) == (total // 50 * 50 if drop_last else total)
        with pytest.raises(StopIteration):
            loader.get()


def test_idle_consumer_costs_nothing(dataset):
    """The loader's thread comes to rest in a wait without a limit; one that polls never does."""
    with LightDL(dataset, **SMALL) as loader:
        next(loader)

        def at_rest():
            (loading,) = (t for t in threading.enumerate() if t.name == "daskdmed-loader")
            frame = sys._current_frames()[loading.ident]
            while frame is not None and frame.f_code.co_filename != threading.__file__:
                frame = frame.f_back
            endless = frame is not None and frame.f_locals.get("timeout", 0) is None
            return endless and frame.f_back.f_code.co_filename == prefetch.__file__

        until(at_rest)
        assert loader.stats().batches_ready == loader._feed._ahead


def test_adaptive_rotation_never_waits_for_a_late_block():
    gate = threading.Event()
    served = []

    def first_blocks_only(block, block_id):
        served.append(block_id)
        if len(served) > 48:  # a dozen big chunks, each of four blocks at most
            gate.wait()
        return block

    array = coordinate_array(2048, 2048, chunks=256).map_blocks(
        first_blocks_only, dtype="u1", meta=np.empty((0, 0, 0), "u1")
    )
    dataset = Dataset("late", [Patient("p0", {"wsi": Record(array=array)})])
    small = {**SMALL, "bigchunk_size": 256, "resident": "4 MiB", "smallchunks_per_bigchunk": 8}
    with LightDL(dataset, **small, rotation="adaptive") as loader:
        for _ in range(40):
            x, _, chunks = loader.get()
            assert_true_to_place(x, chunks)
        assert loader.stats().late_draws > 0
        gate.set()
    served.clear()
    gate.clear()
    with LightDL(dataset, **small) as strict:
        with pytest.raises(TimeoutError):
            for _ in range(100):
                strict.get(timeout=1)
        gate.set()  # or closing would wait for the readers


# -- state and ranks -------------------------------------------------------------------------


def test_state_with_visits_that_ended_early(dataset):
    def some(bigchunk, context, rng):
        return None if context.draw >= 3 + context.visit % 4 else tuple(rng.integers(90, size=2))

    with LightDL(dataset, **SMALL, smallchunk_collector=some) as loader:
        collect(loader, 9)
        state = loader.state_dict()
        expected = collect(loader, 9)
    other = LightDL(dataset, **SMALL, smallchunk_collector=some)
    other.load_state_dict(state)
    with other:
        assert_same_batches(collect(other, 9), expected)


def test_state_of_another_loader_is_refused(dataset):
    with LightDL(dataset, **SMALL) as loader:
        next(loader)
        state = loader.state_dict()
    with pytest.raises(StateError, match="seed: saved 0, now 1"):
        LightDL(dataset, **SMALL, seed=1).load_state_dict(state)
    with pytest.raises(StateError, match="dataset"):
        LightDL(coordinate_dataset(3), **SMALL).load_state_dict(state)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_plan(dataset, world_size):
    with LightDL(dataset, **SMALL) as loader:
        whole = collect(loader, 12)
    for rank in range(world_size):
        with LightDL(dataset, **SMALL, rank=rank, world_size=world_size) as loader:
            mine = collect(loader, 12 // world_size)
        assert_same_batches(mine, whole[rank::world_size])


# -- bad input -----------------------------------------------------------------------------


def failing_array(bad):
    def maybe(block, block_id):
        if block_id in bad:
            raise OSError(f"block {block_id} is bad")
        return block

    return coordinate_array().map_blocks(maybe, dtype="u1", meta=np.empty((0, 0, 0), "u1"))


def test_when_everything_fails_the_loader_says_so():
    bad = {(i, j, 0) for i in range(3) for j in range(3)}
    dataset = Dataset("b", [Patient("sick", {"wsi": Record(array=failing_array(bad))})])
    with (
        LightDL(dataset, **SMALL, on_error="skip") as loader,
        pytest.raises(LoaderError, match="in a row gave no small chunk.*is bad"),
    ):
        next(loader)


def test_refusals(dataset):
    with pytest.raises(DatasetError, match="no patients"):
        LightDL(Dataset("empty", []), **SMALL)
    with pytest.raises(BudgetError, match="at least 2"):
        LightDL(dataset, **{**SMALL, "resident": "1 MiB"})
    with pytest.raises(GeometryError, match="bigchunk_size"):
        LightDL(dataset, **{**SMALL, "bigchunk_size": 32})
    for bad in (
        {"rotation": "sometimes"},
        {"smallchunk_size": -1},
        {"smallchunk_size": (64, 64, 64)},
        {"epoch_length": 0},
        {"seed": None},
        {"seed": 1.5},
    ):
        with pytest.raises(UsageError, match=next(iter(bad))):
            LightDL(dataset, **{**SMALL, **bad})


def test_mixed_sample_types_are_refused(dataset):
    other = Patient("grey", {"wsi": Record(array=np.zeros((300, 300), "u1"))})
    with pytest.raises(UsageError, match="agree in channels.*'grey'"):
        LightDL(Dataset("mixed", [*dataset, other]), **SMALL)


def test_loaders_that_follow_each_other_quickly_do_not_meet(dataset):
    for _ in range(12):
        with LightDL(dataset, **SMALL) as loader:
            x, _, chunks = next(loader)
            assert_true_to_place(x, chunks)


@pytest.mark.parametrize("quotas", [None, [Quota(0.5, patients={"y": 0})]])
def test_no_more_is_read_ahead_than_the_plan_can_use(quotas):
    """Three small volumes, and a budget that a hundred thousand of their blocks would fit."""
    values = np.arange(32 * 48 * 48, dtype="u2").reshape(32, 48, 48)
    data = Dataset(
        "volumes",
        [Patient(str(i), {"ct": Record(array=da.from_array(values))}, {"y": i}) for i in range(3)],
    )
    options = {"smallchunk_size": (16, 16, 16), "batch_size": 4, "bigchunk_size": 64}
    with LightDL(data, **options, quotas=quotas, resident="2 GiB") as loader:
        most = 0
        for _ in range(400):
            next(loader)
            most = max(most, loader.stats().resident_visits)
        stats = loader.stats()
    # at most three are drawn from (four with a quota of the first of them, and its spare
    # ones), and as many again are read ahead
    bound = 6 if quotas is None else 2 * (4 + 4)
    assert 3 <= most <= bound
    assert stats.visits_admitted <= bound + 400 * 4 // 512 + 1
    assert stats.resident_bytes <= bound * values.nbytes
