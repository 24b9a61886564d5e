"""Many inputs in processes that are watched: a crash or a hang is one input's, the rest goes on.

The process that calls `run` forks its workers, after everything is imported: it must not have
begun threads. Each worker says in shared memory which input it is at; what it found comes through a
pipe. Time is that of the worker's CPU, so that a busy machine is no finding; memory is the most
that was resident during an input, beyond what was before.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import reference
from tests.fuzz.draw import Draw
from tests.fuzz.judge import Finding, judge, outcome, quiet
from tests.fuzz.mutations import damaged
from tests.fuzz.seeds import Corpus

#: what is promised of one input: seconds of CPU, bytes
SECONDS, BYTES = 5.0, 1 << 30
#: a worker is ended after so many seconds of CPU for one input, or so many without using any
_HANGS, _SLEEPS = 3 * SECONDS, 120.0
#: addresses that a worker may use beyond what it has: allocations that nobody touches count too
_ADDRESSES = 3 << 30
#: what a worker says of itself: whether it works, on which input, and when it began that, in
#: seconds of its CPU
_STATE = struct.Struct("qqd")


@dataclass
class Result:
    """One input."""

    number: int
    name: str
    outcome: str
    kind: str = ""
    text: str = ""
    seconds: float = 0.0
    nbytes: int = 0
    done: str = ""


@dataclass
class Report:
    """All inputs of a run."""

    seed: int
    digest: str
    #: by family
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: list[Result] = field(default_factory=list)
    #: names of seeds that are refused as they are
    refused: list[str] = field(default_factory=list)
    slowest: Result | None = None
    largest: Result | None = None
    inputs: int = 0
    seconds: float = 0.0

    def add(self, result: Result) -> None:
        self.inputs += 1
        family = result.name.partition("/")[0]
        self.counts[family][f"FOUND {result.kind}" if result.kind else result.outcome] += 1
        if result.kind:
            self.findings.append(result)
        elif result.number < 0 and result.outcome.startswith("refused"):
            self.refused.append(result.name)
        if self.slowest is None or result.seconds > self.slowest.seconds:
            self.slowest = result
        if self.largest is None or result.nbytes > self.largest.nbytes:
            self.largest = result


# -------------------------------------------------------------------- one input
def try_input(corpus: Corpus, seed: int, number: int, folder: Path) -> Result:
    """Make an input, judge it, and compare what was read."""
    made, done = damaged(corpus, seed, number)
    result = Result(number, made.name, "", done=done)
    place = folder / str(number)
    place.mkdir()
    peak = _Peak()
    began = time.process_time()
    try:
        path = made.write(place)
        trial = judge(made, path, Draw(np.random.default_rng([seed, abs(number), 1])))
        result.seconds, result.nbytes = time.process_time() - began, peak.since()
        result.outcome = outcome(trial)
        if reference.agrees(trial):
            result.outcome = "right"
    except Finding as found:
        result.kind, result.text = found.kind, str(found)
    except RecursionError as error:  # in a step that is no step of the library alone
        result.kind, result.text = "untyped: RecursionError", str(error)
    except OSError as error:  # a name that no file can have
        result.outcome = f"cannot be written, {type(error).__name__}"
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if not result.seconds:
        result.seconds, result.nbytes = time.process_time() - began, peak.since()
    if not result.kind and result.nbytes > BYTES:
        result.kind, result.text = "memory", f"{result.nbytes} bytes"
    if not result.kind and result.seconds > SECONDS:
        result.kind, result.text = "slow", f"{result.seconds:.1f} s of CPU"
    return result


class _Peak:
    """The most that this process has resident, from now on."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _peak()

    def since(self) -> int:
        return max(0, _peak() - self._before)


def _peak() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# -------------------------------------------------------------------- workers
def _work(
    corpus: Corpus, seed: int, numbers: Sequence[int], folder: Path, state: mmap.mmap, out: Any,
    log: Path,
) -> None:  # fmt: skip
    """The life of a worker process."""
    quiet()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)  # what libraries print, and where they crash
    faulthandler.enable(2)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ADDRESSES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        _STATE.pack_into(state, 0, 1, number, time.process_time())
        out.send(try_input(corpus, seed, number, folder))
    _STATE.pack_into(state, 0, 0, 0, 0.0)
    out.close()


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(self, corpus: Corpus, seed: int, numbers: Sequence[int], folder: Path) -> None:
        self.corpus, self.seed, self.numbers, self.folder = corpus, seed, numbers, folder
        self.state = mmap.mmap(-1, _STATE.size)
        _STATE.pack_into(self.state, 0, 1, numbers[0], 0.0)
        self.log = folder / f"log-{numbers[0]}"
        self.pipe, theirs = connection.Pipe(duplex=False)
        fork = get_context("fork")
        self.process: Any = fork.Process(
            target=_work, args=(corpus, seed, numbers, folder, self.state, theirs, self.log)
        )
        self.process.start()
        theirs.close()
        self.ended = ""
        self._last_cpu, self._last_use = -1.0, time.monotonic()

    def results(self) -> Iterator[Result]:
        """What has come; the input at which the worker ended, as a finding, is the last."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
            return
        except (EOFError, OSError):
            self.process.join()
        works, number, _ = _STATE.unpack_from(self.state, 0)
        self.numbers = self.numbers[self.numbers.index(number) + 1 :] if works else []
        self.pipe.close()
        if works:
            yield self._lost(number)

    def _lost(self, number: int) -> Result:
        try:
            made, done = damaged(self.corpus, self.seed, number)
        except Exception as error:
            return Result(number, "none/none", "", "mutation", f"{type(error).__name__}: {error}")
        code = self.process.exitcode
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        log = self.log.read_bytes()
        begin = max(0, log.find(b"Fatal Python error"))
        last = " < ".join(log[begin : begin + 1200].decode("utf-8", "replace").split("\n")[:12])
        return Result(number, made.name, "", self.ended or f"crash: {name}", last, done=done)

    def check(self) -> None:
        """End a worker that is too long at one input."""
        works, _, began = _STATE.unpack_from(self.state, 0)
        if not works or not self.process.is_alive():
            return
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            if used != self._last_cpu:
                self._last_cpu, self._last_use = used, time.monotonic()
            sleeps = time.monotonic() - self._last_use
            if used - began > _HANGS or sleeps > _SLEEPS:
                self.ended = "hang" if sleeps <= _SLEEPS else "hang: sleeps"
                os.kill(self.process.pid, signal.SIGABRT)  # with a word of where it is


def run(
    corpus: Corpus, seed: int, numbers: Sequence[int], jobs: int,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:  # fmt: skip
    """Try inputs in so many processes."""
    report = Report(seed, corpus.digest)
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="daskdmed-fuzz-", dir=root) as name:
        folder = Path(name)
        shares = [numbers[n::jobs] for n in range(min(jobs, len(numbers)))]
        workers = [_Worker(corpus, seed, share, folder) for share in shares]
        while workers:
            connection.wait([w.pipe for w in workers], timeout=1.0)
            for worker in list(workers):
                for result in worker.results():
                    report.add(result)
                worker.check()
                if worker.pipe.closed:
                    workers.remove(worker)
                    if worker.numbers:
                        workers.append(_Worker(corpus, seed, worker.numbers, folder))
            progress(report)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    report.seconds = sum(u.ru_utime + u.ru_stime for u in usage)
    report.findings.sort(key=lambda f: (f.kind, f.number))
    return report


def prepare() -> Corpus:
    """The corpus, made in a process of its own, with everything imported here that workers need.

    Making it begins threads, which a process that forks must not have.
    """
    from daskdmed.images import registry

    for name in registry.backend_names():
        registry.get_backend(name)
    fork = get_context("fork")
    ours, theirs = connection.Pipe(duplex=False)
    process = fork.Process(target=lambda: theirs.send(Corpus.make()))
    process.start()
    theirs.close()
    try:
        corpus: Corpus = ours.recv()
    except EOFError:
        sys.exit("the corpus cannot be made; see above")
    process.join()
    return corpus
