from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.errors import UsageError
from daskdmed.persistence.plan import FIRST_VISITS, Population, RotationPlan
from daskdmed.persistence.policy import LeastVisitedFirst, Sequential, as_policy


def plan(blocks=(6, 6, 6, 6), slots=5, draws=16, seed=0, policy=None):
    return RotationPlan(
        Population(tuple(blocks), tuple(map(str, range(len(blocks)))), ({},) * len(blocks)),
        slots=slots,
        draws_per_visit=draws,
        seed=seed,
        policy=as_policy(policy),
    )


def take(p, n):
    return list(itertools.islice(p, n))


def same(a, b):
    return (
        a.number == b.number
        and a.start == b.start
        and a.resident == b.resident
        and np.array_equal(a.visits, b.visits)
        and np.array_equal(a.draws, b.draws)
    )


plans = st.fixed_dictionaries(
    {
        "blocks": st.lists(st.integers(1, 30), min_size=1, max_size=8),
        "slots": st.integers(1, 40),
        "draws": st.integers(1, 60),
        "seed": st.integers(0, 2**70),
    }
)


@settings(max_examples=60)
@given(plans)
def test_every_visit_gives_exactly_its_draws_in_order_and_one_leaves_a_turn(parameters):
    turns = take(plan(**parameters), 60)
    given_draws = Counter()
    position = 0
    for turn in turns:
        assert turn.start == position
        position += len(turn)
        assert len(turn.leaving) == 1
        assert turn.leaving[0] == turn.resident[0]
        assert set(turn.visits.tolist()) <= {v.number for v in turn.resident}
        for visit, draw in zip(turn.visits.tolist(), turn.draws.tolist(), strict=True):
            assert draw == given_draws[visit]
            given_draws[visit] += 1
        assert given_draws[turn.leaving[0].number] == parameters["draws"]
        assert len(turn.resident) <= parameters["slots"]


@settings(max_examples=40)
@given(plans)
def test_every_record_is_admitted_once_per_cycle(parameters):
    turns = take(plan(**parameters), 50)
    visits = {v.number: v for t in turns for v in t.resident}
    order = [visits[i].record for i in sorted(visits)]
    n = len(parameters["blocks"])
    for start in range(0, len(order) - n + 1, n):
        assert sorted(order[start : start + n]) == list(range(n))


@settings(max_examples=40)
@given(plans)
def test_every_block_of_a_record_is_visited_once_per_lap(parameters):
    turns = take(plan(**parameters), 60)
    visits = {v.number: v for t in turns for v in t.resident}
    for record, blocks in enumerate(parameters["blocks"]):
        mine = [visits[i] for i in sorted(visits) if visits[i].record == record]
        assert [v.nth for v in mine] == list(range(len(mine)))
        for start in range(0, len(mine) - blocks + 1, blocks):
            assert sorted(v.block for v in mine[start : start + blocks]) == list(range(blocks))


@settings(max_examples=40)
@given(plans, st.integers(0, 400))
def test_skipping_gives_the_turns_that_walking_gives(parameters, position):
    walked = next(t for t in plan(**parameters) if t.start <= position < t.start + len(t))
    skipped = plan(**parameters)
    skipped.skip_to(position)
    assert same(next(skipped), walked)


def test_same_seed_same_plan_other_seed_other_plan():
    a, b, c = take(plan(seed=7), 20), take(plan(seed=7), 20), take(plan(seed=8), 20)
    assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x.visits, y.visits) for x, y in zip(a, c, strict=True))


def test_steady_state_shares_draws_evenly():
    turns = take(plan(blocks=(500,) * 8, slots=16, draws=512), 80)[32:]
    draws = np.concatenate([t.visits for t in turns])
    per_turn = np.mean([len(t) for t in turns])
    assert 0.9 * 512 < per_turn < 1.1 * 512
    windows = [len(set(draws[i : i + 64].tolist())) for i in range(0, draws.size - 64, 64)]
    # 64 draws from 16 visits, uniformly, meet 15.7 of them on average
    assert np.mean(windows) > 14


def test_first_draws_come_from_the_first_visits():
    first = next(plan(blocks=(500,) * 8, slots=40, draws=512))
    assert set(first.visits[:32].tolist()) <= set(range(FIRST_VISITS + 2))
    assert set(first.visits.tolist()) == set(range(40))


def test_more_slots_than_blocks_and_one_patient():
    p = plan(blocks=(1,), slots=50, draws=10)
    assert p.slots == 1
    assert all(len(t) == 10 for t in take(p, 5))


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(UsageError, match="nothing to draw from"):
        plan(blocks=())


@pytest.mark.parametrize("bad", [{"slots": 0}, {"draws": 0}])
def test_counts_below_one_are_refused(bad):
    with pytest.raises(UsageError, match="at least 1"):
        plan(**bad)


def test_sequential_policy_ends_after_every_block():
    turns = list(plan(blocks=(3, 2), slots=2, draws=4, policy=Sequential()))
    visits = {v.number: v for t in turns for v in t.resident}
    assert [visits[i].record for i in sorted(visits)] == [0, 0, 0, 1, 1]
    assert sum(len(t) for t in turns) == 5 * 4


def test_function_policy_sees_counts_residents_and_labels():
    seen = []

    def policy(situation, rng):
        seen.append(situation)
        assert not situation.counts.flags.writeable
        return int(rng.integers(4))

    take(plan(policy=policy), 10)
    assert seen[0].visit == 0
    assert seen[-1].counts.sum() == seen[-1].visit
    assert len(seen[3].resident) == 3
    assert seen[0].patients == ("0", "1", "2", "3")


def test_policy_out_of_range_is_refused():
    with pytest.raises(UsageError, match="admitted record 9"):
        next(plan(policy=lambda situation, rng: 9))


def test_default_policy_is_least_visited_first():
    assert isinstance(as_policy(None), LeastVisitedFirst)
