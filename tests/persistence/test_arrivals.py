"""What was asked for is told of once it is there, whatever becomes of the cluster meanwhile."""

from __future__ import annotations

import asyncio
import threading

import dask.array as da
import numpy as np
import pytest
from distributed import Client

from daskdmed.core.region import Region
from daskdmed.errors import LoaderError
from daskdmed.images.arrayview import ArrayView
from daskdmed.persistence.arrivals import Arrivals
from daskdmed.persistence.cluster import Workers
from daskdmed.persistence.reading import (
    Job,
    ReadFailure,
    Ticket,
    leave_ticket,
    read_jobs,
    read_ticket,
)
from daskdmed.persistence.units import Unit

PIXELS = np.arange(60 * 50 * 3, dtype="u1").reshape(60, 50, 3)
JOBS = (Job(ArrayView(da.from_array(PIXELS, chunks=(20, 20, 3)), 2), None, Region((0, 0), (9, 8))),)
#: far longer than anything takes, for what would else hang
LONG = 120


@pytest.fixture(scope="module")
def client():
    with Client(
        processes=False,
        n_workers=1,
        threads_per_worker=1,
        dashboard_address=":0",
        worker_dashboard_address=None,
        set_as_default=False,
    ) as client:
        yield client


@pytest.fixture
def arrivals(client):
    return Arrivals(client, Workers(client), in_process=True, tell=str, count=str)


def asked(client, call, *args, key, ticket=None):
    """A unit whose task has run without filling the ticket."""
    future = client.submit(call, *args, key=key)
    future.exception()  # waits
    return Unit((), key, JOBS, future=future, ticket=ticket or Ticket(JOBS), waiting_for={3})


def await_call_back(client):
    """Until Dask's thread for callbacks has called back; it has one for the process."""
    called = threading.Event()
    client.submit(int, key="called-back", pure=False).add_done_callback(lambda _: called.set())
    assert called.wait(LONG)


@pytest.mark.parametrize("result", ["of an earlier task", "none"])
def test_a_result_that_dask_has_is_taken(client, arrivals, result):
    call = {"none": (read_ticket, "nobody's"), "of an earlier task": (read_jobs, JOBS)}[result]
    unit = asked(client, *call, key=("big-chunk", result))
    arrivals.expect(unit)
    assert arrivals.wait([unit]) is unit
    assert np.array_equal(unit.ticket.result, PIXELS[:9, :8])


def test_a_result_that_never_comes_keeps_nobody_else_waiting(client, arrivals, monkeypatch):
    """As when a cluster is closed just then: Dask has one thread to call back in."""
    begun = threading.Event()

    async def never(*args, **kwargs):
        begun.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(client, "_gather", never)
        late = asked(client, read_ticket, "nobody's", key=("big-chunk", "late"))
        arrivals.expect(late)
        assert begun.wait(LONG)
        await_call_back(client)
    assert not late.ticket.done
    late.waiting_for.clear()


@pytest.mark.parametrize("let_go", [False, True])
def test_a_task_that_is_lost_is_a_failure_for_who_waits(client, arrivals, monkeypatch, let_go):
    """Loaders that begin anew share tickets with the epoch that is over."""
    gone = threading.Event()

    async def lost(*args, **kwargs):
        if let_go:
            unit.waiting_for.clear()  # as closing does, before it lets the future go
        gone.set()
        raise LoaderError("no worker holds it")

    key = ("big-chunk", f"let go: {let_go}")
    ticket = leave_ticket(str(key), JOBS)
    unit = asked(client, read_ticket, "nobody's", key=key, ticket=ticket)
    with monkeypatch.context() as patch:
        patch.setattr(client, "_gather", lost)
        arrivals.expect(unit)
        assert gone.wait(LONG)
        client.sync(asyncio.sleep, 0)  # what was raised has been met
    if let_go:
        assert not ticket.done
    else:
        assert arrivals.wait([unit]) is unit
        assert isinstance(ticket.result, ReadFailure)


def test_what_was_let_go_is_not_asked_for(client, arrivals, monkeypatch):
    calls = []

    async def gather(*args, **kwargs):
        calls.append(args)
        return [None]

    unit = asked(client, read_ticket, "nobody's", key=("big-chunk", "gone"))
    unit.waiting_for.clear()
    with monkeypatch.context() as patch:
        patch.setattr(client, "gather", gather)
        arrivals.expect(unit)
        await_call_back(client)
        client.sync(asyncio.sleep, 0)  # what the loop was given in the callback has begun
    assert not calls
    assert not unit.ticket.done
