"""What is said to those who wait."""

from __future__ import annotations

import logging

import dask
import pytest

from daskdmed.core.waiting import Silence, explain, workers_of
from daskdmed.persistence.cluster import connect
from tests.loading.clusters import scale, tcp_cluster
from tests.waiting import until

logger = logging.getLogger("daskdmed.test")


def test_one_line_for_each_silence(caplog):
    silence = Silence("batch", logger, lambda: "slide s is slow")
    assert silence.left == float("inf")
    silence.begin()
    assert 25 < silence.left <= 30
    silence.tell()
    assert not caplog.records
    with dask.config.set({"daskdmed.report-after": "0 s"}):
        for _ in range(2):
            silence.begin()
            silence.tell()
            silence.tell()
            assert silence.left == float("inf")
            silence.end()
    assert [r.message for r in caplog.records] == ["no batch for 0 s: slide s is slow"] * 2
    assert caplog.records[0].levelno == logging.WARNING


@pytest.fixture(scope="module")
def connection():
    with tcp_cluster(1) as connection:
        yield connection


def state_of(cluster, key, state):
    until(lambda: key in cluster.scheduler.tasks and cluster.scheduler.tasks[key].state == state)


def test_workers_are_asked_for_not_remembered(connection, monkeypatch):
    """A client's own thread renews what it knows, without the workers, at any moment."""
    cluster, client = connection
    scale(cluster, 1)

    async def renewed(n_workers=0):
        client._scheduler_identity = {"workers": {}}

    monkeypatch.setattr(client, "_update_scheduler_info", renewed)
    assert not client.scheduler_info()["workers"]
    assert list(workers_of(client)) == list(cluster.scheduler.workers)
    assert connect(client).workers == 1


def test_what_becomes_of_tasks(connection):
    cluster, client = connection
    scale(cluster, 1)
    worker = next(iter(cluster.scheduler.workers))
    held = [
        client.submit(len, "a", key="on-a-gpu", resources={"GPU": 1}),
        client.submit(len, "b", key="elsewhere", workers=["tcp://127.0.0.1:9"]),
    ]
    held.append(client.submit(abs, held[0], key="after"))
    state_of(cluster, "on-a-gpu", "no-worker")
    state_of(cluster, "elsewhere", "no-worker")
    state_of(cluster, "after", "waiting")
    for key in ("on-a-gpu", "after"):
        assert explain(client, [key]) == (
            "task on-a-gpu waits for a worker with resources={'GPU': 1} (they offer [{}])"
        )
    assert explain(client, ["elsewhere"]) == (
        "task elsewhere waits for one of the workers ['tcp://127.0.0.1:9'] "
        f"(there are ['{worker}'])"
    )
    assert "task nobody is unknown to the scheduler" in explain(client, ["nobody"])
    assert "1 workers are there, and nothing is waited for" in explain(client, [])


def test_a_task_that_runs(connection):
    from distributed import Event

    cluster, client = connection
    scale(cluster, 1)
    event = Event("go", client=client)
    future = client.submit(lambda: Event("go").wait(), key="slow")
    state_of(cluster, "slow", "processing")
    worker = next(iter(cluster.scheduler.workers))
    told = explain(client, ["slow"])
    assert told == (
        f"task slow runs or is next on worker {worker}, which has 1 tasks for 1 threads"
    )
    event.set()
    future.result()
    assert explain(client, ["slow"]) == "task slow is done, its result is on its way"


def test_workers_that_are_gone_or_paused_and_a_client_that_is_closed(connection):
    cluster, client = connection
    scale(cluster, 1)
    (worker,) = cluster.scheduler.workers.values()
    cluster.scheduler.running.discard(worker)
    worker.status = type(worker.status).paused
    assert "none of the 1 workers" in explain(client, ["x"])
    assert "paused: a worker pauses when its memory" in explain(client, ["x"])
    scale(cluster, 0)
    assert "has no workers; it goes on when one comes" in explain(client, ["x"])
    client.close()
    assert "does not answer" in explain(client, ["x"])
