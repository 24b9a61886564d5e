"""Patients that are remembered: the same on any cluster, after a kill, and in a new process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import LightDL, SmallChunkCollector, stateful
from daskdmed.errors import LoaderClosedError, LoaderError, StateError, UsageError
from daskdmed.loading.assembly import Assembly
from daskdmed.loading.collectors import CollectContext
from daskdmed.persistence.policy import OnePass, Sequential
from tests.loading.clusters import tcp_cluster
from tests.loading.conftest import SMALL, assert_same_batches, collect, coordinate_dataset

BATCHES = 24
#: two visits of the same patient are rarely resident together, and many follow each other
PARAMETERS = {**SMALL, "resident": "4 MiB", "seed": 3}


class Counting(SmallChunkCollector):
    """Crops at a column that counts the draws that the patient remembers."""

    stateful = True

    def extract_smallchunk(self, bigchunk, context, rng):
        state = context.state
        state["draws"] = state.get("draws", 0) + 1
        state.setdefault("visits", [])
        if context.draw == 0:
            state["visits"].append(context.visit)
        if context.draw > 4 + context.visit % 20:
            return None
        return int(rng.integers(100)), state["draws"] % 200


def offsets(loader, n):
    """(visit, draw, patient, remembered draws) of each small chunk."""
    rows = []
    for _ in range(n):
        _, _, chunks = loader.get()
        rows += [
            (c.bigchunk.visit, c.draw, c.patient.id, c.origin[1] - c.bigchunk.origin[1])
            for c in chunks
        ]
    return rows


@pytest.fixture(scope="module")
def expected(dataset):
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Counting) as loader:
        return collect(loader, BATCHES)


def test_a_visit_begins_with_what_the_last_one_left(dataset):
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Counting) as loader:
        rows = offsets(loader, 60)
    # within a visit the count goes up by one per draw
    first, last = {}, {}
    for visit, draw, patient, count in rows:
        assert draw == last.get(visit, (-1, 0, 0))[0] + 1
        if visit in last:
            assert count == (last[visit][1] + 1) % 200
        first.setdefault(visit, count)
        last[visit] = (draw, count, patient)
    # and a visit goes on where some visit of the same patient that left before stopped
    ends = {p: {0} for p in ["p0", "p1", "p2", "p3"]}
    for visit, (_, count, patient) in last.items():
        limit = min(4 + visit % 20, 19)
        ends[patient].add(count + 1 if limit < 19 else count)
    going_on = 0
    for visit, count in first.items():
        assert count - 1 in ends[last[visit][2]]
        going_on += count > 1
    assert going_on > 10


@pytest.mark.parametrize("threads", [1, 2])
def test_same_batches_for_any_number_of_threads(dataset, expected, threads):
    local = LocalCluster(
        n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=":0"
    )
    with local, Client(local) as client:
        with LightDL(
            dataset, **PARAMETERS, smallchunk_collector=Counting(), client=client
        ) as loader:
            assert_same_batches(collect(loader, BATCHES), expected)


@pytest.mark.cluster
def test_same_batches_on_a_cluster_and_after_a_kill(dataset, expected):
    local = LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="1 GiB", dashboard_address=":0"
    )
    with local, Client(local) as client:
        pids = list(client.run(os.getpid).values())
        with LightDL(dataset, **PARAMETERS, smallchunk_collector=Counting, client=client) as loader:
            batches = collect(loader, 8)
            os.kill(pids[0], signal.SIGKILL)
            batches += collect(loader, BATCHES - 8)
        assert_same_batches(batches, expected)


@pytest.mark.parametrize("at", [0, 1, 5, 6, 7, 8, 13])
def test_state_dict_holds_what_was_remembered(dataset, expected, at):
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Counting) as loader:
        collect(loader, at)
        state = json.loads(json.dumps(loader.state_dict()))
    other = LightDL(dataset, **PARAMETERS, smallchunk_collector=Counting)
    other.load_state_dict(state)
    with other:
        assert_same_batches(collect(other, 9), expected[at : at + 9])
        # and once more from there
        again = LightDL(dataset, **PARAMETERS, smallchunk_collector=Counting)
        again.load_state_dict(other.state_dict())
    with again:
        assert_same_batches(collect(again, 2), expected[at + 9 : at + 11])


CONTINUE = """
import json, sys
import numpy as np
from daskdmed import LightDL
from tests.loading.conftest import collect, coordinate_dataset
from tests.loading.test_state import PARAMETERS, Counting
loader = LightDL(coordinate_dataset(), **PARAMETERS, smallchunk_collector=Counting)
loader.load_state_dict(json.load(open(sys.argv[1])))
with loader:
    np.savez(sys.argv[2], *[x for x, _, _ in collect(loader, 6)])
"""


def test_state_goes_on_in_a_new_process(dataset, expected, tmp_path):
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Counting) as loader:
        collect(loader, 11)
        (tmp_path / "state.json").write_text(json.dumps(loader.state_dict()))
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    command = [sys.executable, "-c", CONTINUE, "state.json", "x.npz"]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root})
    with np.load(tmp_path / "x.npz") as saved:
        pixels = [saved[k] for k in saved.files]
    assert all(np.array_equal(a, b[0]) for a, b in zip(pixels, expected[11:17], strict=True))


def test_state_is_of_the_batch_last_taken_not_of_what_was_made_ahead(dataset):
    # no first visit ends so soon: each begins from nothing, and no draw is counted twice
    parameters = {**PARAMETERS, "smallchunks_per_bigchunk": 200}
    with LightDL(dataset, **parameters, smallchunk_collector=Counting) as loader:
        collect(loader, 3)
        while not loader.stats().batches_ready:
            pass
        states = loader.state_dict()["states"]
        drawn = sum(s["draws"] for _, s in states["visits"].values() if s)
        left = sum(s["draws"] for s in states["left"].values())
    assert drawn + left >= 48
    assert drawn + left < 48 + 16


def test_a_state_that_cannot_be_pickled_is_an_error_that_says_so(dataset):
    @stateful
    def keeps_a_lock(bigchunk, context, rng):
        context.state["lock"] = threading.Lock()
        return 0, 0

    with (
        LightDL(dataset, **PARAMETERS, smallchunk_collector=keeps_a_lock) as loader,
        pytest.raises(StateError, match=r"context.state of patient 'p\d' cannot be pickled.*lock"),
    ):
        next(loader)


@pytest.mark.cluster
def test_a_state_that_cannot_be_pickled_on_a_cluster(dataset):
    @stateful
    def keeps_a_generator(bigchunk, context, rng):
        context.state["g"] = (i for i in range(3))
        return 0, 0

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
        LightDL(
            dataset, **PARAMETERS, smallchunk_collector=keeps_a_generator, client=client
        ) as loader,
        pytest.raises(StateError, match=r"patient 'p\d' cannot be pickled.*generator"),
    ):
        next(loader)


def test_using_state_without_declaring_it_says_what_to_declare(dataset):
    for use in (lambda context: context.state, lambda context: context.feedback):

        def undeclared(bigchunk, context, rng, use=use):
            use(context)
            return 0, 0

        with (
            LightDL(dataset, **PARAMETERS, smallchunk_collector=undeclared) as loader,
            pytest.raises(LoaderError, match="stateful = True"),
        ):
            next(loader)


def test_local_classes_and_arrays_may_be_remembered(dataset):
    class Local:
        n = 0

    @stateful
    def collector(bigchunk, context, rng):
        mine = context.state.setdefault("mine", Local())
        mine.n += 1
        context.state["seen"] = context.state.get("seen", np.zeros(3)) + 1
        assert context.state["seen"][0] == mine.n
        return 0, mine.n

    with LightDL(dataset, **PARAMETERS, smallchunk_collector=collector) as loader:
        collect(loader, 12)
        saved = loader.state_dict()
    other = LightDL(dataset, **PARAMETERS, smallchunk_collector=collector)
    other.load_state_dict(saved)
    with other:
        collect(other, 2)


def test_a_collector_is_tried_without_any_loader():
    context = CollectContext("p", "wsi", {}, (64, 64), 0, 0, 0, remembered={}, messages=("hard",))
    assert context.feedback == ("hard",)
    context.state["n"] = 1
    assert context.state == {"n": 1}
    with pytest.raises(UsageError, match="daskdmed.stateful"):
        _ = CollectContext("p", "wsi", {}, (64, 64), 0, 0, 0).state


def test_a_failing_collector_under_skip_leaves_its_state_behind(dataset):
    @stateful
    def fails_at_seven(bigchunk, context, rng):
        context.state["n"] = context.state.get("n", 0) + 1
        if context.state["n"] % 7 == 0:
            raise RuntimeError("seven")
        return 0, context.state["n"]

    options = {**PARAMETERS, "smallchunk_collector": fails_at_seven, "on_error": "skip"}
    with LightDL(dataset, **options) as loader:
        rows = offsets(loader, 20)
    assert max(n for *_, n in rows) > 14, "visits go on counting after the failure"


# -- states that are not ours ----------------------------------------------------------------


def test_damaged_states_and_those_of_others_are_refused(dataset):
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Counting) as loader:
        collect(loader, 3)
        state = loader.state_dict()
    plain = LightDL(dataset, **PARAMETERS)
    with pytest.raises(StateError, match="feedback_lag: saved 4, now None"):
        plain.load_state_dict(state)
    same = LightDL(dataset, **PARAMETERS, smallchunk_collector=Counting)
    with pytest.raises(StateError, match="damaged.*states"):
        same.load_state_dict({k: v for k, v in state.items() if k != "states"})
    with pytest.raises(StateError, match="damaged"):
        same.load_state_dict({**state, "ended": 3})
    with pytest.raises(StateError, match="version None"):
        same.load_state_dict({})
    with pytest.raises(StateError, match="version None"):
        same.load_state_dict(None)


# -- epochs ------------------------------------------------------------------------------------


FINITE = {**SMALL, "batch_size": 50}


def one_epoch(loader):
    """(patient, y, x) of the big chunk of each small chunk, and their batches' sizes."""
    regions, sizes = [], []
    for _, _, chunks in loader:
        regions += [(c.patient.id, *c.bigchunk.origin) for c in chunks]
        sizes.append(len(chunks))
    return regions, sizes


@pytest.mark.parametrize("policy", [OnePass, Sequential])
def test_every_region_once_per_epoch_in_another_order(dataset, policy):
    with LightDL(dataset, **FINITE, policy=policy(), drop_last=False) as loader:
        assert len(loader) == 15
        epochs = [one_epoch(loader) for _ in range(3)]
        assert loader.epoch == 2
        stats = loader.stats()
    for regions, sizes in epochs:
        assert sizes == [50] * 14 + [20]
        counts = {r: regions.count(r) for r in regions}
        assert len(counts) == 4 * 9
        assert set(counts.values()) == {20}
    assert epochs[0][0] != epochs[1][0] != epochs[2][0]
    assert stats.batches == 45
    assert stats.visits_admitted == 3 * 36


def test_drop_last_and_length(dataset):
    with LightDL(dataset, **FINITE, policy=OnePass()) as loader:
        assert len(loader) == 14
        assert one_epoch(loader)[1] == [50] * 14
    with LightDL(dataset, **FINITE, policy=OnePass(), epoch_length=6) as loader:
        assert len(loader) == 6
        # passes are kept apart: the third iteration ends with the plan
        assert [len(one_epoch(loader)[1]) for _ in range(4)] == [6, 6, 2, 6]
        assert loader.epoch == 1
    own = LightDL(dataset, **FINITE, policy=lambda situation, rng: None)
    with pytest.raises(TypeError, match="policy of your own"):
        len(own)


@pytest.mark.parametrize(("drop_last", "lengths"), [(True, [4, 4, 4]), (False, [5, 5, 5])])
def test_ranks_of_a_finite_plan(dataset, drop_last, lengths):
    options = {**FINITE, "policy": OnePass(), "drop_last": drop_last}
    with LightDL(dataset, **options) as loader:
        whole = collect(loader, len(loader))
    parts = []
    for rank in range(3):
        with LightDL(dataset, **options, rank=rank, world_size=3) as loader:
            parts.append(collect(loader, len(loader)))
            with pytest.raises(StopIteration):
                next(loader)
    assert [len(p) for p in parts] == lengths
    union = [parts[b % 3][b // 3] for b in range(sum(lengths))]
    assert_same_batches(union, whole[: len(union)])


def test_set_epoch_is_a_function_of_seed_and_epoch(dataset):
    def epoch(loader, number, n=5):
        loader.set_epoch(number)
        return collect(loader, n)

    with LightDL(dataset, **SMALL) as loader:
        zero = collect(loader, 5)
        one = epoch(loader, 1)
        two = epoch(loader, 2)
        assert not np.array_equal(one[0][2], zero[0][2])
        assert not np.array_equal(one[0][2], two[0][2])
        assert_same_batches(epoch(loader, 1), one)
        assert_same_batches(epoch(loader, 0), zero)
        rest = collect(loader, 2)
        loader.set_epoch(0)
        assert not np.array_equal(collect(loader, 1)[0][2], zero[0][2]), "the same epoch goes on"
    with LightDL(dataset, **SMALL) as loader:
        loader.set_epoch(0)
        assert_same_batches(collect(loader, 7), zero + rest)
        for bad in (-1, 1.5, True):
            with pytest.raises(UsageError, match="epoch must be"):
                loader.set_epoch(bad)
    with pytest.raises(LoaderClosedError):
        loader.set_epoch(3)


@pytest.mark.parametrize("plan", [{"policy": OnePass()}, {"epoch_length": 15}], ids=list)
def test_resuming_in_the_middle_of_an_epoch_is_exact(dataset, plan):
    """A training loop that calls set_epoch, stopped anywhere."""
    options = {**FINITE, **plan, "smallchunk_collector": Counting}

    def loop(loader, first):
        for epoch in range(first, 3):
            loader.set_epoch(epoch)
            for x, _, _ in loader:
                yield epoch, x.numpy().copy()

    expected = []
    with LightDL(dataset, **options) as loader:
        states = {0: loader.state_dict()}
        for at, batch in enumerate(loop(loader, 0)):
            expected.append(batch)
            states[at + 1] = json.loads(json.dumps(loader.state_dict()))
    for at in (0, 3, 14, 15, 20):
        other = LightDL(dataset, **options)
        other.load_state_dict(states[at])
        with other:
            rest = list(loop(other, states[at]["epoch"]))
        assert [e for e, _ in rest] == [e for e, _ in expected[at:]]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(rest, expected[at:], strict=True))


def test_a_state_counts_for_more_than_the_epoch_set_before(dataset):
    options = {**SMALL, "epoch_length": 3}
    with LightDL(dataset, **options) as loader:
        collect(loader, 3)
        loop = list(loader)
        state = loader.state_dict()
        expected = collect(loader, 3)
    assert len(loop) == 3
    other = LightDL(dataset, **options)
    other.set_epoch(0)
    other.load_state_dict(state)
    with other:
        assert_same_batches(collect(iter(other), 3), expected)


def test_what_fails_to_begin_leaves_the_loader_as_it_was(dataset, monkeypatch):
    with LightDL(dataset, **SMALL) as loader:
        loader.set_epoch(1)
        expected = collect(loader, 2)
    with LightDL(dataset, **SMALL) as loader:
        next(loader)
        loader.set_epoch(1)
        with monkeypatch.context() as broken:
            broken.setattr(Assembly, "engine", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                next(loader)
        assert_same_batches(collect(loader, 2), expected)


def test_an_interrupted_iteration_is_finished_first(dataset):
    with LightDL(dataset, **SMALL, epoch_length=5) as loader:
        iterator = iter(loader)
        for _ in range(3):
            next(iterator)
        state = loader.state_dict()
        iterator.close()
    other = LightDL(dataset, **SMALL, epoch_length=5)
    other.load_state_dict(state)
    with other:
        assert [sum(1 for _ in other) for _ in range(3)] == [2, 5, 5]
    done = LightDL(dataset, **SMALL, epoch_length=5)
    done.load_state_dict({**state, "iterated": 5 * 16})
    with done:
        assert sum(1 for _ in done) == 5


def test_states_of_patients_go_on_from_epoch_to_epoch(dataset):
    options = {**FINITE, "policy": OnePass(), "smallchunk_collector": Counting}
    with LightDL(dataset, **options) as loader:
        list(loader)
        list(loader)
        left = loader.state_dict()["states"]["left"]
    assert set(left) == {"p0", "p1", "p2", "p3"}
    for state in left.values():
        # visits are numbered from 0 in each epoch, and in order within one
        assert state["visits"] != sorted(set(state["visits"]))


def test_what_epochs_leave_behind(dataset):
    """One thread and one cluster, however many epochs."""
    with LightDL(dataset, **SMALL, epoch_length=2) as loader:
        for epoch in range(4):
            loader.set_epoch(epoch)
            assert sum(1 for _ in loader) == 2
            names = [t.name for t in threading.enumerate()]
            assert names.count("daskdmed-loader") == 1
        loader.set_epoch(9)
    assert not any(t.name == "daskdmed-loader" for t in threading.enumerate())
    with coordinate_loader() as loader:
        loader.set_epoch(1)
        loader.set_epoch(2)
        assert loader.stats().batches == 0


def coordinate_loader():
    return LightDL(coordinate_dataset(2), **SMALL)


class Fickle(Counting):
    """Counts like `Counting`, and ends visits now and then."""

    def extract_smallchunk(self, bigchunk, context, rng):
        context.state["draws"] = context.state.get("draws", 0) + 1
        if rng.random() < 0.03:
            return None
        return int(rng.integers(100)), context.state["draws"] % 200


@pytest.mark.cluster
def test_states_with_quotas_when_visits_stand_in_for_others(dataset):
    from daskdmed.loading.quotas import Quota

    options = {
        **SMALL,
        "resident": "16 MiB",
        "quotas": [Quota(6, patients={"y": 1})],
        "smallchunk_collector": Fickle,
    }
    with LightDL(dataset, **options) as loader:
        expected = collect(loader, BATCHES)
    with LightDL(dataset, **options) as loader:
        collect(loader, 7)
        state = loader.state_dict()
    other = LightDL(dataset, **options)
    other.load_state_dict(state)
    with other:
        assert_same_batches(collect(other, 5), expected[7:12])
    with (
        tcp_cluster(2) as (_, client),
        LightDL(dataset, **options, client=client) as loader,
    ):
        assert_same_batches(collect(loader, BATCHES), expected)
