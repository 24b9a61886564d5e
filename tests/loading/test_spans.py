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
}


@settings(max_examples=80)
@given(**parameters)
def test_ranks_share_all_draws_once_in_order(slots, draws, longest, deal, world_size, position):
    planned = turns(20, slots, draws)
    total = sum(len(t) for t in planned)
    position = min(position, total - 1)
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
        ):
            assert len(span) <= longest
            assert len(span) == span.visits.size == span.draws.size
            if len(span):
                assert (span.start // deal) % world_size == rank or world_size == 1
            offset = span.start - span.turn.start
            assert np.array_equal(span.visits, span.turn.visits[offset : offset + len(span)])
            seen += [(rank, d) for d in range(span.start, span.stop)]
            if span.last:
                last.append(span.turn.number)
        assert last == [t.number for t in planned[first:]]
        mine = [d for r, d in seen if r == rank]
        assert mine == sorted(mine)
    assert sorted(d for _, d in seen) == list(range(position, total))
