"""Blocks of work run once each, a bounded number at a time, and say what failed."""

from __future__ import annotations

import logging
import os
import signal
import threading

import dask
import numpy as np
import pytest
from dask.diagnostics import Callback

from daskdmed import events
from daskdmed.core.clusterwork import ClusterRun
from daskdmed.core.work import Job, call_graph, default_threads, run, run_all
from daskdmed.errors import StoreError, UsageError
from tests.loading.clusters import scale, tcp_cluster


class Squares(Job):
    """Squares of numbers, kept in a dictionary."""

    name = "squares"
    wants_results = True

    def __init__(self, numbers, call=lambda n: n * n, image="an image", kept=""):
        self.numbers, self.call, self.image, self.kept = list(numbers), call, image, kept
        self.total, self.found, self.calls = len(self.numbers), {}, []

    def graph(self):
        return call_graph(self.name, self.call, {(i, 0): n for i, n in enumerate(self.numbers)})

    def mark(self, index, result):
        self.finished += 1
        self.found[index] = result

    def flush(self):
        self.calls.append("flush")

    def finish(self):
        self.calls.append("finish")
        return sorted(self.found.values())

    def state(self):
        return self.kept and f"{self.finished} of {self.total} are kept"


def left_over():
    return [t for t in threading.enumerate() if t.name.startswith("daskdmed-")]


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_every_item_once_and_as_many_at_a_time_as_there_are_threads(scheduler):
    done, lock = [], threading.Lock()
    running = most = 0

    def call(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert (threading.current_thread() is threading.main_thread()) == (scheduler != "threads")
        with lock:
            running -= 1
        return item * 2

    with dask.config.set(num_workers=3, scheduler=scheduler):
        run_all("doubling", range(60), call, lambda item, result: done.append((item, result)))
    assert sorted(done) == [(i, 2 * i) for i in range(60)]
    assert most <= (3 if scheduler == "threads" else 1)
    assert not left_over()


def test_one_thread_goes_from_the_first_to_the_last():
    done = []
    with dask.config.set(num_workers=1):
        run_all("test", range(40), str, lambda item, _: done.append(item))
    assert done == list(range(40))


def test_the_first_error_ends_it_and_what_was_done_is_told():
    done, tried = [], []

    def call(item):
        tried.append(item)
        if item == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"), dask.config.set(num_workers=2):
        run_all("trying", range(1000), call, lambda item, _: done.append(item))
    assert set(done) == set(tried) - {5}
    assert len(tried) < 1000


def test_blocks_beside_the_one_that_fails_end_and_are_recorded():
    both, failed = threading.Barrier(2), threading.Event()

    def call(item):
        both.wait()
        if item == 0:
            failed.set()
            raise ValueError("zero")
        failed.wait()
        return item

    job = Squares(range(2), call)
    with pytest.raises(ValueError, match="zero"), dask.config.set(num_workers=2):
        run([job], name="squares")
    assert job.found == {(1, 0): 1}
    assert job.calls == ["flush"]


def test_an_interrupted_caller_leaves_no_threads():
    def interrupt(item, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all("waiting", range(100), lambda item: None, interrupt)
    assert not left_over()


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_ctrl_c_lets_running_blocks_end_and_records_them(elsewhere):
    """Also when the system gives the signal to another thread, which does not wake this one."""
    begun, interrupted = threading.Event(), threading.Event()

    def call(item):
        begun.set()
        interrupted.wait()
        return item

    def press():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    def note(signum, frame):
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    presser = threading.Thread(target=press)
    presser.start()
    how = signal.SIG_BLOCK if elsewhere else signal.SIG_UNBLOCK
    mask = signal.pthread_sigmask(how, [signal.SIGINT])
    job = Squares(range(50), call)
    try:
        with pytest.raises(KeyboardInterrupt), dask.config.set(num_workers=1):
            run([job], name="squares")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        presser.join()
    assert 0 < len(job.found) < 50
    assert job.calls == ["flush"]
    assert not left_over()


def test_the_next_job_is_prepared_when_few_blocks_are_left():
    """Jobs of one block each: as many of them run at once as there are threads."""
    together = threading.Barrier(4)
    prepared = []

    def jobs():
        for number in range(12):
            open_blocks = number - sum(job.finished for job in prepared)
            assert open_blocks < 8
            prepared.append(Squares([number], lambda n: (together.wait(), n)[1]))
            yield prepared[-1]

    with dask.config.set(num_workers=4):
        assert run(jobs(), name="squares") == [[n] for n in range(12)]


class Later(Squares):
    """Squares that need those of another job."""

    needs_those_before = True

    def __init__(self, first, numbers):
        super().__init__(numbers)
        self.first = first

    def graph(self):
        assert self.first.finished == self.first.total
        return super().graph()


def chain():
    jobs = [Squares(range(40))]
    for count in (0, 7, 3):
        jobs.append(Later(jobs[-1], range(count)))
    return [*jobs, Squares(range(2))]


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_a_job_may_need_those_before(scheduler):
    with dask.config.set(scheduler=scheduler):
        results = run(chain(), name="squares")
    assert [len(found) for found in results] == [40, 0, 7, 3, 2]


def test_an_error_while_a_job_is_prepared_lets_the_others_end_their_blocks():
    begun, go = threading.Event(), threading.Event()

    def slow(n):
        begun.set()
        go.wait()
        return n

    first = Squares([1], slow)

    def jobs():
        yield first
        begun.wait()
        go.set()
        raise UsageError("no such image")

    with pytest.raises(UsageError, match="no such image"):
        run(jobs(), name="squares")
    assert first.found == {(0, 0): 1}


def test_errors_of_others_become_store_errors_that_say_how_far_it_is():
    def call(n):
        if n == 3:
            raise ZeroDivisionError("three")
        return n

    with dask.config.set(num_workers=1), pytest.raises(StoreError) as caught:
        run([Squares(range(9), call, image="a.svs", kept="yes")], name="squares")
    assert "squares of a.svs stopped: ZeroDivisionError: three" in str(caught.value)
    assert "of 9 are kept" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_own_errors_stay_what_they_are_and_get_a_note():
    def call(n):
        raise UsageError("no")

    with pytest.raises(UsageError) as caught:
        run([Squares(range(9), call, kept="yes")], name="squares")
    assert caught.value.__notes__ == ["0 of 9 are kept"]


def test_events_tell_how_a_run_goes():
    seen = []
    end = events.subscribe(seen.append)
    try:
        run([Squares([3, 4], image="a"), Squares([], image="b")], name="squares")
        with pytest.raises(ZeroDivisionError):
            run([Squares([0], lambda n: 1 / n, image="c")], name="squares")
    finally:
        end()
    kinds = {i: [type(e).__name__ for e in seen if e.image == i] for i in "abc"}
    assert kinds["a"] == ["RunStarted", "BlockDone", "BlockDone", "RunFinished"]
    assert kinds["b"] == kinds["c"] == ["RunStarted", "RunFinished"]
    assert seen[-1].error == "ZeroDivisionError: division by zero"
    assert {e.run for e in seen if e.image in "ab"}.isdisjoint({e.run for e in seen[-2:]})


def test_progress_is_shown_when_asked_for(capsys):
    run([Squares(range(3)), Squares(range(4))], name="squares", show=True)
    assert "7/7" in capsys.readouterr().err


def test_callbacks_of_dask_see_the_blocks():
    """So that its own progress bar and profilers work."""
    seen = []
    with Callback(posttask=lambda key, *_: seen.append(key)):
        run([Squares(range(3))], name="squares")
    assert sum(isinstance(key, tuple) and key[0].startswith("squares-") for key in seen) == 3


def test_threads_of_the_configuration():
    from concurrent.futures import ThreadPoolExecutor

    with dask.config.set(num_workers=7):
        assert default_threads() == 7
    assert default_threads() >= 1
    names = []
    with ThreadPoolExecutor(3, "mine") as pool, dask.config.set(pool=pool):
        assert default_threads() == 3
        run_all("x", range(9), lambda _: names.append(threading.current_thread().name))
    assert len(names) == 9
    assert all(name.startswith("mine") for name in names)


def test_asynchronous_clients_are_refused():
    class Client:
        asynchronous = True

    with pytest.raises(UsageError, match="asynchronous=False"):
        run_all("x", [1], print, client=Client())


@pytest.fixture(scope="module")
def client():
    from distributed import Client

    with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as c:
        yield c


@pytest.mark.cluster
def test_on_a_cluster(client):
    done = []
    run_all("adding", range(40), lambda i: i + 1, lambda i, r: done.append((i, r)), client=client)
    assert sorted(done) == [(i, i + 1) for i in range(40)]

    def fails(item):
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        run_all("failing", range(40), fails, client=client)
    jobs = (Squares(range(n)) for n in (0, 3, 200, 1))
    results = run(jobs, name="squares", client=client)
    assert results == [[i * i for i in range(n)] for n in (0, 3, 200, 1)]


@pytest.mark.cluster
def test_a_job_on_a_cluster_may_need_those_before(client):
    results = run(chain(), name="squares", client=client)
    assert [len(found) for found in results] == [40, 0, 7, 3, 2]


def test_few_blocks_of_pixels_wait_for_a_slow_model(client, monkeypatch):
    with pytest.raises(UsageError, match="no worker offers"):
        run([Squares(range(3))], name="squares", client=client, resources={"GPU": 1})
    asked = []
    monkeypatch.setattr(ClusterRun, "_get", _noting(ClusterRun._get, asked))
    run([Squares(range(200))], name="squares", client=client)
    assert asked[0] == 1  # the function, once
    assert sum(asked) == 201
    assert max(asked) <= 64


def test_a_run_without_workers_says_so_and_goes_on_when_one_comes(caplog):
    said, found = threading.Event(), []

    class Told(logging.Handler):
        def emit(self, record):
            said.set()

    handler = Told()
    logging.getLogger("daskdmed.work").addHandler(handler)
    try:
        with tcp_cluster(0) as (cluster, client), dask.config.set({"daskdmed.report-after": 0}):
            job = Squares(range(5))
            runner = threading.Thread(
                target=lambda: found.append(run([job], name="squares", client=client))
            )
            runner.start()
            said.wait()
            scale(cluster, 1)
            runner.join()
    finally:
        logging.getLogger("daskdmed.work").removeHandler(handler)
    assert found == [[[0, 1, 4, 9, 16]]]
    (line,) = [r.message for r in caplog.records if "has no workers" in r.message][:1]
    assert line.startswith("no block of squares for 0 s: the cluster at tcp://")


def _noting(get, asked):
    def noting(self, graph, keys, **options):
        asked.append(len(keys))
        return get(self, graph, keys, **options)

    return noting


@pytest.mark.cluster
def test_the_dashboard_shows_what_is_done(client):
    """Dask groups tasks by the beginning of their keys."""
    run([Squares(np.arange(5))], name="squares", client=client)
    for name in ("to-ome-zarr", "tissue"):
        run_all(name, range(3), _nothing, client=client)
    names = client.run_on_scheduler(lambda dask_scheduler: dict(_counts(dask_scheduler)))
    assert names["squares"] >= 5
    assert names["to-ome-zarr"] == 3
    assert names["tissue"] == 3


def _nothing(item):
    return None


def _counts(scheduler):
    return {name: prefix.state_counts["memory"] for name, prefix in scheduler.task_prefixes.items()}
