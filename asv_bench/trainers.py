"""Training processes of one machine: how fast they get batches, and what memory they take.

Each trainer is a process of its own, which is told when to begin and to stop, so that several
can be measured at the same time; asv and tests can start it, too. What is shared between them are
the reading processes of ``LightDL(workers=n)``.

    python trainers.py JOB                is what is started; JOB is JSON
"""

from __future__ import annotations

import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import scenarios
from scenarios import BATCH, CROP

#: of big chunks, for all ranks together
RESIDENT = 2 << 30


@dataclass(frozen=True)
class Job:
    """What a training process does.

    `workers`: of ``LightDL(workers=...)``. `job`: what all ranks of a run have in common.
    """

    paths: tuple[str, ...]
    workers: int | str
    seconds: float
    rank: int = 0
    ranks: int = 1
    job: str = ""


class Trainer:
    """A process that trains, seen from the one that measures it."""

    def __init__(self, job: Job) -> None:
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        # ranks find each other's reading processes by the job that has started them
        common = {"TORCHELASTIC_RUN_ID": job.job} if job.job else {}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **common},
        )

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._process:  # closes its standard input, at which it ends
            if exc_info[0] is not None:
                self._process.kill()
        self._complaints.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, word: str) -> None:
        """Have it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """What it says next; RuntimeError: it has ended, with the last that it complained of."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._complaints.seek(0)
            raise RuntimeError(f"a training process failed: {self._complaints.read()[-2000:]}")
        heard: dict[str, Any] = json.loads(line)
        return heard


def _serve(job: Job, say: Callable[[dict[str, Any]], None], words: queue.Queue[str]) -> None:
    """Take batches from the start to "stop", count them from "go" on for the seconds asked for."""
    import daskdmed

    options = {"workers": job.workers, "rank": job.rank, "world_size": job.ranks}
    data = scenarios.dataset([Path(p) for p in job.paths])
    with daskdmed.LightDL(
        data,
        smallchunk_size=CROP,
        batch_size=BATCH,
        smallchunks_per_bigchunk=512,
        resident=RESIDENT,
        **options,
    ) as loader:
        batches = iter(loader)
        settled = time.perf_counter() + job.seconds / 4
        # until the budget is full once and big chunks rotate
        while time.perf_counter() < settled or loader.stats().visits_evicted < 4:
            next(batches)
        say({"host": _host(loader)})
        while words.empty():
            next(batches)
        words.get()
        began, patches = time.perf_counter(), 0
        while time.perf_counter() < began + job.seconds:
            x, _, _ = next(batches)
            patches += x.shape[0]
        say({"rate": patches / (time.perf_counter() - began)})
        # whoever is still measured is not to be alone
        while words.empty():
            next(batches)
        words.get()
        say(_at_rest(loader))
        words.get()
        say(_at_rest(loader))
        words.get()


def _client(loader: Any) -> Any:
    return loader._cluster.client


def _host(loader: Any) -> int | None:
    """The process in which the scheduler runs, if it is another one."""
    pid: int = _client(loader).run_on_scheduler(os.getpid)
    return None if pid == os.getpid() else pid


def _at_rest(loader: Any) -> dict[str, Any]:
    """Reads that this loader has asked for, and reads that took place; when nothing goes on."""

    def ran(dask_scheduler: Any) -> list[int]:
        # nested, and plain values, so that any scheduler can
        prefix = dask_scheduler.task_prefixes.get("big-chunk")
        if prefix is None:
            return [0, 0]
        states = prefix.states
        under_way = sum(states[s] for s in ("waiting", "processing", "queued", "no-worker"))
        return [prefix.state_counts["memory"], under_way]

    before: Any = None
    while True:
        done, under_way = _client(loader).run_on_scheduler(ran)
        now = (loader.stats().reads, done)
        if now == before and not under_way:
            return {"asked": now[0], "ran": done}
        before = now
        time.sleep(0.2)


# -- memory ----------------------------------------------------------------------------------------


def proportional(pids: Sequence[int]) -> float:
    """MiB of some processes, what they share counted once (PSS)."""
    kib = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    import psutil

    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


# -- what is measured ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """How ranks of one machine did.

    Parameters
    ----------
    rate : float
        Patches per second of all ranks together.
    to_in_process : float
        The same, to one in-process loader in the same round.
    reads : float or None
        Reads of a big chunk, for each that was asked for; None in-process.
    mib : float
        Proportional memory of all processes.
    beyond : float
        What of it is beyond the budget, for each training process, worker and host.
    """

    rate: float
    to_in_process: float
    reads: float | None
    mib: float
    beyond: float


def measure(
    paths: Sequence[Path], *, workers: int | str, ranks: int, seconds: float
) -> dict[str, Any]:
    """One run: rates of all ranks, reads asked for and done, and memory in the middle of it."""
    common = uuid4().hex if ranks > 1 else ""
    jobs = [
        Job(tuple(map(str, paths)), workers, seconds, rank, ranks, common) for rank in range(ranks)
    ]
    with ExitStack() as stack:
        trainers = [stack.enter_context(Trainer(job)) for job in jobs]
        hosts = {h for t in trainers if (h := t.hear()["host"]) is not None}
        for trainer in trainers:
            trainer.tell("go")
        time.sleep(seconds / 2)
        pids = {t.pid for t in trainers}.union(*map(family, hosts))
        mib = proportional(sorted(pids))
        rate = sum(t.hear()["rate"] for t in trainers)
        # once more when all are at rest: until then they go on for each other
        for word in ("stop", "count"):
            for trainer in trainers:
                trainer.tell(word)
            counts = [trainer.hear() for trainer in trainers]
        for trainer in trainers:
            trainer.tell("end")
    asked, ran = (max(c[name] for c in counts) for name in ("asked", "ran"))
    processes = ranks + (workers + 1 if isinstance(workers, int) else 0)
    beyond = (mib - RESIDENT / 2**20) / processes
    return {"rate": rate, "asked": asked, "ran": ran, "mib": mib, "beyond": beyond}


def compared(
    paths: Sequence[Path],
    ways: Sequence[tuple[int | str, int]],
    *,
    seconds: float,
    rounds: int = 1,
) -> dict[tuple[int | str, int], Trained]:
    """Some (workers, ranks), each with an in-process loader in the same round, in turns."""
    runs: dict[tuple[int | str, int], list[tuple[float, dict[str, Any]]]] = {w: [] for w in ways}
    for _ in range(rounds):
        alone = measure(paths, workers="threads", ranks=1, seconds=seconds)["rate"]
        for workers, ranks in ways:
            found = measure(paths, workers=workers, ranks=ranks, seconds=seconds)
            runs[workers, ranks].append((found["rate"] / alone, found))
    return {way: _middle(way, found) for way, found in runs.items()}


def _middle(way: tuple[int | str, int], runs: list[tuple[float, dict[str, Any]]]) -> Trained:
    def of(name: str) -> float:
        return statistics.median(found[name] for _, found in runs)

    reads = None
    if isinstance(way[0], int):  # the worst
        reads = max(found["ran"] / found["asked"] for _, found in runs)
    ratio = statistics.median(ratio for ratio, _ in runs)
    return Trained(of("rate"), ratio, reads, of("mib"), of("beyond"))


def main(text: str) -> None:
    """Be a training process."""
    words: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            words.put(line.strip())
        for _ in range(4):  # whoever measures is gone
            words.put("")

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), flush=True)

    threading.Thread(target=listen, daemon=True).start()
    _serve(Job(**json.loads(text)), say, words)


if __name__ == "__main__":
    main(sys.argv[1])
