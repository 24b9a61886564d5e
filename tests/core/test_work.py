"""Pieces of work run once each, a bounded number at a time, and say what failed."""

from __future__ import annotations

import threading
import time

import dask
import pytest

from daskdmed.core.work import default_threads, run_all
from daskdmed.errors import UsageError


def test_every_item_once_and_few_at_a_time():
    drawn, done, lock = [], [], threading.Lock()
    running = most = 0

    def items():
        for i in range(60):
            drawn.append(i)
            assert len(drawn) - len(done) <= 4
            yield i

    def work(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001)
        with lock:
            running -= 1
        return item * 2

    run_all(items(), work, lambda item, result: done.append((item, result)), threads=3)
    assert sorted(done) == [(i, 2 * i) for i in range(60)]
    assert most <= 3


def test_the_first_error_ends_it_and_what_was_done_is_told():
    done, tried = [], []

    def work(item):
        tried.append(item)
        if item == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        run_all(range(1000), work, lambda item, _: done.append(item), threads=2)
    assert set(done) == set(tried) - {5}
    assert len(tried) < 20


def test_an_interrupted_caller_leaves_no_threads():
    def interrupt(item, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(range(100), lambda item: None, interrupt, threads=2)
    assert not [t for t in threading.enumerate() if t.name.startswith("daskdmed-store")]


def test_threads_of_the_configuration():
    with dask.config.set(num_workers=7):
        assert default_threads() == 7
    assert default_threads() >= 1


def test_asynchronous_clients_are_refused():
    class Client:
        asynchronous = True

    with pytest.raises(UsageError, match="asynchronous=False"):
        run_all([1], print, client=Client())


@pytest.mark.cluster
def test_on_a_cluster():
    from distributed import Client

    with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as c:
        done = []
        run_all(range(40), lambda i: i + 1, lambda i, r: done.append((i, r)), client=c)
        assert sorted(done) == [(i, i + 1) for i in range(40)]

        def fails(item):
            if item == 3:
                raise ValueError("three")

        with pytest.raises(ValueError, match="three"):
            run_all(range(40), fails, client=c)
