"""Processes that are forked, and processes that end: in real ones, which say nothing on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BEGIN = """
import os, sys
from daskdmed import LightDL, SlidingWindowDL, heatmap
from daskdmed.errors import DaskdmedError
from tests.loading.conftest import SMALL, coordinate_dataset

def light(**options):
    return LightDL(coordinate_dataset(2), **SMALL, **options)

def windows(**options):
    return SlidingWindowDL(coordinate_dataset(2), kernel_size=64, **options)

def values(batch):
    return batch.reshape(len(batch), -1).mean(1)
"""


def run(script):
    return subprocess.run(
        [sys.executable, "-c", BEGIN + script], capture_output=True, text=True, cwd=ROOT
    )


THREADS = """
open_ones = [light(), windows(), light()]
for loader in open_ones:
    next(loader)
started = light().start()
import asyncio, tornado.util
loop = asyncio.new_event_loop()  # as Dask's leave such futures behind now and then
left = loop.create_future()
left.set_exception(tornado.util.TimeoutError("Timeout"))
print("taken")
"""

CLUSTER = """
if __name__ == "__main__":
    import logging
    from distributed import Client, LocalCluster
    # that a worker of the user's finds no scheduler while both end is Dask's to say
    logging.getLogger("distributed.worker").addFilter(lambda r: "heartbeat" not in str(r.msg))
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=":0"
    )
    client = Client(cluster)
    loaders = [light(client=client), windows(client=client), light()]
    for loader in loaders:
        next(loader)
    print("taken")
"""

CLOSING = """
for order in (1, -1):
    loaders = [light().start(), windows(), light(), windows().start()]
    next(loaders[2]), next(loaders[1])
    for loader in loaders[::order]:
        loader.close()
        loader.close()
print("taken")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 2),
    reason="no thread can be started at exit, which Dask does",
)
@pytest.mark.parametrize(
    ("script", "end", "status"),
    [
        (THREADS, "sys.exit(3)", 3),
        (THREADS, "raise SystemError('of the user')", 1),
        (CLUSTER, "", 0),
        (CLOSING, "", 0),
    ],
    ids=["exit", "error", "cluster", "any order"],
)
def test_a_script_that_closes_nothing_ends_in_silence(script, end, status):
    ran = run(script + "\n" + end)
    assert ran.returncode == status, ran.stderr
    assert ran.stdout == "taken\n"
    lines = ran.stderr.splitlines()
    if "raise" in end:
        assert (lines[0], lines[-1]) == (
            "Traceback (most recent call last):",
            "SystemError: of the user",
        )
        lines = [line for line in lines[1:-1] if not line.startswith("  ")]
    assert not lines, ran.stderr


FORK = """
import multiprocessing, threading
import numpy as np
context = multiprocessing.get_context("fork")
image = np.zeros((256, 256, 3), "u1")

def told(what):
    try:
        return what()
    except DaskdmedError as error:
        return f"{type(error).__name__}: {error}"

def child(queue, tasks):
    for name, task in tasks.items():
        queue.put((name, told(task)))

def one(make):
    with make() as loader:
        return len(next(loader)[0])

def in_child(**tasks):
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue, tasks))
    process.start()
    found = dict(queue.get() for _ in tasks)
    process.join()
    assert process.exitcode == 0
    for name, answer in found.items():
        print(name, "|", answer)

heatmap(image, values, kernel_size=64).compute()  # and Dask has threads of its own
before = {"light": lambda: one(light), "heatmap": lambda: heatmap(
    image, values, kernel_size=64).compute().shape}
in_child(**{f"{name} before": task for name, task in before.items()})
with light() as loader:
    next(loader)
    in_child(open=lambda: len(next(loader)[0]), state=lambda: len(loader.state_dict()))
    assert len(next(loader)[0]) == 16
in_child(**{f"{name} after": task for name, task in before.items()})
pid = os.fork()
if not pid:
    loader = windows()
    del loader
    sys.exit(5)
_, status = os.waitpid(pid, 0)
print("exit", os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_forked_child_works_or_is_refused_with_the_remedy():
    ran = run(FORK)
    assert ran.returncode == 0, ran.stderr
    found = dict(line.split(" | ", 1) for line in ran.stdout.splitlines() if "|" in line)
    assert found["light before"] == "16"
    assert found["heatmap before"] == found["heatmap after"] == "(4, 4)"
    refused = found["light after"]
    assert refused.startswith("UsageError: a loader in process ")
    assert 'get_context("spawn") or "forkserver"' in refused
    assert found["open"].startswith("UsageError: the loader LightDL-")
    assert "is used in process" in found["open"]
    assert int(found["state"]) > 3
    assert ran.stdout.splitlines()[-1] == "exit 5"
    # Python from 3.12 on says so of any fork beside threads
    lines = [line for line in ran.stderr.splitlines() if "use of fork() may lead to" not in line]
    assert not lines, ran.stderr
