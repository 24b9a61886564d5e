"""Run a campaign, or make one of its inputs again. See ``--help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

# threads of linear algebra would be begun before workers are forked
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.fuzz.campaign import Report, Result, prepare, run, try_input
from tests.fuzz.judge import quiet
from tests.fuzz.mutations import damaged
from tests.fuzz.seeds import Corpus


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000, help="how many (default 2000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--only", default="", help="seeds whose name holds this")
    parser.add_argument("--input", type=int, help="make this one again, and judge it here")
    parser.add_argument("--keep", type=Path, help="with --input: write it into this folder")
    parser.add_argument("--report", type=Path, help="also write the report here, as JSON")
    options = parser.parse_args()
    corpus = prepare()
    if options.only:
        corpus = corpus.only(options.only)
    if options.input is not None:
        return _again(corpus, options.seed, options.input, options.keep)
    sound = run(corpus, options.seed, range(-len(corpus.seeds), 0), options.jobs)
    numbers = range(options.first, options.first + options.inputs)
    report = run(corpus, options.seed, numbers, options.jobs, _Progress(options.inputs))
    report.findings[:0], report.refused = sound.findings, sound.refused
    _show(report)
    if options.report:
        options.report.write_text(json.dumps(_as_json(report), indent=1))
    return 1 if report.findings else 0


def _again(corpus: Corpus, seed: int, number: int, keep: Path | None) -> int:
    made, done = damaged(corpus, seed, number)
    print(f"{number}: {made.name}, {done}")
    if keep is not None:
        print(f"written: {made.write(keep)}")
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        result = try_input(corpus, seed, number, Path(folder))
    print(f"{result.outcome} {result.kind} {result.text}".strip())
    print(f"{result.seconds:.2f} s of CPU, {result.nbytes / 2**20:.1f} MiB")
    return 1 if result.kind else 0


class _Progress:
    """A line now and then; on a terminal, in its place."""

    def __init__(self, total: int) -> None:
        self._total, self._began, self._next = total, time.monotonic(), 0.0

    def __call__(self, report: Report) -> None:
        now = time.monotonic() - self._began
        if now < self._next:
            return
        is_terminal = sys.stderr.isatty()
        self._next = now + (0.5 if is_terminal else 20)
        rate = report.inputs / max(now, 1e-9)
        text = (
            f"{report.inputs} of {self._total} inputs, {rate:.0f}/s, {len(report.findings)} found"
        )
        print(text, end="\r" if is_terminal else "\n", file=sys.stderr, flush=True)


def _show(report: Report) -> None:
    print(f"{report.inputs} inputs, seed {report.seed}, corpus {report.digest}, "
          f"{report.seconds:.0f} s of CPU")  # fmt: skip
    print(f"sound files that are refused: {', '.join(sorted(report.refused)) or 'none'}")
    for family in sorted(report.counts):
        counts = report.counts[family]
        print(f"{family}: {sum(counts.values())}")
        for name, count in counts.most_common():
            print(f"    {count:6d} {name}")
    if report.slowest and report.largest:
        print(f"slowest: {_line(report.slowest)}, {report.slowest.seconds:.2f} s of CPU")
        print(f"largest: {_line(report.largest)}, {report.largest.nbytes / 2**20:.0f} MiB")
    print(f"findings: {len(report.findings)}")
    alike: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for one in report.findings:
        alike[one.kind, one.text.rpartition("[")[2]].append(one)
    for group in alike.values():
        one = min(group, key=lambda f: len(f.done))
        print(f"  {len(group)} x {one.kind}: {_line(one)}, {one.text}")
        print(f"      made by: {one.done[:300]}")
        print(f"      again: --seed {report.seed} --input", *(f.number for f in group[:20]))


def _line(result: Result) -> str:
    return f"input {result.number} ({result.name})"


def _as_json(report: Report) -> dict[str, object]:
    return {
        "seed": report.seed,
        "corpus": report.digest,
        "inputs": report.inputs,
        "seconds": report.seconds,
        "counts": {family: dict(counts) for family, counts in report.counts.items()},
        "refused": sorted(report.refused),
        "findings": [vars(one) for one in report.findings],
        "slowest": report.slowest and vars(report.slowest),
        "largest": report.largest and vars(report.largest),
    }


if __name__ == "__main__":
    sys.exit(main())
