from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.loading.spans import cut
from daskdmed.persistence.plan import Population, RotationPlan
from daskdmed.persistence.policy import LeastVisitedFirst


def turns(n, slots, draws):
    plan = RotationPlan(
        Population((9, 9)), slots=slots, draws_per_visit=draws, seed=0, policy=LeastVisitedFirst()
    )
    return list(itertools.islice(plan, n))


parameters = {
    "slots": st.integers(1, 9),
    "draws": st.integers(1, 20),
    "longest": st.integers(1, 50),
    "deal": st.integers(1, 30),
    "world_size": st.integers(1, 4),
    "position": st.integers(0, 60),
    "before": st.integers(0, 60),
}


@settings(max_examples=80)
@given(**parameters)
def test_ranks_share_all_draws_once_in_order(
    slots, draws, longest, deal, world_size, position, before
):
    planned = turns(20, slots, draws)
    total = sum(len(t) for t in planned)
    position = min(position, total - 1)
    base = max(0, position - before)
    first = next(i for i, t in enumerate(planned) if t.start + len(t) > position)
    seen = []
    for rank in range(world_size):
        last = []
        for span in cut(
            iter(planned[first:]),
            longest=longest,
            deal=deal,
            rank=rank,
            world_size=world_size,
            position=position,
            base=base,
        ):
            assert len(span) <= longest
            assert len(span) == span.visits.size == span.draws.size
            if len(span):
                assert (span.start - base) // deal % world_size == rank or world_size == 1
                assert (span.stop - 1 - base) // deal % world_size == rank or world_size == 1
            offset = span.start - span.turn.start
            assert np.array_equal(span.visits, span.turn.visits[offset : offset + len(span)])
            seen += [(rank, d) for d in range(span.start, span.stop)]
            if span.last:
                last.append(span.turn.number)
        assert last == [t.number for t in planned[first:]]
        mine = [d for r, d in seen if r == rank]
        assert mine == sorted(mine)
    assert sorted(d for _, d in seen) == list(range(position, total))


@settings(max_examples=40)
@given(
    then=st.tuples(st.integers(1, 4), st.integers(1, 9)),
    now=st.tuples(st.integers(2, 4), st.integers(1, 9)),
    taken=st.integers(0, 6),
)
def test_what_is_dealt_anew_lacks_no_whole_round(then, now, taken):
    """Of a plan that ends: rounds count from where they are dealt, and only whole ones come."""
    planned = turns(9, 3, 7)
    total = sum(len(t) for t in planned)
    base = min(taken * then[0] * then[1], total)
    world_size, deal = now
    together = world_size * deal
    for rank in range(world_size):
        spans = cut(
            iter([t for t in planned if t.start + len(t) > base]),
            longest=100,
            deal=deal,
            rank=rank,
            world_size=world_size,
            position=base,
            base=base,
            reaches=lambda draws: total >= draws,
        )
        given = [d for span in spans for d in range(span.start, span.stop)]
        firsts = range(base + rank * deal, total, together)[: (total - base) // together]
        assert given == [d for first in firsts for d in range(first, first + deal)]
