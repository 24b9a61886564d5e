"""Reading processes that a loader starts: the same batches, shared, and nothing left of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from distributed import Worker
from distributed.comm import CommClosedError

from daskdmed import LightDL, SlidingWindowDL
from daskdmed.core import memory
from daskdmed.errors import BudgetError, LoaderError, UsageError
from daskdmed.persistence import cluster, crew, hosting
from tests.loading.conftest import SMALL, assert_same_batches, collect, coordinate_dataset
from tests.loading.rank_process import PARAMETERS, counting_dataset
from tests.waiting import until

pytestmark = pytest.mark.cluster
BATCHES = 12
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dataset():
    return coordinate_dataset(2, height=700, width=600)


@pytest.fixture(scope="module")
def expected(dataset):
    with LightDL(dataset, **SMALL) as loader:
        return collect(loader, BATCHES)


@pytest.fixture(scope="module")
def client():
    """Of two reading processes that the loaders of this module find there."""
    client, close = hosting.of_this_process(2, None)
    yield client
    close()


def workers(client):
    while True:
        with contextlib.suppress(CommClosedError):  # of one that has just been lost
            return set(client.run(os.getpid).values())


def below(pid):
    """Processes that a process has started, and they."""
    return {p.pid for p in psutil.Process(pid).children(recursive=True)}


def gone(pids):
    return not any(map(alive, pids))


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_same_batches_from_processes_that_two_loaders_share(client, dataset, expected):
    one = LightDL(dataset, **SMALL, workers=2)
    two = SlidingWindowDL(dataset, kernel_size=64, batch_size=16, workers=2)
    with one, two:
        first = collect(one, BATCHES // 2)
        windows = collect(two, 3)
        assert workers(one._cluster.client) == workers(two._cluster.client) == workers(client)
        assert_same_batches(first + collect(one, BATCHES - BATCHES // 2), expected)
    with SlidingWindowDL(dataset, kernel_size=64, batch_size=16) as threads:
        assert_same_batches(windows, collect(threads, 3))
    assert workers(client), "somebody else still uses them"


def test_workers_import_no_torch(client, dataset):
    with LightDL(dataset, **SMALL, workers=2) as loader:
        collect(loader, 2)
        found = client.run(lambda: "torch" in sys.modules)
    assert list(found.values()) == [False, False]


def test_same_batches_when_workers_are_killed(client, dataset, expected):
    with LightDL(dataset, **SMALL, workers=2) as loader:
        batches = collect(loader, 3)
        for pid in workers(client):
            os.kill(pid, signal.SIGKILL)
        assert_same_batches(batches + collect(loader, BATCHES - 3), expected)
    client.wait_for_workers(2)


def test_workers_that_are_killed_while_they_start_are_replaced(client, dataset, expected):
    (host,) = (p for p in psutil.Process().children() if "persistence.host" in str(p.cmdline()))
    others = below(host.pid) - workers(client)
    with LightDL(dataset, **SMALL, workers=2) as loader:
        batches = collect(loader, 2)
        killed = set()
        while len(killed) < 6:  # the first two work, the others have hardly begun
            for pid in below(host.pid) - others - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        assert_same_batches(batches + collect(loader, BATCHES - 2), expected)
    client.wait_for_workers(2)


def test_what_can_be_imported_here_can_be_there(client, dataset, tmp_path, monkeypatch):
    """Also when the processes were started before."""
    (tmp_path / "mine_only.py").write_text("def corner(bigchunk, context, rng): return (0, 0)")
    monkeypatch.syspath_prepend(tmp_path)
    from mine_only import corner

    with LightDL(dataset, **SMALL, workers=2, smallchunk_collector=corner) as loader:
        _, _, chunks = next(loader)
    assert all(c.origin == c.bigchunk.origin for c in chunks)


def test_the_budget_counts_beside_other_loaders_of_the_process(client, dataset, monkeypatch):
    monkeypatch.setattr("daskdmed.core.memory.machine_memory", lambda: 40 << 20)
    with (
        LightDL(dataset, **SMALL) as threads,
        LightDL(dataset, **SMALL, workers=2) as loader,
        pytest.raises(BudgetError, match=rf"{threads.name} 8.00 MiB, {loader.name} 8.00 MiB"),
    ):
        threads.start(), loader.start()
        LightDL(dataset, **SMALL, workers=2).start()


def test_they_end_with_the_last_loader_or_when_it_is_forgotten(dataset, monkeypatch):
    descriptors = psutil.Process().num_fds()
    before = below(os.getpid())
    one, two = (LightDL(dataset, **SMALL, workers=1) for _ in range(2))
    next(one), next(two)
    started = below(os.getpid()) - before
    assert len(started) >= 2
    one.close()
    next(two)
    assert all(map(alive, started))
    del two
    gc.collect()
    until(lambda: gone(started))
    assert not below(os.getpid()) - before
    until(lambda: psutil.Process().num_fds() <= descriptors)


def test_a_host_that_is_killed_is_an_error_and_takes_its_workers_along(dataset):
    before = below(os.getpid())
    with LightDL(dataset, **SMALL, workers=1) as loader:
        next(loader)
        started = below(os.getpid()) - before
        (host,) = (c.pid for c in psutil.Process().children() if c.pid in started)
        os.kill(host, signal.SIGKILL)
        with pytest.raises(LoaderError, match=r"connection to the cluster .*state_dict\(\)"):
            collect(loader, 10_000)
    until(lambda: gone(started))
    with LightDL(dataset, **SMALL, workers=1) as loader:
        next(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be"),
        ({"workers": 1.5}, "workers must be"),
        ({"workers": "processes"}, 'must be "threads" or a number of processes'),
        ({"client": "mine"}, 'must be a distributed.Client, "shared" or None'),
        ({"client": "shared", "workers": "threads"}, "threads cannot be shared"),
    ],
)
def test_what_makes_no_sense(dataset, options, message):
    for make in (LightDL, SlidingWindowDL):
        sizes = SMALL if make is LightDL else {"kernel_size": 64}
        with pytest.raises(UsageError, match=message):
            make(dataset, **sizes, **options)


def test_workers_with_a_client(client, dataset):
    with pytest.raises(UsageError, match=r"workers=2 with client=.*one of the two"):
        LightDL(dataset, **SMALL, client=client, workers=2)


@pytest.mark.parametrize("how", ["frozen", "not there"])
def test_without_a_python_to_start(dataset, monkeypatch, how):
    if how == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/not/there")
    with pytest.raises(UsageError, match=r'is no Python interpreter. Give workers="threads"'):
        LightDL(dataset, **SMALL, workers=3).start()


def test_what_keeps_them_from_starting_is_told(dataset, tmp_path, monkeypatch):
    (tmp_path / "distributed.py").write_text("raise RuntimeError('this one is broken')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoaderError, match=r"(?s)ended while they started.*this one is broken"):
        LightDL(dataset, **SMALL, workers=3).start()


def test_who_does_not_answer_is_not_waited_for_for_ever(dataset, tmp_path, monkeypatch):
    (tmp_path / "distributed.py").write_text("print('slow'); import signal; signal.pause()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hosting, "START_LIMIT", 0.5)
    before = below(os.getpid())
    with pytest.raises(LoaderError, match="have not started within 0 s"):
        LightDL(dataset, **SMALL, workers=3).start()
    until(lambda: not below(os.getpid()) - before)


def test_a_program_that_is_no_python(dataset, monkeypatch):
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode("/bin/false"))
    with pytest.raises(LoaderError, match=r"(?s)`/bin/false -m .*They said:\nnothing"):
        LightDL(dataset, **SMALL, workers=3).start()


def test_ranks_share_them_and_their_memory_counts_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(hosting, "IDLE_LIMIT", 0.5)
    data = counting_dataset(tmp_path / "log", 2)
    options = {**PARAMETERS, "resident": int(0.3 * memory.machine_memory()), "workers": 1}
    ranks = [LightDL(data, **options, rank=rank, world_size=2) for rank in range(2)]
    with ranks[0], ranks[1]:
        for _ in range(len(ranks[0])):
            for loader in ranks:
                next(loader)
        one, two = (loader._cluster.client for loader in ranks)
        assert one.scheduler.address == two.scheduler.address
        with pytest.raises(BudgetError, match=r"together with what others hold \(LightDL-\d+ of"):
            LightDL(data, **{**options, "seed": 99}, client="shared").start()
    counted = Counter((tmp_path / "log").read_text().splitlines())
    assert len(counted) == 2 * 9
    assert set(counted.values()) == {1}
    until(lambda: not list((tmp_path / f"daskdmed-{os.getuid()}").iterdir()))


# -- scripts ------------------------------------------------------------------------------

SCRIPT = """
import sys
import numpy as np
from daskdmed import LightDL

def corner(bigchunk, context, rng):
    if context.draw == 0:
        print("cropping")
    return (0, 0)

image = np.arange(600 * 600, dtype="u1").reshape(600, 600)
loader = LightDL(image, smallchunk_size=64, bigchunk_size=256, resident="1 MiB", batch_size=8,
                 workers=1, smallchunk_collector=corner)
for number, (x, _, _) in enumerate(loader):
    if number == 2:
        sys.stdout.write(f"sum {{int(x.sum())}}\\n")  # in one piece, whoever else writes
        sys.stdout.flush()
        {then}
        break
"""
PLAIN = {"a file": lambda path: ([str(path)], None),
         "-c": lambda path: (["-c", path.read_text()], None),
         "standard input": lambda path: ([], path.read_text())}  # fmt: skip


def program(tmp_path, then, name="a file"):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT).format(then=then))
    arguments, said = PLAIN[name](path)
    return [sys.executable, *arguments], said


@pytest.mark.programs
@pytest.mark.parametrize("name", PLAIN)
def test_no_script_needs_a_main_guard_and_nothing_is_complained_of(tmp_path, name):
    """It ends in the middle of an epoch, with the loader open."""
    command, said = program(tmp_path, "pass", name)
    done = subprocess.run(command, input=said, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # `print` writes a line in parts, between which others may write
    assert "sum" in done.stdout
    assert "cropping" in done.stdout, "what workers print is passed on"


def test_what_workers_print_passes_by_the_text_layer():
    """Which loses lines, in older Pythons, that two threads write at a time."""

    class Losing(io.TextIOWrapper):
        def write(self, text):
            raise AssertionError(text)

    target, notebook = Losing(io.BytesIO(), encoding="utf-8"), io.StringIO()
    for one in (target, notebook):
        hosting._say("größe\n", one)
    assert target.buffer.getvalue().decode() == notebook.getvalue() == "größe\n"


@pytest.mark.programs
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_nothing_is_left_of_a_script_that_is_ended(tmp_path, how):
    command, _ = program(tmp_path, "sys.stdin.read()")
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as script:
        # not `startswith`: a worker's `print` may have written its word before, and no line end yet
        assert any("sum " in line for line in script.stdout)
        started = below(script.pid)
        assert len(started) >= 2
        os.killpg(script.pid, getattr(signal, how))  # as a terminal does with Ctrl-C
        script.stdout.read()
        complaints = script.stderr.read()
        script.wait()
    until(lambda: gone(started))
    if how == "SIGINT":
        # the script's own, and nothing else
        assert complaints.startswith("Traceback")
        assert complaints.rstrip().endswith("KeyboardInterrupt")
        assert complaints.count("Traceback") == 1, complaints
    else:
        assert complaints == ""


ON_A_CLUSTER = """
import sys, time
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

def slow(block):
    time.sleep(0.4)
    return block

if __name__ == "__main__":
    from daskdmed import LightDL

    image = da.zeros((2048, 512), chunks=256, dtype="u1")
    image = image.map_blocks(slow, dtype="u1", meta=np.empty((0, 0), "u1"))
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0",
                      processes={processes}) as cluster:
        with Client(cluster) as client:
            loader = LightDL(image, smallchunk_size=64, bigchunk_size=256, resident="512 kiB",
                             batch_size=8, smallchunks_per_bigchunk=8, client=client)
            while loader.stats().visits_evicted < 2:
                next(loader)
            {then}
"""


def test_a_heartbeat_that_finds_no_scheduler_is_no_news(caplog):
    """Workers of a loader that is closed may be at one just then."""

    async def facts():
        return {}

    async def gone(**_):
        raise CommClosedError("Stream is closed")

    worker = SimpleNamespace(
        address="tcp://here", contact_address="tcp://here", get_metrics=facts, active_keys=(),
        extensions={}, scheduler=SimpleNamespace(heartbeat_worker=gone),
    )  # fmt: skip
    asyncio.run(Worker.heartbeat(worker))
    (told,) = caplog.records
    assert told.levelno == logging.ERROR
    other = logging.makeLogRecord({"msg": "worker died", "levelno": logging.ERROR})
    quiet = cluster._Quiet()
    assert quiet.filter(told)
    assert not crew.is_news(told)
    assert crew.is_news(other)
    quiet.begin()
    for handler in logging.getLogger("distributed").handlers:
        handler.removeFilter(quiet)
    assert not quiet.filter(told)
    assert quiet.filter(other)


@pytest.mark.programs
@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("then", ["loader.close()", "sys.exit(0)"])
def test_a_cluster_that_is_closed_in_the_middle_of_a_read_is_quiet(tmp_path, processes, then):
    script = tmp_path / "script.py"
    script.write_text(ON_A_CLUSTER.format(processes=processes, then=then))
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
