"""The same work through whichever peers are installed, interleaved, as one table of ratios.

Every peer runs in a process of its own, one after the other, and the rounds repeat, so that
a neighbour on the machine or a warm cache favours nobody. A ratio is the median over rounds
of daskdmed's figure divided by the peer's in the same round.

    python compare.py                     all tasks on a mixed and a dense slide
    python compare.py --task patches --slide mixed --rounds 5
    python compare.py --quick             small slides, one round
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import inputs
from peers import Peer
from volumes import PEERS_OF

UNITS = {
    "patches": ("patches/s", 1.0),
    "blocks": ("Mpix/s", 1e6),
    "windows": ("windows/s", 1.0),
    "volumes": ("64^3 patches/s", 1.0),
}


def missing(peer: Peer) -> list[str]:
    """Modules of a peer that are not installed."""
    return [m for m in peer.modules if importlib.util.find_spec(m) is None]


def measure_here(name: str, task: str, paths: list[Path], seconds: float) -> float:
    """Units per second of one peer in this process, after one step and a quarter of the time."""
    peer = next(p for p in PEERS_OF[task] if p.name == name)
    steps = peer.work[task](paths)
    try:
        began = time.perf_counter()
        next(steps)
        while time.perf_counter() < began + seconds / 4:
            next(steps)
        done, began = 0, time.perf_counter()
        while done == 0 or time.perf_counter() < began + seconds:
            done += next(steps)
        return done / (time.perf_counter() - began)
    finally:
        steps.close()


def measure(name: str, task: str, paths: list[Path], seconds: float) -> float | str:
    """Units per second of one peer in a fresh process, or why there is no figure."""
    request = json.dumps([name, task, [str(p) for p in paths], seconds])
    command = [sys.executable, str(Path(__file__).resolve()), "--child", request]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600 + 20 * seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return "timed out"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = done.stderr.strip().splitlines()
        return f"failed: {reason[-1] if reason else done.returncode}"
    return float(lines[-1])


def compare(
    task: str, paths: list[Path], *, seconds: float, rounds: int
) -> dict[str, list[float] | str]:
    """Figures of every peer per round, or why it has none."""
    figures: dict[str, list[float] | str] = {}
    able = []
    for peer in PEERS_OF[task]:
        if task not in peer.work:
            continue
        absent = missing(peer)
        figures[peer.name] = f"not installed ({', '.join(absent)})" if absent else []
        if not absent:
            able.append(peer.name)
    for turn in range(rounds):
        # start with another peer each round
        for name in able[turn % len(able) :] + able[: turn % len(able)]:
            result = measure(name, task, paths, seconds)
            known = figures[name]
            if isinstance(result, str):
                figures[name] = result
            elif isinstance(known, list):
                known.append(result)
    return figures


def table(task: str, figures: dict[str, list[float] | str]) -> list[str]:
    """Lines of Markdown."""
    unit, scale = UNITS[task]
    ours = figures.get("daskdmed")
    lines = [f"| {task} | {unit} (range) | daskdmed is faster by |", "|-|-|-|"]
    for name, values in figures.items():
        if isinstance(values, str) or not values:
            lines.append(f"| {name} | {values or 'no figure'} | |")
            continue
        low, mid, high = (f(values) / scale for f in (min, statistics.median, max))
        ratio = ""
        if isinstance(ours, list) and len(ours) == len(values) and name != "daskdmed":
            ratios = [a / b for a, b in zip(ours, values, strict=True)]
            ratio = f"{statistics.median(ratios):.1f} x"
        lines.append(f"| {name} | {mid:,.0f} ({low:,.0f} to {high:,.0f}) | {ratio} |")
    return lines


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=sorted(UNITS), action="append", help="default: all")
    parser.add_argument("--slide", choices=sorted(inputs.KINDS), action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="per peer and round")
    parser.add_argument("--quick", action="store_true", help="small slides, one round")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, task, paths, seconds = json.loads(options.child)
        print(measure_here(name, task, [Path(p) for p in paths], seconds))
        return
    if options.quick:
        os.environ.setdefault("DASKDMED_BENCH_SIZE", "12800")
        os.environ.setdefault("DASKDMED_BENCH_SECONDS", "2")
        options.rounds = 1
    seconds = options.seconds or inputs.seconds()
    for kind in [] if options.task == ["volumes"] else options.slide or inputs.KINDS:
        paths = inputs.slides(kind)
        for task in [t for t in options.task or UNITS if t != "volumes"]:
            figures = compare(task, paths, seconds=seconds, rounds=options.rounds)
            print(f"\n{kind}, {inputs.side()} x {inputs.side()}, {len(paths)} slides\n")
            print("\n".join(table(task, figures)), flush=True)
    if "volumes" in (options.task or UNITS):
        figures = compare("volumes", inputs.scans(), seconds=seconds, rounds=options.rounds)
        print("\n4 compressed scans of 160^3 voxels, with labels\n")
        print("\n".join(table("volumes", figures)), flush=True)


if __name__ == "__main__":
    main()
