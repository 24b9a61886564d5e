"""States that go on with other numbers of ranks and other batch sizes, or say why not."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL, stateful
from daskdmed.errors import StateError
from daskdmed.loading.progress import Share
from daskdmed.loading.quotas import Quota
from daskdmed.loading.sliding.progress import WindowProgress
from daskdmed.policies import EachOnce, OnePass
from tests.loading.conftest import coordinate_array, coordinate_dataset
from tests.loading.contract import bad, dataset_of, group
from tests.loading.test_machine import TINY, keys

DATASET = coordinate_dataset(2, height=100, width=90, chunks=64)
DRAWN = {**TINY, "smallchunks_per_bigchunk": 10}
SLID = {"kernel_size": 16, "stride": 11, "edge": "shift", "block_windows": 3, "resident": "20 KiB"}


#: the client of loaders that are alone; ranks would wait for each other
ALONE = {}


@pytest.fixture(scope="module", autouse=True)
def client():
    options = {"dashboard_address": None, "memory_limit": 0}
    with (
        LocalCluster(processes=False, threads_per_worker=2, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        ALONE["client"] = client
        yield
        ALONE.clear()


def drawn(batch_size=8, rank=0, world_size=1, dataset=DATASET, **options):
    share = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
    where = ALONE if world_size == 1 else {}
    return LightDL(dataset, **{**DRAWN, **share, **where, **options})


def slid(batch_size=8, rank=0, world_size=1, dataset=DATASET, **options):
    share = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
    return SlidingWindowDL(dataset, **{**SLID, **share, **options})


def rounds(ranks, count):
    """Small chunks of so many batches of each rank, in the order of the stream."""
    return [k for _ in range(count) for loader in ranks for k in keys(loader.get())]


def saved(loader):
    return json.loads(json.dumps(loader.state_dict()))


def whole(make, count=None, **options):
    """The first so many small chunks that one undisturbed loader gives."""
    with make(10, **{"drop_last": False} if make is drawn else {}, **options) as loader:
        chunks = (k for batch in loader for k in keys(batch))
        return list(itertools.islice(chunks, count))


# -- it goes on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "plan"),
    [
        ((2, 8), (1, 8), {}),
        ((2, 8), (4, 8), {"policy": EachOnce(9)}),
        ((4, 8), (2, 8), {}),
        ((4, 8), (2, 6), {"policy": EachOnce(9)}),
        ((1, 16), (1, 8), {"policy": EachOnce(9)}),
        ((1, 16), (1, 24), {}),
    ],
    ids=lambda value: " ".join(value) or "endless" if isinstance(value, dict) else str(value),
)
def test_the_stream_goes_on(then, now, plan):
    """Small chunk for small chunk, from a state of the last rank."""
    with group(drawn, *then, **plan) as ranks:
        first = rounds(ranks, 2)
        state = saved(ranks[-1])
    with group(drawn, *now, **plan) as ranks:
        for loader in ranks:
            loader.load_state_dict(state)
        stream = first + rounds(ranks, 2)
    assert stream == whole(drawn, len(stream), **plan)


@pytest.mark.parametrize(
    ("make", "options"),
    [(drawn, {"smallchunks_per_bigchunk": 40}), (slid, {})],
    ids=["drawn", "slid"],
)
def test_fifty_resumes_in_a_row(make, options):
    """With other numbers each time, in loaders that are somewhere else."""
    pick = random.Random(5)
    data = coordinate_dataset(1, height=200, width=230, chunks=64)
    options = {**options, "dataset": data}
    with contextlib.ExitStack() as stack:
        groups = [
            stack.enter_context(group(make, world_size, size, **options))
            for world_size, size in [(1, 5), (2, 3), (1, 8), (3, 2)]
        ]
        ranks = groups[0]
        stream = rounds(ranks, 1)
        for _ in range(50):
            states = [saved(loader) for loader in ranks]
            ranks = pick.choice([g for g in groups if g is not ranks])
            for loader in ranks:
                loader.load_state_dict(pick.choice(states))
            stream += rounds(ranks, 1)
        if make is drawn:
            assert stream == whole(make, len(stream), **options)
        else:
            stream += [k for loader in ranks for batch in loader for k in keys(batch)]
            assert sorted(stream) == sorted(whole(make, **options))


@settings(max_examples=25)
@given(
    chain=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=12
    ),
    order=st.sampled_from(["sequential", "interleaved"]),
    seed=st.integers(0, 99),
)
def test_whatever_ranks_leave_is_dealt_once(chain, order, seed):
    """In the plan alone: images of several sizes, masks, ranks that have come to their end."""
    rng = np.random.default_rng(seed)
    images = [np.zeros((*rng.integers(16, 90, 2), 1), "u1") for _ in range(3)]
    masks = {str(i): rng.random(a.shape[:2]) < 0.004 if i else None for i, a in enumerate(images)}
    patients = [Patient(str(i), {"wsi": Record(array=a)}) for i, a in enumerate(images)]
    plan = slid(dataset=Dataset("any", patients), order=order, mask=masks)._plan
    everything = windows_at(plan, 0, plan.windows)
    seen, state = [], None
    for world_size, size, steps in [*chain, (1, 7, 10**6)]:
        states = []
        for rank in range(world_size):
            share = Share(size, rank, world_size)
            progress = WindowProgress(plan.dealt(rank, world_size))
            parameters = {"batch_size": size, "rank": rank, "world_size": world_size}
            if state is not None:
                progress.restore(state, parameters)
            length, taken = progress.batches_of_pass(size), progress.batches
            for _ in range(steps):
                stop = min(progress.position + size, progress.plan.windows)
                if stop == progress.position:
                    assert progress.batches == max(length, taken)
                    break
                part = windows_at(progress.plan, progress.position, stop)
                seen += part
                progress.take(SimpleNamespace(position=stop, smallchunks=part, failures=()), share)
            states.append(json.loads(json.dumps(progress.saved(parameters))))
        # the rank that has most windows is the last at its end
        state = max(states, key=lambda state: state["asked"])
        if len(seen) == len(everything):
            break
    assert sorted(seen) == everything


def windows_at(plan, first, stop):
    """Number of the block, and of the window in it, at positions of a plan."""
    places = [plan.locate(position) for position in range(first, stop)]
    return [(plan.load(number).visit, offset) for number, offset in places]


def test_windows_of_one_rank_keep_their_order_in_batches_of_any_size():
    stream, state = [], slid().state_dict()
    for size in (5, 8, 3, 13):
        with slid(size) as loader:
            loader.load_state_dict(state)
            assert loader.position == len(stream)
            stream += rounds([loader], 2)
            state = saved(loader)
            assert loader.position == len(stream)
    with slid(4) as loader:
        loader.load_state_dict(state)
        stream += [k for batch in loader for k in keys(batch)]
        assert loader.stats().windows == loader.windows == loader.stats().total_windows
    assert stream == whole(slid)


def test_what_a_resumed_pass_of_windows_says_of_itself():
    with group(slid, 2, 5) as ranks:
        rounds(ranks, 3)
        state, windows = saved(ranks[1]), sum(loader.windows for loader in ranks)
    with slid(7) as one:
        one.load_state_dict(state)
        assert (one.position, one.windows, one.stats().windows) == (30, windows, 30)
        assert sum(one.windows_of.values()) == windows - 30
        assert len(one) == 3 + -(-(windows - 30) // 7)
        list(one)
        assert one.stats().windows == windows
        one.rewind()
        assert (one.position, one.windows, len(one)) == (0, windows, -(-windows // 7))
        assert sum(one.windows_of.values()) == windows


def test_loops_count_small_chunks():
    """What the interrupted loop has had counts, and `epoch_length` is of batches as they are."""

    def loops(state, world_size, size, length):
        with drawn(size, 0, world_size, epoch_length=length) as loader:
            loader.load_state_dict(state)
            return [len(list(loader)) for _ in range(2)]

    with drawn(8, 1, 2, epoch_length=10) as loader:
        for _ in itertools.islice(loader, 6):
            pass
        state = saved(loader)  # 96 of 160 small chunks
    assert loops(state, 2, 8, 10) == [4, 10]
    assert loops(state, 1, 8, 20) == [8, 20], "as many small chunks a loop as before"
    assert loops(state, 4, 8, 5) == [2, 5]
    assert loops(state, 4, 8, 10) == [7, 10], "twice as many"
    assert loops(state, 1, 24, 5) == [1, 5]
    assert loops(state, 1, 7, 20) == [7, 20], "44 are left"
    assert loops(state, 1, 8, 12) == [12, 12], "nothing is left of 96"
    with drawn(8, epoch_length=12) as loader:
        loader.load_state_dict(state)
        loader.set_epoch(0)
        assert not list(loader), "nor of the epoch that is asked for"


def test_the_remainders_of_many_resumes_add_up():
    """A loop of 60 small chunks is one, however often its batches change."""
    with drawn(4, epoch_length=15) as loader:
        for _ in itertools.islice(loader, 1):
            pass
        state = saved(loader)
    given = 4
    for size in (7, 4, 9, 7, 5, 9):
        with drawn(size, epoch_length=60 // size) as loader:
            loader.load_state_dict(state)
            loop = iter(loader)
            next(loop)
            given += size
            state = saved(loader)
    with drawn(1, epoch_length=60) as loader:
        loader.load_state_dict(state)
        assert len(list(loader)) == 60 - given


def test_lengths_and_counts():
    options = {"policy": OnePass(), "drop_last": True}
    with group(drawn, 2, 8, **options) as ranks:
        draws = len(whole(drawn, policy=OnePass()))
        first = rounds(ranks, 2)
        state = saved(ranks[0])
    with group(drawn, 3, 7, **options) as ranks:
        for loader in ranks:
            loader.load_state_dict(state)
            assert len(loader) == 2 + (draws - len(first)) // 21
            assert (loader.stats().batches, loader.stats().patches) == (2, len(first) // 3)
        taken = [list(loader) for loader in ranks]
        assert {len(batches) for batches in taken} == {(draws - len(first)) // 21}
        assert {loader.stats().batches for loader in ranks} == {2 + len(taken[0])}
        next(iter(ranks[0]))
        assert len(ranks[0]) == draws // 21


@pytest.mark.parametrize("even", [False, True])
def test_batches_of_a_share_are_those_that_are_dealt(even):
    for size, world_size, count in itertools.product((1, 3), (1, 2, 3), range(20)):
        dealt = [[] for _ in range(world_size)]
        for number, start in enumerate(range(0, count, size)):
            dealt[number % world_size].append(min(size, count - start))
        if even:
            rounds = sum(all(n < len(d) and d[n] == size for d in dealt) for n in range(count))
            dealt = [d[:rounds] for d in dealt]
        shares = [Share(size, rank, world_size) for rank in range(world_size)]
        assert [s.batches(count, even=even) for s in shares] == [len(d) for d in dealt]


def test_states_of_ranks_of_the_version_before():
    kept = ("position", "ended", "epoch", "batches", "over", "parameters")
    with group(drawn, 2, 8) as ranks:
        first = rounds(ranks, 3)
        new = [saved(loader) for loader in ranks]
    expected = whole(drawn, 96)
    for state in new:
        old = {**{name: state[name] for name in kept}, "version": 3, "iterated": 0}
        with drawn(6) as loader:
            loader.load_state_dict(old)
            assert first + rounds([loader], 8) == expected
            assert (loader.stats().batches, loader.stats().patches) == (11, 96)
        with pytest.raises(StateError, match="has not drawn as planned"):
            drawn(6).load_state_dict({**old, "position": old["position"] + 3})


def test_short_last_batches_are_counted():
    """Of ranks that had one, and of those that had none."""
    options = {"policy": OnePass(), "smallchunks_per_bigchunk": 7}
    stream, options["drop_last"] = whole(drawn, **options), False
    with group(drawn, 3, 5, **options) as ranks:
        batches = [list(loader) for loader in ranks]
        assert len(stream) % 5
        short = next(loader for loader, b in zip(ranks, batches, strict=True) if len(b[-1][0]) < 5)
        state = saved(short)
    for over in (False, True):
        with drawn(4, **options) as loader:
            loader.load_state_dict({**state, "over": over})
            with pytest.raises(StopIteration):
                loader.get()


# -- what nobody can know --------------------------------------------------------------------


def test_quotas_allow_other_ranks_and_no_other_batch_size():
    options = {"quotas": [Quota(3, patients={"y": 1})], "resident": "120 KiB"}
    with drawn(6, **options) as loader:
        expected = [keys(loader.get()) for _ in range(8)]
    with group(drawn, 2, 6, **options) as ranks:
        stream = rounds(ranks, 2)
        state = saved(ranks[1])
        fresh = saved(drawn(6, **options))
    with drawn(6, **options) as loader:
        loader.load_state_dict(state)
        assert stream + rounds([loader], 4) == list(itertools.chain(*expected))
    other = drawn(12, **options)
    with pytest.raises(StateError, match=r"share of each quota.* batch_size=6 .*set_epoch"):
        other.load_state_dict(state)
    other.load_state_dict(fresh)
    # between epochs nothing has been given
    with drawn(6, **options) as loader:
        loader.load_state_dict(state)
        loader.set_epoch(1)
        other.load_state_dict(loader.state_dict())


@stateful
def counting(bigchunk, context, rng):
    context.state["n"] = context.state.get("n", 0) + 1
    return context.state["n"] % 20, context.draw


def test_what_a_collector_remembers_is_of_one_rank():
    options = {"smallchunk_collector": counting}
    with drawn(8, **options) as loader:
        state = saved(loader)
        stream = rounds([loader], 3)
        later = saved(loader)
        stream += rounds([loader], 3)
    with drawn(6, **options) as loader:  # of another batch size
        loader.load_state_dict(later)
        assert rounds([loader], 4) == stream[24:]
        loader.feedback("p0", 1)
        told = saved(loader)
    two = drawn(8, 1, 2, **options)
    two.load_state_dict(state)
    for lost in (later, told, {**state, "feedback": told["feedback"]}):
        with pytest.raises(StateError, match=r"rank 0 of 1.*rank 1 of 2.*remembers.*world_size=1"):
            two.load_state_dict(lost)
    with group(drawn, 2, 8, **options) as ranks:
        rounds(ranks, 2)
        with pytest.raises(StateError, match="its collector remembers"):
            ranks[0].load_state_dict(ranks[1].state_dict())
        ranks[0].load_state_dict(ranks[0].state_dict())


def ending(bigchunk, context, rng):
    """Visits of odd numbers end early."""
    room = np.subtract(bigchunk.shape, context.smallchunk_size) + 1
    return None if context.visit % 2 and context.draw > 4 else tuple(rng.integers(room))


def test_visits_that_ended_early_are_known_to_a_single_rank():
    options = {"smallchunk_collector": ending}
    stream = whole(drawn, 150, **options)
    with drawn(8, **options) as loader:
        first = rounds([loader], 5)
        while not loader.state_dict()["ended"]:
            first += rounds([loader], 1)
        state = saved(loader)
    with drawn(5, **options) as loader:
        loader.load_state_dict(state)
        assert first + rounds([loader], 10) == stream[: len(first) + 50]
    with group(drawn, 2, 5, **options) as ranks:
        for loader in ranks:
            loader.load_state_dict(state)
        # which ones end is found out by each rank for itself
        assert not set(rounds(ranks, 3)) & set(first)
        state = saved(ranks[1])
        ranks[1].load_state_dict(state)
        for make in (lambda: drawn(5, **options), lambda: drawn(4, 1, 2, **options)):
            with pytest.raises(StateError, match=r"has not drawn as planned.*each rank from its"):
                make().load_state_dict(state)


def test_windows_that_were_left_out_are_known_to_a_single_rank():
    size = {"height": 60, "width": 50, "chunks": 64}
    torn = coordinate_array(**size).map_blocks(bad, dtype="u1", meta=np.empty((0, 0, 0), "u1"))
    data = dataset_of(coordinate_array(**size, number=0), torn, coordinate_array(**size, number=2))
    options = {"dataset": data, "on_error": "skip"}
    with slid(9, **options) as loader:
        first = []
        while not loader.stats().lost_windows:
            first += rounds([loader], 1)
        state, lost = saved(loader), loader.stats().lost_windows
        rest = [k for batch in loader for k in keys(batch)]
    assert rest
    with group(slid, 2, 4, **options) as ranks:
        for loader in ranks:
            loader.load_state_dict(state)
        assert [loader.stats().lost_windows for loader in ranks] == [lost, 0]
        again = [k for loader in ranks for batch in loader for k in keys(batch)]
    assert sorted(again) == sorted(rest)
    with slid(9, 1, 2, **options) as loader:
        list(loader)
        state = saved(loader)
    with pytest.raises(StateError, match="left windows out.*each rank from its own"):
        slid(9, **options).load_state_dict(state)
    slid(5, 1, 2, **options).load_state_dict(state)


def test_each_lost_window_is_told_once():
    """However often its block is read, and by whichever rank."""

    def torn(block, block_id=None):
        return bad(block) if block_id[:2] == (1, 1) else block

    array = coordinate_array(64, 64, chunks=16)
    array = array.map_blocks(torn, dtype="u1", meta=np.empty((0, 0, 0), "u1"), name="torn-once")
    options = {"dataset": dataset_of(array), "on_error": "skip", "block_windows": 5}
    with slid(4, **options) as loader:
        list(loader)
        lost = {tuple(w) for failure in loader.stats().failed for w in failure.windows.tolist()}
        assert len(loader.stats().failed) == 1
        assert loader.stats().lost_windows == len(lost) == 4
    with slid(3, **options) as loader:
        states = [saved(loader), *(saved(loader) for _ in loader)]
    for state, world_size in itertools.product(states[:-1], (1, 2)):
        found = []
        with group(slid, world_size, 4, **options) as ranks:
            for loader in ranks:
                loader.load_state_dict(state)
                list(loader)
                stats = loader.stats()
                found += [tuple(w) for f in stats.failed for w in f.windows.tolist()]
                if world_size == 1:
                    assert stats.windows + stats.lost_windows == stats.total_windows
        assert sorted(found) == sorted(lost)


def test_a_rank_that_came_to_its_end_stays_there():
    """It goes on from the states of one with more windows, whose batches change meanwhile."""
    data = coordinate_dataset(1, height=60, width=16, chunks=64)
    state, taken = None, []
    for size in (2, 1, 1):
        with group(slid, 2, size, dataset=data, block_windows=4) as (longer, shorter):
            assert (longer.windows, shorter.windows) == (4, 1)
            for loader in (longer, shorter) if state else ():
                loader.load_state_dict(state)
            taken += rounds([longer], 1)
            state = saved(longer)
            if len(taken) == size:
                taken += rounds([shorter], 1)
            with pytest.raises(StopIteration):
                shorter.get()
    assert sorted(taken) == sorted(whole(slid, dataset=data, block_windows=4))


@pytest.mark.parametrize("damage", [[[5, 3]], [[0, 10**6]], [[-4, 3]], 7])
def test_damaged_states_of_windows(damage):
    with pytest.raises(StateError):
        slid().load_state_dict({**slid().state_dict(), "left": damage})
