"""Composed batches, policies of balance: counted over whole plans."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.errors import BudgetError, NoTissueError, UsageError
from daskdmed.persistence.plan import Population, RotationPlan
from daskdmed.persistence.policy import (
    LabelBalanced,
    LeastVisitedFirst,
    OnePass,
    Sequential,
    Weighted,
    as_policy,
)
from daskdmed.persistence.strata import StratifiedPlan, Stratum


def population(records=20, blocks=6, labels=lambda i: {"grade": i % 4}):
    return Population(
        (blocks,) * records,
        tuple(f"p{i}" for i in range(records)),
        tuple(labels(i) for i in range(records)),
    )


def stratified(strata, batch_size=16, slots=20, draws=24, seed=0, people=None):
    return StratifiedPlan(
        people or population(),
        strata,
        batch_size=batch_size,
        slots=slots,
        draws_per_visit=draws,
        seed=seed,
        policy=LeastVisitedFirst(),
    )


shares = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(max_examples=50)
@given(shares, st.integers(16, 70), st.integers(40, 80), st.integers(0, 2**40))
def test_every_batch_has_its_shares_and_every_visit_its_draws(parts, draws, slots, seed):
    batch = sum(parts)
    strata = [Stratum(str(k), share, (k, k + 5)) for k, share in enumerate(parts)]
    plan = stratified(strata, batch, slots, draws, seed)
    given_draws: Counter[int] = Counter()
    position, owners = 0, []
    for turn in itertools.islice(plan, 30):
        assert turn.start == position
        position += len(turn)
        visits = {v.number: v for v in turn.resident}
        assert list(visits) == sorted(visits)
        assert len(visits) <= slots
        for number, draw in zip(turn.visits.tolist(), turn.draws.tolist(), strict=True):
            assert given_draws[number] == draw
            given_draws[number] += 1
            visit = visits[number]
            assert visit.record in strata[visit.stratum].records
            owners.append(visit.stratum)
        for visit in turn.leaving:
            assert given_draws[visit.number] == draws
        done = {n for n in visits if given_draws[n] == draws}
        assert done == {v.number for v in turn.leaving}
    for rows in (
        itertools.batched(owners, batch)
        if hasattr(itertools, "batched")
        else (owners[i : i + batch] for i in range(0, len(owners), batch))
    ):
        if len(rows) == batch:
            assert [Counter(rows)[k] for k in range(len(parts))] == parts


def test_fractions_are_right_in_the_mean_and_batches_full():
    strata = [Stratum("a", 1.3, (0,)), Stratum("b", 0.25, (1,)), Stratum("c", 14.45, (2, 3))]
    plan = stratified(strata)
    counts = np.array([plan.composition(b) for b in range(4000)])
    assert (counts.sum(axis=1) == 16).all()
    assert (counts >= np.floor([1.3, 0.25, 14.45])).all()
    np.testing.assert_allclose(counts.mean(axis=0), [1.3, 0.25, 14.45], atol=0.01)


def test_skipping_is_the_same_as_drawing():
    strata = [Stratum("rare", 2, (3,)), Stratum("all", 14, tuple(range(20)))]
    turns = list(itertools.islice(stratified(strata), 40))
    for at in (0, 1, 17, 500, turns[30].start, turns[30].start + 3):
        plan = stratified(strata)
        plan.skip_to(at)
        turn = next(plan)
        assert turn.start <= at < turn.start + len(turn)
        same = turns[turn.number]
        assert turn.resident == same.resident
        assert np.array_equal(turn.visits, same.visits)
        assert np.array_equal(turn.draws, same.draws)


def test_a_rare_class_is_in_memory_from_the_first_batch_on():
    people = population(50)
    strata = [Stratum("rare", 4, (37,)), Stratum("all", 60, tuple(range(50)))]
    plan = stratified(strata, batch_size=64, draws=128, people=people)
    for turn in itertools.islice(plan, 50):
        records = {v.number: v.stratum for v in turn.resident}
        rows = np.array([records[n] for n in turn.visits.tolist()]).reshape(-1, 64)
        assert ((rows == 0).sum(axis=1) == 4).all()


@pytest.mark.parametrize(
    ("strata", "slots", "error", "message"),
    [
        ([Stratum("a", 3, (0,))], 20, UsageError, "add up to batch_size=16"),
        ([Stratum("a", 16, ())], 20, UsageError, "no record belongs to 'a'"),
        ([Stratum("a", 8, (0,)), Stratum("b", 8, (1,))], 4, BudgetError, "need 6 big chunks"),
    ],
)
def test_strata_that_cannot_be(strata, slots, error, message):
    with pytest.raises(error, match=message):
        stratified(strata, slots=slots)


# -- weights of big chunks ---------------------------------------------------------------


def rotation(
    policy=None,
    weights=None,
    accepts=None,
    blocks=(6, 6, 6, 6),
    slots=5,
    draws=4,
    seed=0,
    labels=None,
):
    people = Population(
        tuple(blocks), tuple(f"p{i}" for i in range(len(blocks))), labels or ({},) * len(blocks)
    )
    return RotationPlan(
        people,
        slots=slots,
        draws_per_visit=draws,
        seed=seed,
        policy=as_policy(policy),
        weights=weights,
        accepts=accepts,
    )


def visits_of(plan, turns):
    seen = {}
    for turn in itertools.islice(plan, turns):
        seen.update((v.number, v) for v in turn.resident)
    return list(seen.values())


def test_big_chunks_are_visited_in_proportion_to_their_tissue():
    weights = np.array([0.0, 1, 2, 3, 0, 6])
    visits = visits_of(rotation(weights=lambda _: weights), 6000)
    counts = np.bincount([v.block for v in visits], minlength=6)
    np.testing.assert_allclose(counts / counts.sum(), weights / 12, atol=0.01)


def test_visits_that_are_not_accepted_leave_the_true_proportion():
    """Weights may be bounds; skipping gives the same as walking."""
    bounds, there = np.array([4.0, 1, 2, 3, 0, 6]), np.array([1.0, 1, 1, 3, 0, 2])

    def plan():
        return rotation(
            weights=lambda _: bounds,
            accepts=lambda _, block, rng: rng.random() < there[block] / bounds[block],
        )

    visits = visits_of(plan(), 6000)
    counts = np.bincount([v.block for v in visits], minlength=6)
    np.testing.assert_allclose(counts / counts.sum(), there / there.sum(), atol=0.01)
    walked = next(itertools.islice(plan(), 100, None))
    skipped = plan()
    skipped.skip_to(walked.start)
    assert next(skipped).resident == walked.resident


def test_records_without_tissue_are_left_out():
    full = np.ones(6)
    visits = visits_of(rotation(weights=lambda r: full * (r in (1, 3))), 200)
    assert {v.record for v in visits} == {1, 3}


def test_no_tissue_anywhere():
    with pytest.raises(NoTissueError, match="none of the 4 records"):
        next(rotation(weights=lambda _: np.zeros(6)))


def test_a_policy_that_insists_on_a_record_without_tissue():
    with pytest.raises(NoTissueError, match="keeps admitting"):
        next(rotation(policy=lambda *_: 0, weights=lambda r: np.full(6, float(r))))


@pytest.mark.parametrize("policy", [OnePass(2), Sequential(2)])
def test_a_pass_visits_every_big_chunk_with_tissue_equally_often(policy):
    weights = np.array([5.0, 0, 1, 9, 0, 2])
    plan = rotation(policy, lambda r: weights if r != 2 else np.zeros(6))
    visits = visits_of(plan, 10_000)
    assert Counter((v.record, v.block) for v in visits) == {
        (r, b): 2 for r in (0, 1, 3) for b in (0, 2, 3, 5)
    }


# -- policies ----------------------------------------------------------------------------


def chi_square(counts, expected):
    expected = np.asarray(expected, float) / np.sum(expected) * np.sum(counts)
    return float(((np.asarray(counts) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("form", ["mapping", "function"])
def test_weighted_keeps_the_declared_probabilities(form):
    weights = {"p0": 1.0, "p1": 2.0, "p2": 0.0, "p3": 5.0}
    if form == "mapping":
        policy, labels = Weighted(weights), None
    else:
        policy, labels = Weighted(lambda facts: facts["w"]), [{"w": w} for w in weights.values()]
    visits = visits_of(rotation(policy, labels=labels), 8000)
    counts = np.bincount([v.record for v in visits], minlength=4)
    assert counts[2] == 0
    # 2 degrees of freedom: 13.8 is passed once in a thousand, the seed is fixed
    assert chi_square(counts[[0, 1, 3]], [1, 2, 5]) < 13.8


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none(weight):
    with pytest.raises(UsageError, match="finite and not negative"):
        next(rotation(Weighted({"p0": weight})))


def test_all_weights_zero():
    with pytest.raises(UsageError, match="no patient has a positive weight"):
        next(rotation(Weighted({})))


def test_label_balanced_gives_every_value_as_often():
    labels = [{"grade": 0 if i else 1} for i in range(9)]  # one of nine is of grade 1
    visits = visits_of(rotation(LabelBalanced("grade"), blocks=(6,) * 9, labels=labels), 2000)
    counts = Counter(labels[v.record]["grade"] for v in visits)
    assert abs(counts[0] - counts[1]) <= 1
    per_record = Counter(v.record for v in visits if v.record)
    assert max(per_record.values()) - min(per_record.values()) <= 1


def test_label_balanced_needs_the_label():
    with pytest.raises(UsageError, match="has no label 'grade'"):
        next(rotation(LabelBalanced("grade")))


def test_a_schedule_of_the_seed_in_five_lines():
    """PyDmed's initial_schedule/schedule: weights that fall with every time scheduled."""

    def schedule(situation, rng):
        weights = 1.0 / (1.0 + situation.counts)
        never = situation.counts == 0
        weights = never / never.sum() if never.any() else weights / weights.sum()
        return rng.choice(len(weights), p=weights)

    visits = visits_of(rotation(schedule), 100)
    assert {v.record for v in visits[:4]} == {0, 1, 2, 3}


def test_a_policy_sees_how_long_ago_each_record_was_admitted():
    seen = []

    def longest_ago(situation, rng):
        seen.append(situation.ages.copy())
        assert not situation.ages.flags.writeable
        return int(situation.ages.argmax())

    visits = visits_of(rotation(longest_ago), 20)
    records = [v.record for v in visits]
    assert records == [i % 4 for i in range(len(records))]  # round robin
    for n, ages in enumerate(seen[: len(visits)]):
        expected = [
            n - max((i for i, r in enumerate(records[:n]) if r == record), default=-1)
            for record in range(4)
        ]
        assert ages.tolist() == expected
