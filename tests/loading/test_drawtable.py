"""Where draws lie, for many at once, against asking each."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.loading import drawtable
from daskdmed.loading.drawtable import DrawTable

SLOTS, DRAWS = 3, 4


@settings(max_examples=60)
@given(st.data())
def test_as_if_each_was_asked_for(data):
    table = DrawTable(SLOTS, DRAWS, axes=2, facts=3)
    there: dict[int, tuple] = {}  # visit -> slot, facts, places
    numbers = st.integers(0, 50)
    for step in range(data.draw(st.integers(1, 12))):
        free = sorted(set(range(SLOTS)) - {slot for slot, *_ in there.values()})
        if there and (not free or data.draw(st.booleans())):
            table.forget(there.pop(data.draw(st.sampled_from(sorted(there))))[0])
        else:
            visit = data.draw(numbers.filter(lambda n: n not in there))
            known = data.draw(st.integers(0, DRAWS + 2))
            starts = np.arange(2 * known).reshape(known, 2) + 100 * step
            there[visit] = free[0], (visit, step, 7), starts
            table.note(free[0], visit, (visit, step, 7), starts, starts + 1000)
        rows = data.draw(st.lists(st.tuples(numbers, st.integers(0, DRAWS + 1)), min_size=1))
        visits, draws = (np.array(column) for column in zip(*rows, strict=True))
        found = table.find(visits, draws)
        known = [v in there and d < min(len(there[v][2]), DRAWS) for v, d in rows]
        assert (found is not None) == all(known)
        if found is not None:
            assert found.facts.tolist() == [list(there[v][1]) for v, _ in rows]
            starts = np.array([there[v][2][d] for v, d in rows])
            np.testing.assert_array_equal(found.starts, starts)
            np.testing.assert_array_equal(found.origins, starts + 1000)


def test_of_very_many_draws_the_first_are_known(monkeypatch):
    monkeypatch.setattr(drawtable, "MOST_DRAWS", 3)
    table = DrawTable(1, 10, axes=1, facts=1)
    table.note(0, 5, (1,), np.arange(10)[:, None], np.arange(10)[:, None])
    assert table.find(np.array([5]), np.array([2])) is not None
    assert table.find(np.array([5]), np.array([3])) is None
