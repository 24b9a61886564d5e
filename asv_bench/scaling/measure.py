"""The costs that a simulation is told, measured on this machine.

What computes is measured in seconds of its processor, so that neighbours on the machine change
little: a process of its own is the scheduler, and another the worker; what they use of their
cores is asked of the system. Seconds for which Dask collects messages are read from where Dask
has them, and stand in `Costs` as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import psutil
from limits import RawTiles

from daskdmed.persistence.ranks import Ranks
from scaling.values import Costs, Fleet

SIZE, BATCH = 224, 64
#: tasks that are asked for at once
TOGETHER = 16


def measured(rounds: int = 200) -> Costs:
    """All costs that can be measured here; `rounds` of each message."""
    decode = decode_rate()
    crop = crop_seconds()
    turn = turn_seconds()
    with cluster() as (client, other, scheduler):
        known, read = task_seconds(client, other, scheduler, rounds)
        ask = _ours(lambda: task_seconds(client, other, scheduler, rounds), 2 * rounds)
        few, many = (meet_seconds(client, scheduler, n, rounds) for n in (8, 64))
        unpack = unpack_rate(client)
    each = max((many - few) / 56, 0.0)
    return replace(
        Costs(),
        decode=decode,
        crop=crop,
        crop_elsewhere=crop,
        unpack=unpack,
        turn=turn,
        ask=ask,
        # a further rank that wants a big chunk is three messages, a task that runs six
        message=(known + read) / 9,
        meet=max(few - 8 * each, 0.0),
        meet_rank=each,
    )


def decode_rate() -> float:
    """Pixels per second of one core, of blocks of the mixed slide."""
    with RawTiles(inputs.slide("mixed")) as tiles:
        numbers = tiles.inside(0, 0, min(4096, tiles.shape[0]), tiles.shape[1])
        began = time.process_time()
        tiles.decode(numbers)
        return tiles.pixels(numbers) / (time.process_time() - began)


def crop_seconds(batches: int = 40) -> float:
    """Of a core, for each small chunk of a loader whose big chunks all are in memory."""
    from dask.array import ones

    import daskdmed

    array = ones((2048, 2048, 3), chunks=2048, dtype="u1")
    patients = [
        daskdmed.Patient(str(i), {"wsi": daskdmed.Record(array=array.map_blocks(np.copy))})
        for i in range(4)
    ]
    options = {"smallchunk_size": SIZE, "batch_size": BATCH, "bigchunk_size": 2048}
    draws = 1 << 16  # nothing is read while it is measured
    with daskdmed.LightDL(
        daskdmed.Dataset("crops", patients), smallchunks_per_bigchunk=draws, **options
    ) as loader:
        for _ in range(8):
            next(loader)
        began = time.process_time()
        for _ in range(batches):
            next(loader)
        return (time.process_time() - began) / batches / BATCH


def turn_seconds(turns: int = 300) -> float:
    """Of a core, to make a turn of the plan of eight machines."""
    plan = Fleet(machines=8).plan()
    next(plan)
    began = time.process_time()
    for _ in range(turns):
        next(plan)
    return (time.process_time() - began) / turns


# -- what a scheduler is asked ------------------------------------------------------------------


@contextmanager
def cluster() -> Iterator[tuple[Any, Any, psutil.Process]]:
    """Two clients of a scheduler and a worker that are processes of their own, and the former."""
    from distributed import Client

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "scheduler.json")
        commands = (
            ["scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", file],
            ["worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--scheduler-file", file],
        )
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "dask", *command],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False"},
            )
            for command in commands
        ]
        try:
            with (
                Client(scheduler_file=file, set_as_default=False, direct_to_workers=True) as one,
                Client(scheduler_file=file, set_as_default=False) as two,
            ):
                one.wait_for_workers(1)
                yield one, two, psutil.Process(running[0].pid)
        finally:
            for process in running:
                process.kill()
                process.wait()


def _of(process: psutil.Process, work: Callable[[], Any]) -> float:
    """Seconds of its cores that a process used for something, beyond what it uses anyway."""
    idle = _used(process, lambda: time.sleep(0.5)) / 0.5
    began = time.perf_counter()
    used = _used(process, work)
    return max(0.0, used - idle * (time.perf_counter() - began))


def _used(process: psutil.Process, work: Callable[[], Any]) -> float:
    def now() -> float:
        files = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9

    before = now()
    work()
    return now() - before


def _ours(work: Callable[[], Any], times: int) -> float:
    return _of(psutil.Process(), work) / times


def task_seconds(
    client: Any, other: Any, scheduler: psutil.Process, rounds: int
) -> tuple[float, float]:
    """Of the scheduler: for a client more that wants a big chunk, and for one that is read.

    A few at a time, as when several ranks ask.
    """
    home = next(iter(client.nthreads()))
    options = {"workers": [home], "allow_other_workers": True, "pure": False}

    def ask(wanted: Any) -> Iterator[Any]:
        for first in range(0, rounds, TOGETHER):
            there = threading.Semaphore(0)
            numbers = range(first, min(first + TOGETHER, rounds))
            futures = [wanted.submit(abs, n, key=("big-chunk", tag, n), **options) for n in numbers]
            for future in futures:
                future.add_done_callback(lambda _, there=there: there.release())
            for _ in futures:
                there.acquire()
            yield from futures

    def tasks(dask_scheduler: Any) -> int:
        # nested, so that the scheduler needs no module of ours
        return len(dask_scheduler.tasks)

    tag, held = os.urandom(4).hex(), []
    read = _of(scheduler, lambda: held.extend(ask(client)))

    def known() -> None:
        for future in ask(other):
            future.release()

    again = _of(scheduler, known)

    def let_go() -> None:
        for future in held:
            future.release()
        while client.run_on_scheduler(tasks):
            time.sleep(0.01)

    return again / rounds, (read + _of(scheduler, let_go)) / rounds


def meet_seconds(client: Any, scheduler: psutil.Process, ranks: int, rounds: int) -> float:
    """Of the scheduler, to hear of a rank and to tell it of so many."""
    plan = f"measured {ranks}"
    everybody = [Ranks(client, plan, number, ranks) for number in range(ranks)]
    for rank in everybody:
        rank.join(0)

    def told() -> None:
        for number in range(rounds):
            everybody[number % ranks].tell()

    told()
    return _of(scheduler, told) / rounds


def unpack_rate(client: Any, times: int = 8) -> float:
    """Bytes per second that this process takes from a worker's socket, in seconds of its core."""
    nbytes = 16 << 20
    futures = [client.submit(np.ones, nbytes, "u1", pure=False) for _ in range(times)]
    client.gather(client.submit(int, 1))

    def fetch() -> None:
        for future in futures:
            client.gather(future, direct=True)

    return nbytes / _ours(fetch, times)
