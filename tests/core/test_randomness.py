"""Counter-based generators: streams of their place, cheap to make."""

import os
import pickle
import secrets

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core.randomness import Purpose, generator, seed_key


@settings(max_examples=25)
@given(st.integers(0, 2**64 - 2**11), st.lists(st.integers(0, 2**53), max_size=3))
def test_a_generator_is_philox_at_its_key_and_counter(key, place):
    counter = [0, *(*place, 0, 0, 0)[:3]]
    wanted = np.random.Generator(np.random.Philox(key=[key, 4], counter=counter))
    found = generator(key, Purpose.LOCATE, *place)
    assert (found.integers(2**63, size=9) == wanted.integers(2**63, size=9)).all()
    assert pickle.loads(pickle.dumps(found)).random() == wanted.random()


def test_the_operating_system_is_not_asked_for_a_seed(monkeypatch):
    """It would take longer than all the rest, and hand the GIL to others."""

    def refused(*_):
        raise AssertionError("asked")

    monkeypatch.setattr(secrets, "randbits", refused)
    monkeypatch.setattr(os, "urandom", refused)
    generator(seed_key(0), Purpose.COLLECT, 1, 2)


def test_children_are_the_same_in_every_run_and_unlike_each_other():
    def children(*place):
        one = generator(seed_key(0), Purpose.COLLECT, *place)
        return [g.random() for g in (*one.spawn(2), *one.spawn(1), one)]

    found = children(1, 2)
    assert found == children(1, 2)
    assert len({*found, *children(1, 3)}) == 8
