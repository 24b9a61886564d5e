"""What a tab is sent: only what changed, and nothing is lost by that."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("bokeh")

from daskdmed.core.live import ASKED, READY, WAITED
from daskdmed.monitor.changes import Changes
from daskdmed.monitor.page import _BOX, _ROW, _TELLING, Cells, Page, Strip
from daskdmed.monitor.state import LiveState
from tests.monitor.made import FakeLoader, FakeRun


def drawn(cells):
    return {name: list(cells.source.data[name]) for name in (*_BOX, *_ROW)}


@pytest.mark.parametrize("by", [0, 1])
def test_patches_end_in_what_would_be_drawn_anew(by):
    rng = np.random.default_rng(3)
    loaders = [FakeLoader(f"l{i}", rank=i % 2, plan="p" if i < 2 else "") for i in range(3)]
    changes, state = [Changes(loader) for loader in loaders], LiveState()
    cells, newest, sent = Cells(state), 0, []
    cells.by = by
    for _ in range(8 * _TELLING):
        for loader in loaders:
            for visit in list(loader.rows)[: int(rng.integers(3))]:
                del loader.rows[visit]
            for _ in range(int(rng.integers(3))):
                loader.rows[newest] = (ASKED, -1)
                newest += 1
            for visit, (_, left) in list(loader.rows.items()):
                if rng.random() < 0.6:
                    there = int(rng.choice([READY, WAITED, ASKED]))
                    loader.rows[visit] = (there, max((40 if left < 0 else left) - 3, 0))
        for one in changes:
            assert state.hear("c", one.message(), 0.0)
        cells.update()
        sent.append(len(cells.source.data["slide"]))
    again = Cells(state)
    # by age, colours keep those of the time when they were drawn
    kept = {"strong", "light", "line"} if by else set()
    again.by, again._palette = by, cells._palette
    again.update()
    expected, found = drawn(again), drawn(cells)
    for name in expected.keys() - kept:
        if name in ("x0", "x1", "y0", "y1", "level"):
            assert found[name] == pytest.approx(expected[name])
        else:
            assert found[name] == expected[name], name
    assert len(set(sent)) < len(sent)  # most often only rows changed


def test_nothing_is_sent_when_nothing_has_changed():
    from bokeh.document import Document

    loader, state = FakeLoader(cells=dict.fromkeys(range(50), (READY, 9))), LiveState()
    changes = Changes(loader)
    state.hear("c", changes.message(), 0.0)
    document, cells = Document(), Cells(state)
    cells.update()
    document.add_root(cells.root)
    sent = []
    document.on_change(sent.append)
    for _ in range(_TELLING):
        state.hear("c", changes.message(), 0.0)
        cells.update()
    assert not sent
    loader.rows[3] = (READY, 8)
    state.hear("c", changes.message(), 0.0)
    cells.update()
    (event,) = sent
    assert event.patches == {"level": [(3, pytest.approx(cells.source.data["level"][3]))]}


def test_levels_of_many_go_as_one_column():
    loader, state = FakeLoader(cells=dict.fromkeys(range(50), (READY, 9))), LiveState()
    changes, cells = Changes(loader), Cells(state)
    state.hear("c", changes.message(), 0.0)
    cells.update()
    loader.rows = {visit: (READY, visit % 9) for visit in loader.rows}
    state.hear("c", changes.message(), 0.0)
    cells.update()
    again = Cells(state)
    again.update()
    assert list(cells.source.data["level"]) == list(again.source.data["level"])
    assert len(set(cells.source.data["level"])) > 9
    for _ in range(_TELLING):
        cells.update()
    assert cells.source.data["told"] == again.source.data["told"]


def test_the_strip_gets_each_interval_once():
    loader, state = FakeLoader(), LiveState()
    changes, strip = Changes(loader), Strip(state)
    for second in range(6):
        loader.count(seconds=second, visits_admitted=3 * second, visits_evicted=second)
        state.hear("c", changes.message(), float(second))
        strip.update()
        strip.update()
    assert strip.source.data["up"].tolist() == [3.0] * 5
    assert strip.source.data["down"].tolist() == [-1.0] * 5
    assert np.diff(strip.source.data["x"]) == pytest.approx(np.full(4, 1000.0), abs=50)


def test_a_page_without_loaders_says_how_to_get_some_and_shows_runs():
    state = LiveState()
    page = Page(state)
    page.update()
    assert "No loader and no run" in page.words.numbers.text
    assert not page.cells.root.visible
    state.hear("c", Changes(FakeRun()).message(), 0.0)
    page.update()
    assert "No loader" not in page.words.numbers.text
    assert "heatmap" in page.words.rest.text
    state.hear("c", Changes(FakeLoader("<b>")).message(), 0.0)
    page.update()
    assert page.cells.root.visible
    assert "patches per second" in page.words.numbers.text
