"""Every figure that the project promises, in one run, as one table.

    python report.py            at full size, on a quiet machine (about 20 minutes)
    python report.py --quick    small slides and short measurements; shows that it runs
    python report.py --topic step_slowdown --topic ranks    some of it

All are ratios to what the same machine did in the same round, or counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import hooks as scripts
import inputs
import reads
import remote as servers
import scenarios
import steps
import trainers
from compare import measure, missing
from peers import PEERS


@dataclass(frozen=True)
class Figure:
    """One line.

    Parameters
    ----------
    what, slide : str
        What was measured, on which slide.
    value : float or None
        The figure; None when it could not be measured here.
    bound : float or None
        What was promised.
    least : bool
        Whether the bound is the least (else the greatest) value.
    detail : str
        The absolute figure behind it.
    """

    what: str
    slide: str
    value: float | None
    bound: float | None = None
    least: bool = True
    detail: str = ""

    def row(self) -> str:
        """One line of Markdown."""
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        bound = "" if self.bound is None else f"{'>=' if self.least else '<='} {self.bound:g}"
        kept = ""
        if self.value is not None and self.bound is not None:
            good = self.value >= self.bound if self.least else self.value <= self.bound
            kept = "yes" if good else "NO"
        return f"| {self.what} | {self.slide} | {value} | {bound} | {kept} | {self.detail} |"


def block_reads(kind: str, rounds: int) -> Iterator[Figure]:
    """Reading blocks."""
    found = scenarios.block_read(inputs.slide(kind), rounds=rounds, openslide=_have("openslide"))
    detail = f"{found.rate / 1e6:,.0f} Mpix/s"
    yield Figure("block read / raw decode, 2 threads", kind, found.to_limit, 0.85, detail=detail)
    yield Figure("block read / raw decode by TurboJPEG", kind, found.to_turbo)
    yield Figure("block read / OpenSlide", kind, found.to_openslide, 10)


def small_chunks(kind: str, rounds: int) -> Iterator[Figure]:
    """Random small chunks, read by threads of this process; small big chunks by two others too."""
    paths = inputs.slides(kind)
    for bigchunk, draws, options in (
        (4096, 128, {}),
        (4096, 512, {}),
        (4096, 2048, {}),
        (1024, 32, {}),
        (1024, 32, {"workers": 2}),
    ):
        found = scenarios.small_chunks(
            paths,
            bigchunk=bigchunk,
            draws=draws,
            seconds=inputs.seconds(),
            rounds=rounds,
            **options,
        )
        name = f"LightDL {bigchunk}, {draws} draws"
        name += "".join(f", {option}={value}" for option, value in options.items())
        detail = f"{found.rate:,.0f} patches/s, {found.draws_per_read:,.0f} draws per read"
        yield Figure(f"{name} / cost model", kind, found.to_model, 0.6, detail=detail)
        if (bigchunk, draws) == (4096, 512) and kind == "mixed":
            yield Figure(f"{name} / gather", kind, found.to_gather, 0.22, detail=detail)
    yield Figure(
        "idle loader, cores",
        kind,
        scenarios.idle_cpu(paths, min(5.0, inputs.seconds())),
        0.05,
        False,
    )


def peers(kind: str, rounds: int) -> Iterator[Figure]:
    """LightDL against peers, each in its own process."""
    paths = inputs.slides(kind)
    bounds = {"OpenSlide, DataLoader, 2 workers": 10.0, "cuCIM, batched, 2 threads": 2.8}
    for peer in PEERS:
        if peer.name not in bounds:
            continue
        what = f"LightDL / {peer.name}"
        absent = missing(peer)
        if absent:
            reason = f"not installed ({', '.join(absent)})"
            yield Figure(what, kind, None, bounds[peer.name], detail=reason)
            continue
        ratios, last = [], ""
        for _ in range(rounds):
            ours, theirs = (
                measure(name, "patches", paths, inputs.seconds())
                for name in ("daskdmed", peer.name)
            )
            if isinstance(ours, str) or isinstance(theirs, str):
                last = f"{ours}; {theirs}"
                break
            ratios.append((ours / theirs,))
            last = f"{ours:,.0f} against {theirs:,.0f} patches/s"
        value = scenarios.median_of(len(ratios), ratios.__getitem__)[0] if ratios else None
        yield Figure(what, kind, value, bounds[peer.name], detail=last)


def cluster(kind: str, rounds: int) -> Iterator[Figure]:
    """Two worker processes."""
    with scenarios.local_cluster(workers=2) as client:
        found = scenarios.small_chunks(
            inputs.slides(kind), seconds=inputs.seconds(), rounds=rounds, client=client
        )
    detail = f"{found.to_model:.2f} of the cost model"
    yield Figure("LocalCluster of 2, patches/s", kind, found.rate, 4_000, detail=detail)


def ranks(kind: str, rounds: int) -> Iterator[Figure]:
    """Trainers whose big chunks are in memory that reading processes share with them."""
    bounds = {(1, 1): 0.85, (2, 1): 0.85, (1, 2): None, (2, 2): 0.8}
    paths = inputs.slides(kind)
    found = trainers.compared(paths, list(bounds), seconds=inputs.seconds(), rounds=rounds)
    for (workers, count), ours in found.items():
        name = f"{count} trainer{'s' * (count > 1)}, workers={workers}"
        detail = f"{ours.rate:,.0f} patches/s"
        bound = bounds[workers, count]
        yield Figure(f"{name} / in-process", kind, ours.to_in_process, bound, detail=detail)
        yield Figure(f"{name}, reads per big chunk", kind, ours.reads, 1.0, False)
        detail = f"{ours.mib:,.0f} MiB of all processes"
        what = f"{name}, MiB a process beyond the budget"
        yield Figure(what, kind, ours.beyond, 350, False, detail)


def step_slowdown(kind: str, rounds: int) -> Iterator[Figure]:
    """A step beside a loader."""
    rates = steps.RATES if kind == "mixed" else (2_000,)
    for work, rate, workers in itertools.product(steps.STEPS, rates, steps.WORKERS):
        found = steps.measure(
            inputs.slides(kind),
            work,
            rate=rate,
            workers=workers,
            seconds=inputs.seconds(),
            rounds=rounds,
        )
        promised = (work, rate, workers) == ("python", 2_000, 1)
        what = f"step of {work} at {rate:,} patches/s, workers={workers!r} / without"
        detail = f"{found.step * 1e3:.1f} ms without, {found.pace:.0%} of the pace"
        yield Figure(what, kind, found.slowdown, 1.15 if promised else None, False, detail)


def first_batch(kind: str, rounds: int) -> Iterator[Figure]:
    """Waiting for the first batch."""
    paths = inputs.slides(kind)
    value = scenarios.median_of(rounds, lambda _: (scenarios.first_batch(paths),))[0]
    yield Figure("first batch, s", kind, value, 2.0, False)


def sliding_windows(kind: str, rounds: int) -> Iterator[Figure]:
    """Heatmaps."""
    path = inputs.slide(kind)
    for kernel, stride, decodes in ((224, 224, 1.0), (224, 112, 1.15), (300, 300, 1.15)):
        found = scenarios.sliding_window(path, kernel=kernel, stride=stride, rounds=rounds)
        name = f"sliding window {kernel}/{stride}"
        if stride == 224:
            detail = f"{found.seconds:.1f} s"
            yield Figure(f"{name} / raw decode", kind, found.to_limit, 1.4, False, detail)
        yield Figure(f"{name}, decodes per tile", kind, found.decodes_per_tile, decodes, False)


def remote(kind: str, rounds: int) -> Iterator[Figure]:
    """Slides behind a URL."""
    if importlib.util.find_spec("aiohttp") is None:
        yield Figure("block behind a URL", kind, None, detail="not installed (aiohttp)")
        return
    found = servers.blocks(inputs.slide(kind), inputs.seconds(), rounds)
    detail = f"{found.rate / 1e6:,.1f} Mpix/s"
    what = "block behind a URL"
    yield Figure(f"{what} at 50 ms / tile by tile", kind, found.to_tiles, 10, detail=detail)
    yield Figure(f"{what} at 50 ms / tiles from fsspec's read-ahead", kind, found.to_ahead, None)
    yield Figure(f"{what}, bytes fetched per byte needed", kind, found.fetched, 1.5, False)
    yield Figure(f"{what}, requests", kind, found.requests, None)
    yield Figure("slide behind a URL, requests to open it", kind, found.opening, None)


def reading(kind: str, rounds: int) -> Iterator[Figure]:
    """Single patches, blocks of Zarr, windows, tissue only, opening many: in seconds of CPU."""
    path = inputs.slide(kind)
    cucim = _have("cucim")
    found = reads.patches(path, rounds=rounds, cucim=cucim)
    detail = f"{1 / found['ours']:,.0f} patches per CPU-second"
    value = found["cucim"] / found["ours"] if cucim else None
    yield Figure("read_region of 224 / cuCIM", kind, value, 1.0, detail=detail)
    yield Figure("read_region of 224, CPU / raw decode", kind, found["ours"] / found["raw"])
    rate, ratio = reads.zarr_block(kind)
    detail = f"{ratio:.2f} times decompressing"
    yield Figure("block of OME-Zarr, Mpix per CPU-second", kind, rate / 1e6, 80, detail=detail)
    for stride, bound in ((224, 1.15), (112, 1.35)):
        for name, ours in reads.windows(path, stride, rounds).items():
            what = f"{name} 224/{stride}, CPU / raw decode"
            yield Figure(what, kind, ours, bound, False)
    if kind == "dense":
        for name, tiles in reads.tissue_only(path).items():
            what = f"{name} of a fifth, decodes per tile with tissue"
            yield Figure(what, kind, tiles, 1.25, False)
        seconds, mebibytes = reads.opening()
        yield Figure(f"opening {reads.MANY} slides, CPU-s", kind, seconds, 5.0, False)
        yield Figure("memory per open slide, MiB", kind, mebibytes, 1.0, False)


def few_draws(kind: str, rounds: int) -> Iterator[Figure]:
    """Few draws of each big chunk against reading each patch for itself, as cuCIM does it best."""
    found = reads.few_draws(inputs.slides(kind), rounds, processes=True, cucim=_have("cucim"))
    by_cpu, by_clock = found.get("cucim", (None, None))
    what, peer = f"LightDL 4096, {reads.FEW} draws", "cuCIM, batched, 2 threads"
    for name, ours, other in (
        (f"{what} / {peer}, by CPU", found["ours"][0], by_cpu),
        (f"{what} / {peer}", found["ours"][1], by_clock),
        (f"{what}, workers=2 / {peer}", found["processes"][1], by_clock),
    ):
        detail = f"{1e6 * ours:,.0f} us a patch"
        if other is None:
            yield Figure(name, kind, None, 1.0, detail=f"{detail}; not installed (cucim)")
        else:
            detail = f"{detail} against {1e6 * other:,.0f}"
            yield Figure(name, kind, other / ours, 1.0, detail=detail)


def memory(kind: str, rounds: int) -> Iterator[Figure]:
    """Memory against slide size; one slide and one round tell it."""
    small, large = inputs.side() // 2, inputs.side() * 2
    low, high = (
        scenarios.heatmap_memory(inputs.slide(kind, n, share_tiles=True)) for n in (small, large)
    )
    what = f"heatmap memory, {large} px / {small} px"
    yield Figure(what, kind, high / low, 1.2, False, f"{high:,.0f} and {low:,.0f} MiB")


def hooks(kind: str, rounds: int) -> Iterator[Figure]:
    """A script of PyDmed's on big chunks that are there: PyDmed's own metric; no slides."""
    found = scripts.measure(inputs.seconds(), rounds)
    what, detail = "PyDmed's hooks", f"{found.rate:,.0f} patches/s, {found.cpu:.0f} us of CPU each"
    yield Figure(f"{what} / PyDmed at its best", "none", found.to_original, 20, detail=detail)
    yield Figure(f"{what} / LightDL on the same arrays", "none", found.to_plain)
    yield Figure(f"{what} / gather", "none", found.to_gather)
    yield Figure(f"{what}, first batch, s", "none", found.first, 2.0, False)


def _have(name: str) -> bool:
    return not any(missing(p) for p in PEERS if p.modules == (name,))


TOPICS = (
    block_reads,
    small_chunks,
    peers,
    cluster,
    ranks,
    step_slowdown,
    first_batch,
    sliding_windows,
    remote,
    reading,
    few_draws,
    memory,
    hooks,
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small slides, short measurements")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--topic", action="append", choices=[t.__name__ for t in TOPICS])
    options = parser.parse_args()
    rounds = options.rounds
    if options.quick:
        os.environ.setdefault("DASKDMED_BENCH_SIZE", "12800")
        os.environ.setdefault("DASKDMED_BENCH_SECONDS", "1.5")
        rounds = 1
    print(f"slides of {inputs.side()} x {inputs.side()}, {os.cpu_count()} cores\n")
    print("| what | slide | value | promised | kept | |\n|-|-|-|-|-|-|")
    for topic in TOPICS:
        if options.topic and topic.__name__ not in options.topic:
            continue
        for kind in inputs.KINDS if topic not in (memory, hooks) else ("mixed",):
            for figure in topic(kind, rounds):
                print(figure.row(), flush=True)


if __name__ == "__main__":
    main()
