"""The simulation of many machines: nothing is lost or invented in it, and what can be said
without it comes out of it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "asv_bench"
#: slides of 16 big chunks, of which a resident set holds about 40
SMALL = {"ranks": 2, "side": 1024, "bigchunk": 448, "slides": 8, "batch": 16, "draws": 64}
SMALL |= {"resident": 24 << 20, "threads": 2, "smallchunk": 192}


@pytest.fixture(scope="module", autouse=True)
def scale():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("scale")
        for name in [n for n in sys.modules if n.split(".")[0] in ("scale", "scaling")]:
            del sys.modules[name]


def fleet(costs=None, **options):
    values = importlib.import_module("scaling.values")
    costs = values.Costs(**(costs or {}))
    return values.Fleet(costs=costs, **{"machines": 2, **SMALL, **options})


def simulation(of, **options):
    return importlib.import_module("scaling.model").Simulation(of, **options)


def free(**but):
    """Costs of nothing, but for some."""
    values = importlib.import_module("scaling.values")
    names = {f for f in values.Costs.__dataclass_fields__ if f not in ("decode", "unpack")}
    return {**dict.fromkeys(names, 0.0), "decode": 1e15, "unpack": 1e15, **but}


@pytest.mark.parametrize("way", ["one", "each", "own"])
@pytest.mark.parametrize("synchronised", [True, False])
def test_each_draw_is_delivered_once_and_to_the_rank_that_it_is_dealt_to(way, synchronised):
    of = fleet(way=way, machines=3, synchronised=synchronised)
    simulated = simulation(of, cold=True)
    outcome = simulated.run(6, 2)
    assert outcome.reads == pytest.approx({"one": 1, "each": 3, "own": 1}[way], rel=0.25)
    plans = {}
    for rank in simulated.ranks:
        draws = np.concatenate([np.arange(*piece) for piece in rank.delivered])
        assert np.all(draws // of.batch % of.world == rank.number % of.world)
        assert np.all(np.diff(draws) > 0)
        assert rank.ready + rank.steps <= draws.size // of.batch <= rank.ready + rank.steps + 2
        plans.setdefault(rank.turns, []).append(draws)
    for delivered in plans.values():
        # up to where the rank has come that is furthest behind
        least = min(int(d[-1]) // of.batch // of.world for d in delivered) * of.batch * of.world
        together = np.sort(np.concatenate(delivered))
        assert np.array_equal(together[:least], np.arange(least))


def test_what_is_cropped_elsewhere_goes_over_the_network_and_nothing_else():
    of = fleet(machines=4)
    simulated = simulation(of)
    simulated.run(8, 2)
    group = simulated.ranks[0].allotment.group
    elsewhere = 0
    for rank in simulated.ranks:
        visits = [rank.turns[t].visits for t in range(rank.turns.first, rank.entered + 1)]
        visits = np.concatenate(visits)
        first = rank.turns[rank.turns.first].start
        for start, stop in rank.delivered:
            units = visits[start - first : stop - first] // group
            machine = units % len(simulated.workers) // of.workers
            elsewhere += int(np.count_nonzero(machine != rank.machine))
    # some of it may be on its way
    ahead = of.together * len(simulated.ranks) * of.crop_bytes
    assert elsewhere * of.crop_bytes <= simulated.wires.nbytes
    assert simulated.wires.nbytes <= elsewhere * of.crop_bytes + ahead
    assert simulated.wires.nbytes > 0


@pytest.mark.parametrize("way", ["one", "each", "own"])
def test_the_same_arguments_give_the_same_outcome(way):
    first, second = (simulation(fleet(way=way)).run(5, 2) for _ in range(2))
    assert first == second
    assert first != simulation(fleet(way=way, seed=1)).run(5, 2)


@pytest.mark.parametrize("way", ["one", "each", "own"])
def test_no_resident_set_holds_more_than_it_may(way):
    of = fleet(way=way, machines=3, late=0.2, lateness=5.0, synchronised=False)
    found = simulation(of).run(12, 2)
    assert 0 < found.peak <= found.capacity
    # a rank that is slow keeps the others within reach
    assert found.reads == pytest.approx({"one": 1, "each": 3, "own": 1}[way], rel=0.25)


# -- what can be said without a simulation ---------------------------------------------------------


@pytest.mark.parametrize("way", ["one", "each", "own"])
def test_what_costs_nothing_takes_as_long_as_the_training(way):
    found = simulation(fleet(free(), way=way, network=1e15)).run(10, 4)
    assert found.lost == pytest.approx(0, abs=1e-9)
    assert found.waits == 0
    assert found.rate * found.seconds == 10 * 4 * 16


def test_reading_alone_gives_the_draws_of_a_visit_in_the_time_of_its_big_chunk():
    of = fleet(free(decode=1e6), machines=1, ranks=1, way="own", step=1e-6, in_process=True)
    found = simulation(of).run(200, 20)
    cores = of.workers * of.threads
    assert found.rate == pytest.approx(cores * 1e6 / of.pixels * of.draws, rel=0.1)
    assert found.reading == pytest.approx(1, abs=0.1)
    assert found.limit == "big chunks"


def test_ranks_leave_less_to_read_ahead():
    """As `persistence.ranks` says; two units here, so that only two of the four cores read."""
    of = fleet(free(decode=1e6), machines=1, way="own", step=1e-6, late=0.0)
    simulated = simulation(of)
    (most,) = {rank.most for rank in simulated.ranks}
    allotment = simulated.ranks[0].allotment
    assert (most - allotment.slots) // allotment.group == 2
    assert simulated.run(200, 20).reading == pytest.approx(2 / 4, abs=0.1)


def test_the_network_alone_gives_its_bytes():
    of = fleet(free(), machines=2, ranks=1, network=2e6, step=1e-6, late=0.0)
    found = simulation(of).run(60, 20)
    assert found.nbytes == pytest.approx(of.batch / 2 * of.crop_bytes, rel=0.15)
    assert found.seconds >= found.nbytes * 60 / of.network * 0.85
    assert found.limit == "small chunks"


def test_the_scheduler_alone_gives_its_messages():
    of = fleet(free(message=1e-3, meet=1e-3), machines=2, step=1e-6, late=0.0)
    found = simulation(of).run(30, 5)
    assert found.scheduler == pytest.approx(1, abs=0.1)
    assert found.limit == "scheduler"
    faster = simulation(fleet(free(message=5e-4, meet=5e-4), step=1e-6, late=0.0)).run(30, 5)
    assert faster.rate == pytest.approx(2 * found.rate, rel=0.1)


def test_synchronised_ranks_take_the_time_of_the_slowest():
    of = fleet(free(), jitter=0.5, late=0.1, network=1e15)
    together = simulation(of).run(20, 2)
    apart = simulation(fleet(free(), jitter=0.5, late=0.1, network=1e15, synchronised=False))
    assert together.seconds > 1.1 * apart.run(20, 2).ideal


# -- against what runs -----------------------------------------------------------------------------


def test_a_loader_asks_for_the_same_big_chunks_in_the_same_order():
    import daskdmed
    from daskdmed.core import events

    of = fleet(machines=1, ranks=1, way="own", workers=1, in_process=True)
    array = da.zeros((of.side, of.side, 3), chunks=256, dtype="u1")
    patients = [
        daskdmed.Patient(str(n), {"wsi": daskdmed.Record(array=array)}) for n in range(of.slides)
    ]
    seen = []
    kinds = {events.BigChunkRequested: "ask", events.BigChunkEvicted: "let go"}

    def note(event):
        if type(event) in kinds:
            seen.append((kinds[type(event)], event.visit))

    batches = 80
    stop = events.subscribe(note)
    try:
        with daskdmed.LightDL(
            daskdmed.Dataset("model", patients),
            smallchunk_size=of.smallchunk,
            bigchunk_size=of.bigchunk,
            batch_size=of.batch,
            smallchunks_per_bigchunk=of.draws,
            resident=of.resident,
            seed=of.seed,
        ) as loader:
            for _ in range(batches):
                next(loader)
            before = list(seen)
    finally:
        stop()
    simulated = simulation(of, cold=True)
    simulated.run(batches, 2)
    (rank,) = simulated.ranks
    assert rank.allotment.group > 1
    assert [what for what, _ in before].count("let go") > 3
    count = min(len(before), len(rank.diary))
    assert count > 40
    assert before[:count] == rank.diary[:count]


# -- the script ------------------------------------------------------------------------------------


def test_the_table_and_what_breaks_first(scale, capsys, tmp_path):
    picture = tmp_path / "scale.png"
    small = [f"--{name}={value}" for name, value in SMALL.items()]
    slow = '--costs={"meet": 0.02}'
    ways = ["--machines", "1", "2", "--way", "one", "own", f"--picture={picture}"]
    scale.main([*ways, "--steps=4", "--step=0.01", slow, *small])
    told = capsys.readouterr().out
    rows = [line for line in told.splitlines() if line.startswith(("| one", "| own"))]
    assert [row.split(" | ")[1] for row in rows] == ["1", "2", "1", "2"]
    assert "breaks at" in told
    assert "wait most for: scheduler" in told
    assert picture.stat().st_size > 1000
