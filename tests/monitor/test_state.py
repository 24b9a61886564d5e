"""What messages add up to, and what a loader says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from daskdmed import LightDL, SlidingWindowDL
from daskdmed.core import live
from daskdmed.core.live import ASKED, READY, WAITED
from daskdmed.monitor import pieces
from daskdmed.monitor.changes import Changes, plain
from daskdmed.monitor.local import Local
from daskdmed.monitor.picture import draw, grid
from daskdmed.monitor.state import LiveState
from tests.monitor.made import FakeLoader, FakeRun, dataset, small


def heard(state, *changes, client="c", time=0.0):
    """Have a state hear what is new; whether it understood each."""
    return [state.hear(client, one.message(), time) for one in changes]


def of_set(state):
    (one,) = state.sets.values()
    return one


def test_a_message_holds_only_what_changed():
    loader = FakeLoader(cells=dict.fromkeys(range(1000), (ASKED, -1)))
    changes = Changes(loader)
    first = changes.message()
    assert first["whole"]
    assert len(first["new"]) == len(first["cells"]) == 1000
    loader.rows[3] = (READY, 20)
    del loader.rows[999]
    second = changes.message()
    assert (second["new"], second["cells"], second["gone"]) == ([], [[3, READY, 20]], [999])
    assert not second["whole"]


def test_a_state_has_the_big_chunks_that_the_loader_has():
    rng = np.random.default_rng(0)
    loader, state = FakeLoader(), LiveState()
    changes = Changes(loader)
    newest = 0
    for _ in range(60):
        for visit in rng.choice(list(loader.rows) or [0], 3):
            loader.rows.pop(int(visit), None)
        for _ in range(int(rng.integers(5))):
            loader.rows[newest] = (ASKED, -1)
            newest += 1
        for visit in loader.rows:
            if rng.random() < 0.5:
                loader.rows[visit] = (READY, int(rng.integers(100)))
        assert heard(state, changes) == [True]
        cells = state.sets[("c", loader.name)].cells
        assert {v: (c.state, c.left) for v, c in cells.items()} == loader.rows
        slots = [cell.slot for cell in cells.values()]
        assert len(set(slots)) == len(slots)
        assert max(slots, default=0) < 1 + newest


def test_a_big_chunk_keeps_its_place_and_the_place_is_used_again():
    loader, state = FakeLoader(cells={0: (READY, 5), 1: (READY, 5), 2: (READY, 5)}), LiveState()
    changes = Changes(loader)
    heard(state, changes)
    before = {v: c.slot for v, c in of_set(state).cells.items()}
    del loader.rows[1]
    loader.rows[3] = (ASKED, -1)
    heard(state, changes)
    after = {v: c.slot for v, c in of_set(state).cells.items()}
    assert after == {0: before[0], 2: before[2], 3: before[1]}


def test_what_ranks_share_is_there_once_and_who_waits_is_seen():
    cells = {0: (READY, 9), 1: (WAITED, -1), 2: (READY, 4)}
    one = FakeLoader("a", cells=cells, rank=0, plan="p", waits_for=[1])
    two = FakeLoader("b", cells={0: (READY, 7), 1: (ASKED, -1)}, rank=1, plan="p")
    state = LiveState()
    changes = [Changes(one), Changes(two)]
    assert heard(state, *changes) == [True, True]
    joined = {v: (c.state, c.left) for v, c in of_set(state).cells.items()}
    assert joined == {0: (READY, 7), 1: (WAITED, -1), 2: (READY, 4)}
    assert [lo.rank for lo in of_set(state).ranks] == [0, 1]
    table = pieces.ranks(of_set(state), 1.0)
    assert "waits for rank 1" in table
    assert "not heard of" not in table
    assert pieces.ranks(of_set(state), 60.0).count("not heard of for 60 s") == 2
    assert "rank 0 waits for rank 1" in pieces.log(state, 1.0)
    two.now_is = {}
    heard(state, *changes)
    assert {v: c.left for v, c in of_set(state).cells.items()} == {0: 9, 1: -1, 2: 4}
    state.forget("c")
    assert not state.sets
    assert not state.loaders


def test_what_is_missing_is_asked_for_and_another_epoch_begins_anew():
    loader, state = FakeLoader(cells={7: (READY, 1)}), LiveState()
    changes = Changes(loader)
    changes.message()
    assert heard(state, changes) == [False]
    assert not state.loaders
    assert state.hear("c", changes.message(whole=True), 0.0)
    assert list(of_set(state).cells) == [7]
    loader.now_is["epoch"] = 1
    loader.places[7] = "another"
    heard(state, changes)
    assert of_set(state).cells[7].patient == "another"


def test_messages_of_a_version_that_nobody_knows_are_left_alone():
    state = LiveState()
    assert state.hear("c", {"version": 99, "name": "x"}, 0.0)
    assert not state.loaders


def test_rates_are_those_of_the_last_seconds():
    loader, state = FakeLoader(), LiveState()
    changes = Changes(loader)
    for second in range(20):
        loader.count(patches=100 * second + (1000 * max(second - 15, 0)), wait_seconds=second / 4)
        heard(state, changes, time=float(second))
    (known,) = state.loaders.values()
    assert known.rate("delivered") == pytest.approx((100 * 5 + 1000 * 4) / 5)
    assert known.rate("waited") == pytest.approx(0.25)
    loader.count(patches=0)  # another pass
    heard(state, changes, time=20.0)
    assert known.rate("delivered") == 0.0


def test_messages_that_come_late_make_no_peaks():
    loader, state = FakeLoader(), LiveState()
    changes = Changes(loader)
    for second, delay in enumerate((0.0, 0.0, 0.9, 0.0, 0.8, 0.1)):
        loader.count(patches=100 * second, seconds=7.0 + second)
        heard(state, changes, time=second + delay)
    (known,) = state.loaders.values()
    times = [sample.time for sample in known.history]
    assert times == pytest.approx([0, 1, 2, 3, 4, 5])
    loader.count(patches=600, seconds=13.0)
    heard(state, changes, time=60.0)  # its clock stood still, as that of a machine that sleeps
    assert known.history[-1].time == 60.0


def test_late_draws_and_failures_are_told_once():
    loader, state = FakeLoader(), LiveState()
    changes = Changes(loader)
    for late, failed in ((0, 0), (3, 0), (3, 1), (3, 1), (5, 2)):
        loader.count(late_draws=late, failed=failed)
        loader.now_is["failures"] = ["p0 <open>: no slide", "p1: no disk"][:failed]
        heard(state, changes)
    (known,) = state.loaders.values()
    told = [text for _, text in known.log]
    assert told == ["3 late draws", "p0 <open>: no slide", "2 late draws", "p1: no disk"]
    page = pieces.log(state, 1.0)
    assert "p0 &lt;open&gt;" in page


def test_runs_say_how_far_they_are_and_how_they_ended():
    run, state = FakeRun(), LiveState()
    changes = Changes(run)
    run.now_is.update(total=40, before=10, done=20, seconds=5.0)
    heard(state, changes)
    (known,) = state.runs.values()
    assert known.seconds_left == pytest.approx(10.0)
    assert "20 of 40 blocks" in pieces.runs(state)
    run.now_is.update(ended="OSError: <disk> full")
    heard(state, changes)
    assert known.seconds_left is None
    assert "OSError: &lt;disk&gt; full" in pieces.runs(state)
    others = [FakeRun(f"r{i}", ended="done") for i in range(20)]
    heard(state, *map(Changes, others))
    assert len(state.runs) == 8


def test_values_are_plain_whatever_counters_are():
    value = plain({"a": np.int64(3), 2: [np.float32(0.5), (np.bool_(True), None)]})
    assert value == {"a": 3, "2": [0.5, [True, None]]}
    kinds = (value["a"], value["2"][0], value["2"][1][0])
    assert [type(kind) for kind in kinds] == [int, float, bool]


@pytest.mark.parametrize("slots", [1, 7, 100, 1000])
def test_cells_fill_the_width_and_no_more(slots):
    side, columns = grid(slots, 760, 230)
    assert columns * side <= 760
    assert -(-slots // columns) * side <= 230
    assert side >= 7


# -- what real loaders say -----------------------------------------------------------


def test_a_loader_says_what_its_statistics_say():
    with LightDL(dataset(), **small()) as loader:
        for _ in range(12):
            loader.get()
        loader.pause()
        said, stats = loader._watched.now(), loader.stats()
        plainly = {**said["counters"], "seconds": None, "failed": None}
        for name, value in plainly.items():
            assert value is None or getattr(stats, name) == value
        assert said["counters"]["failed"] == len(stats.failed)
        cells = loader._watched.cells()
        assert len(cells) == stats.resident_visits
        assert all(loader._watched.place(visit) is not None for visit, _, _ in cells)
        assert stats.pixels_drawn == stats.patches * 16 * 16
        assert stats.reuse == stats.pixels_drawn / stats.pixels_read
        assert said["paused"]
    assert loader._watched.now() == {}
    assert loader._watched.cells() == []


def test_draws_left_are_those_that_the_plan_has_left():
    with LightDL(dataset(), **small(), epoch_length=1000) as loader:
        taken = {}
        for _ in range(40):
            chunks = loader.get()[2]
            for chunk in chunks:
                taken[chunk.bigchunk.visit] = chunk.draw + 1
        left = {visit: left for visit, _, left in loader._watched.cells() if left >= 0}
        assert left
        whole, ahead = small()["smallchunks_per_bigchunk"], 16 * 8
        for visit, rest in left.items():
            # a few batches are made ahead
            assert whole - taken.get(visit, 0) - ahead <= rest <= whole - taken.get(visit, 0)
        assert any(0 < rest < whole for rest in left.values())


def test_windows_are_seen_too():
    with SlidingWindowDL(dataset(), kernel_size=16, batch_size=8, block_windows=2) as loader:
        loader.get()
        said = loader._watched.now()
        assert said["counters"]["windows"] == loader.stats().windows == 8
        cells = loader._watched.cells()
        assert cells
        places = [loader._watched.place(visit) for visit, _, _ in cells]
        assert {place[0] for place in places if place} <= {"p0", "p1", "p2"}
        for _ in loader:
            pass
        stats = loader.stats()
        assert stats.pixels_drawn == stats.windows * 16 * 16
        assert stats.reuse == pytest.approx(1.0)


def test_loaders_of_this_process_are_known_until_they_are_closed_or_forgotten():
    loader = LightDL(dataset(), **small())
    assert loader._watched not in live.loaders()
    loader.start()
    assert loader._watched in live.loaders()
    look = Local()
    assert ("", loader.name) in look.look().loaders
    loader.close()
    assert ("", loader.name) not in look.look().loaders
    forgotten = LightDL(dataset(), **small()).start()
    name = forgotten.name
    assert ("", name) in look.look().loaders
    del forgotten
    assert ("", name) not in look.look().loaders


def test_the_picture_has_a_cell_for_each_big_chunk():
    with LightDL(dataset(), **small()) as loader:
        loader.get()
        state = Local().look([loader._watched])
        (one,) = state.sets.values()
        picture = draw(state, 0.0)
        assert picture.count("<title>") == len(one.cells) > 0
        for _ in range(20):
            loader.get()
        loader.pause()
        page = loader._repr_html_()
        assert "<title>p" in page
        assert "of 24 draws left" in page
        assert ">0</div>" not in page.split("patches per second")[0]
    assert "closed" in loader._repr_html_()
