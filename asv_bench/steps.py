"""What a loader takes from the training beside it: a step's time, to that with cached batches.

The step runs in the main thread, on batches that are taken at a pace, and does nothing but
compute: waiting for a batch is not part of it. Each measurement is a process of its own, in
which batches out of memory are measured before and after.

    python steps.py JOB                   is what is started; JOB is JSON
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import scenarios
from scenarios import BATCH, CROP

#: seconds of a step
STEP = 0.012
RATES = (500, 2_000, 4_000)
WORKERS: tuple[int | str, ...] = (1, 2, "threads")
Step = Callable[[Any], None]


@dataclass(frozen=True)
class Job:
    """`kind` of the step, patches per second that it takes, `workers` of the loader."""

    paths: tuple[str, ...]
    kind: str
    rate: int
    workers: int | str
    seconds: float


@dataclass(frozen=True)
class Slowdown:
    """How a step did beside a loader.

    Parameters
    ----------
    slowdown : float
        Seconds of a step, to those with batches out of memory.
    step : float
        Seconds of the latter.
    pace : float
        Patches per second that were taken, to those that should have been.
    """

    slowdown: float
    step: float
    pace: float


def python_step() -> Step:
    """Work of the interpreter, as in a training loop with its bookkeeping."""

    def work(turns: int) -> int:
        total = 0
        for number in range(turns):
            total += number * number % 7
        return total

    turns = int(STEP / _seconds(lambda: work(20_000)) * 20_000)

    def step(batch: Any) -> None:
        work(turns)

    return step


def torch_step() -> Step:
    """Forward and backward of a small network on some of a batch, on one thread."""
    import torch

    torch.set_num_threads(1)
    net = scenarios.small_cnn().train()

    def work(batch: Any, count: int) -> None:
        loss = net(batch[:count].float().div_(255)).square().mean()
        net.zero_grad()
        loss.backward()

    some = torch.zeros((4, 3, CROP, CROP), dtype=torch.uint8)
    count = max(2, min(BATCH, round(4 * STEP / _seconds(lambda: work(some, 4)))))
    return lambda batch: work(batch, count)


STEPS: dict[str, Callable[[], Step]] = {"python": python_step, "torch": torch_step}


def _seconds(work: Callable[[], Any], times: int = 7) -> float:
    """The least, which is what the work takes undisturbed."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def paced(batches: Iterator[Any], step: Step, rate: float, seconds: float) -> tuple[float, float]:
    """Mean seconds of a step, and patches per second, of batches taken at a pace."""
    taken: list[float] = []
    began = due = time.perf_counter()
    while not taken or time.perf_counter() < began + seconds:
        batch = next(batches)
        before = time.perf_counter()
        step(batch)
        taken.append(time.perf_counter() - before)
        due += BATCH / rate
        time.sleep(max(0.0, due - time.perf_counter()))
    return statistics.fmean(taken), len(taken) * BATCH / (time.perf_counter() - began)


def measure_here(job: Job) -> Slowdown:
    """In this process."""
    import torch

    import daskdmed

    step = STEPS[job.kind]()
    cached = [torch.randint(255, (BATCH, 3, CROP, CROP), dtype=torch.uint8) for _ in range(8)]

    def alone() -> float:
        return paced(itertools.cycle(cached), step, job.rate, job.seconds / 2)[0]

    before = alone()
    data = scenarios.dataset([Path(p) for p in job.paths])
    with daskdmed.LightDL(
        data,
        smallchunk_size=CROP,
        batch_size=BATCH,
        smallchunks_per_bigchunk=512,
        workers=job.workers,
    ) as loader:
        batches = (x for x, _, _ in loader)
        settled = time.perf_counter() + job.seconds / 4
        while time.perf_counter() < settled or loader.stats().visits_evicted < 4:
            next(batches)
        paced(batches, step, job.rate, job.seconds / 4)
        beside, rate = paced(batches, step, job.rate, job.seconds)
    without = statistics.fmean((before, alone()))
    return Slowdown(beside / without, without, rate / job.rate)


def measure(
    paths: list[Path], kind: str, *, rate: int, workers: int | str, seconds: float, rounds: int = 1
) -> Slowdown:
    """In processes of their own; the median of some."""
    job = Job(tuple(map(str, paths)), kind, rate, workers, seconds)
    found = [_in_a_process(job) for _ in range(rounds)]
    names = ("slowdown", "step", "pace")
    return Slowdown(*(statistics.median(getattr(one, n) for one in found) for n in names))


def _in_a_process(job: Job) -> Slowdown:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(job))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"{job} failed: {done.stderr[-2000:]}")
    return Slowdown(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(asdict(measure_here(Job(**json.loads(sys.argv[1]))))))
