"""Feedback reaches the right patient at the right batch, whatever runs at what speed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
from distributed import Client, LocalCluster

from daskdmed import LightDL, SmallChunkCollector
from daskdmed.errors import LoaderClosedError, StateError, UsageError
from daskdmed.loading.feedback import Mailbox
from daskdmed.loading.patientstate import MOST_KEPT
from tests.loading.conftest import SMALL, assert_same_batches, collect, coordinate_dataset

PARAMETERS = {**SMALL, "resident": "4 MiB", "seed": 11}
BATCHES = 20


class Listening(SmallChunkCollector):
    """Crops at (feedback told so far, column of the latest)."""

    stateful = True

    def extract_smallchunk(self, bigchunk, context, rng):
        state = context.state
        for column in context.feedback:
            state["told"] = [*state.get("told", []), column]
        told = state.get("told", [0])
        return len(told), told[-1] % 200


def train(loader, batches, begin=0):
    """A loop that tells something about the patients of each batch."""
    out = []
    for b in range(begin, begin + batches):
        out += collect(loader, 1)
        patient = sorted(set(out[-1][1]))[b % 2]
        loader.feedback(patient, 7 * b + 1)
        if b % 3 == 0:
            loader.feedback(f"p{b % 4}", b + 100)
    return out


@pytest.fixture(scope="module")
def expected(dataset):
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening) as loader:
        return train(loader, BATCHES)


def first_difference(a, b):
    for n, ((xa, _, _), (xb, _, _)) in enumerate(zip(a, b, strict=True)):
        if (xa != xb).any():
            return n
    return None


@pytest.mark.parametrize("lag", [1, 3, 4])
def test_it_counts_from_the_batch_that_it_says(dataset, lag):
    """For residents at once, and never for another patient."""
    options = {**PARAMETERS, "smallchunk_collector": Listening, "feedback_lag": lag}
    with LightDL(dataset, **options) as loader:
        silent = collect(loader, 12)
    with LightDL(dataset, **options) as loader:
        batches = collect(loader, 2)
        patient = silent[2 + lag][1][0]
        assert loader.feedback(patient, 33) == 2 + lag
        batches += collect(loader, 10)
    assert first_difference(batches, silent) == 2 + lag
    for (x, patients, origins), (_, _, before) in zip(batches, silent, strict=True):
        changed = (origins != before).any(axis=1)
        assert {p for p, c in zip(patients, changed, strict=True) if c} <= {patient}
        assert x.shape == (16, 3, 64, 64)


def test_before_the_first_batch_and_by_patient(dataset):
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening, feedback_lag=1) as loader:
        assert loader.feedback(dataset[0], 1) == 1
        assert loader.feedback("p1", 1) == 1
        collect(loader, 1)
        assert loader.feedback("p1", 1) == 2


@pytest.mark.parametrize("pause", [0.0, 0.03])
def test_same_feedback_same_batches_whatever_the_speed(dataset, expected, pause):
    def slow(x):
        time.sleep(pause)
        return x

    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening, batch_tfms=slow) as loader:
        assert_same_batches(train(loader, BATCHES), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_batches_for_any_number_of_threads(dataset, expected, threads):
    local = LocalCluster(
        n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=":0"
    )
    with (
        local,
        Client(local) as client,
        LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening, client=client) as loader,
    ):
        assert_same_batches(train(loader, BATCHES), expected)


@pytest.mark.cluster
def test_same_batches_on_a_cluster_and_after_a_kill(dataset, expected):
    local = LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="1 GiB", dashboard_address=":0"
    )
    with local, Client(local) as client:
        pids = list(client.run(os.getpid).values())
        with LightDL(
            dataset, **PARAMETERS, smallchunk_collector=Listening, client=client
        ) as loader:
            batches = train(loader, 7)
            os.kill(pids[0], signal.SIGKILL)
            batches += train(loader, BATCHES - 7, begin=7)
        assert_same_batches(batches, expected)


@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_state_dict_holds_feedback_that_is_under_way(dataset, expected, at):
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening) as loader:
        train(loader, at)
        state = json.loads(json.dumps(loader.state_dict()))
        assert len(state["feedback"]["under_way"]) >= min(at, 4)
    other = LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening)
    other.load_state_dict(state)
    with other:
        assert_same_batches(train(other, 10, begin=at), expected[at : at + 10])


def test_it_is_kept_for_the_next_admission_and_bounded():
    """Two big chunks in memory, six patients: most feedback finds nobody."""
    dataset = coordinate_dataset(6, height=500, width=500)
    options = {**PARAMETERS, "resident": "1.6 MiB", "smallchunks_per_bigchunk": 8}
    heard = {}

    class Notes(SmallChunkCollector):
        stateful = True

        def extract_smallchunk(self, bigchunk, context, rng):
            if context.feedback:
                heard.setdefault(context.patient, []).append(context.feedback)
            return 0, 0

    with LightDL(dataset, **options, smallchunk_collector=Notes) as loader:
        collect(loader, 1)
        for i in range(MOST_KEPT + 6):
            for p in range(6):
                loader.feedback(f"p{p}", (p, i))
        collect(loader, 12)
    assert set(heard) == {f"p{i}" for i in range(6)}
    for patient, told in heard.items():
        number = int(patient[1:])
        assert len(told) == 1, "each is seen once"
        assert told[0] == tuple((number, i) for i in range(6, MOST_KEPT + 6))


def test_payloads_are_taken_as_they_are_when_told(dataset):
    payload = {"scores": [1]}
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening) as loader:
        loader.feedback("p0", payload)
        payload["scores"].append(2)
        ((_, _, patient, saved),) = loader.state_dict()["feedback"]["under_way"]
    assert (patient, saved) == ("p0", {"scores": [1]})


def test_what_feedback_refuses(dataset):
    with LightDL(dataset, **PARAMETERS) as loader, pytest.raises(UsageError, match="stateful"):
        loader.feedback("p0", 1)
    with LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening) as loader:
        with pytest.raises(UsageError, match=r"patient 'nobody'.*no such patient \(it has 4\)"):
            loader.feedback("nobody", 1)
        with pytest.raises(StateError, match="feedback to patient 'p0' cannot be pickled"):
            loader.feedback("p0", threading.Lock())
    with pytest.raises(LoaderClosedError, match="closed"):
        loader.feedback("p0", 1)
    with pytest.raises(UsageError, match="stateful = True"):
        LightDL(dataset, **PARAMETERS, feedback_lag=2)
    for bad in (0, 1.5, True):
        with pytest.raises(UsageError, match="feedback_lag must be"):
            LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening, feedback_lag=bad)


def test_closing_while_the_engine_waits_for_feedback(dataset):
    loader = LightDL(dataset, **PARAMETERS, smallchunk_collector=Listening, feedback_lag=1)
    with loader:
        loader.get()
    assert not any(t.name == "daskdmed-loader" for t in threading.enumerate())


def test_feedback_goes_on_from_epoch_to_epoch(dataset):
    options = {**PARAMETERS, "smallchunk_collector": Listening}
    with LightDL(dataset, **options) as loader:
        collect(loader, 3)
        loader.feedback("p2", 50)
        loader.set_epoch(1)
        batches = collect(loader, 9)
    told = [o[1] % 512 for _, ps, os in batches for p, o in zip(ps, os, strict=True) if p == "p2"]
    assert 50 in told


def test_a_mailbox_waits_exactly_as_long_as_it_must():
    box = Mailbox(lag=2)
    assert box.collect(0, -1) == []
    assert box.post("a", b"") == 2
    assert box.collect(1, -1) == []
    got = []
    thread = threading.Thread(target=lambda: got.append(box.collect(2, -1)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive(), "batch 2 may still get feedback"
    box.take()
    thread.join(20)
    assert [[m.patient for m in messages] for messages in got] == [["a"]]
    assert box.collect(2, 0) == []
    box.take()
    assert box.under_way()[0] == 1
    assert len(box.under_way()[1]) == 1
    box.take()
    assert box.under_way() == (1, []), "batch 2 is taken: its cursor has it"
    box.interrupt()
    with pytest.raises(LoaderClosedError):
        box.collect(99, -1)
