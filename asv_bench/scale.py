"""What would happen on many machines: a simulation of 64 ranks on 8 machines.

    python scale.py                       1 to 8 machines of 8 ranks, three arrangements
    python scale.py --measure             with costs measured on this machine, not with those kept
    python scale.py --step 0.032          of ranks that train twice as fast
    python scale.py --told batch          had ranks told each other where they are once a batch
    python scale.py --picture scale.png   draws what the table says

Arrangements: *one* scheduler for all machines, whose ranks share one resident set; *each* machine
with a scheduler and a resident set of its own, all by the same plan; each machine with a plan of
its *own*, for a part of the slides. Simulated is one node of 8 GPUs per machine; costs and what
is left out: docs/design/scale.md. No process is started but with --measure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from dask.utils import format_bytes, parse_bytes
from scaling.model import Simulation
from scaling.values import Costs, Fleet, Outcome

WAYS = {
    "one": "one scheduler, one resident set for all",
    "each": "one for each machine, the same plan",
    "own": "one for each machine, a plan of its own",
}
#: training that takes so much longer than with batches that are there does not keep up
BROKEN = 0.05
HIDDEN = ("way", "machines", "costs", "in_process")
COLUMNS = (
    "arrangement", "machines", "ranks", "patches/s", "time lost", "at the start",
    "waits (worst rank)",
    "messages/s of a scheduler", "it is busy", "MB between machines per batch", "network busy",
    "reads per visit", "reading cores busy", "most big chunks (of)", "threads wait most for",
)  # fmt: skip


def row(found: Outcome) -> str:
    """One line of Markdown."""
    fleet = found.fleet
    limit = found.limit
    values = (
        fleet.way,
        f"{fleet.machines}",
        f"{fleet.machines * fleet.ranks}",
        f"{found.rate:,.0f}",
        f"{max(found.lost, 0):.0%}",
        f"{max(found.begun, 0):.1f} s",
        f"{found.waits:.0%} ({found.worst:.0%})",
        f"{found.messages:,.0f}",
        f"{found.scheduler:.0%}",
        f"{found.nbytes / 1e6:.1f}",
        f"{found.network:.0%}",
        f"{found.reads:.2f}",
        f"{found.reading:.0%}",
        f"{found.peak} ({found.capacity})",
        f"{limit} ({found.thread[limit]:.0%})",
    )
    return f"| {' | '.join(values)} |"


def verdict(way: str, found: Sequence[Outcome]) -> str:
    """What breaks first, and at which scale."""
    broken = next((f for f in found if f.lost > BROKEN), None)
    if broken is None:
        last = found[-1]
        shares = {
            "the scheduler": last.scheduler,
            "the network": last.network,
            "reading": last.reading,
        }
        most = max(shares, key=shares.__getitem__)
        return (
            f"{way} ({WAYS[way]}): nothing breaks up to {last.fleet.machines} machines; "
            f"{most} is busiest ({shares[most]:.0%})"
        )
    fleet = broken.fleet
    return (
        f"{way} ({WAYS[way]}): breaks at {fleet.machines} machines ({fleet.machines * fleet.ranks} "
        f"ranks), where {broken.lost:.0%} of the time is lost; threads that make batches wait most "
        f"for: {broken.limit} (scheduler {broken.scheduler:.0%}, network {broken.network:.0%}, "
        f"reading cores {broken.reading:.0%} busy)"
    )


def simulate(fleet: Fleet, machines: Sequence[int], steps: int) -> Iterator[Outcome]:
    """One outcome for each number of machines; half as many steps go before those counted."""
    for count in machines:
        yield Simulation(replace(fleet, machines=count)).run(steps, steps // 2)


def draw(outcomes: dict[str, list[Outcome]], path: Path) -> None:
    """Time lost and how busy a scheduler is, over machines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    lost, busy = figure.subplots(1, 2)
    for way, found in outcomes.items():
        machines = [f.fleet.machines for f in found]
        lost.plot(machines, [100 * max(f.lost, 0) for f in found], marker="o", label=WAYS[way])
        busy.plot(machines, [100 * f.scheduler for f in found], marker="o")
    ranks = next(iter(outcomes.values()))[0].fleet.ranks
    for axes, what in ((lost, "time lost, %"), (busy, "a scheduler is busy, %")):
        axes.set(xlabel=f"machines of {ranks} ranks", ylabel=what, ylim=(-3, 103))
    figure.legend(loc="outside lower center", ncols=3, fontsize="x-small", frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--way", choices=list(WAYS), nargs="+", default=list(WAYS))
    parser.add_argument("--steps", type=int, default=60, help="counted; half as many go before")
    parser.add_argument("--measure", action="store_true", help="measure costs on this machine")
    parser.add_argument("--costs", type=json.loads, default={}, help="JSON, in place of some")
    parser.add_argument("--picture", type=Path)
    known = {f.name: f for f in fields(Fleet) if f.name not in HIDDEN}
    for name, field in known.items():
        kind: Any = {"resident": parse_bytes, "told": str}.get(name, type(field.default))
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(f"--{name}", default=field.default, **how)
    options = vars(parser.parse_args(arguments))
    costs = Costs()
    if options["measure"]:
        from scaling.measure import measured

        costs = measured()
    costs = replace(costs, **options["costs"])
    fleet = Fleet(costs=costs, **{name: options[name] for name in known})
    told = ", ".join(f"{name} {value:.3g}" for name, value in asdict(costs).items())
    print(
        f"{fleet.ranks} ranks a machine, {fleet.batch / fleet.step:,.0f} patches/s each, "
        f"{fleet.draws} draws a visit, {format_bytes(fleet.resident)} of big chunks a machine\n"
        f"costs: {told}\n\n| {' | '.join(COLUMNS)} |\n{'|-' * len(COLUMNS)}|"
    )
    outcomes: dict[str, list[Outcome]] = {}
    for way in options["way"]:
        for found in simulate(replace(fleet, way=way), options["machines"], options["steps"]):
            outcomes.setdefault(way, []).append(found)
            print(row(found), flush=True)
    print()
    for way, found_ in outcomes.items():
        print(verdict(way, found_))
    if options["picture"]:
        draw(outcomes, options["picture"])


if __name__ == "__main__":
    main()
