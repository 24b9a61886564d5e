"""Copies that go on while others are collected: each is made once it is asked for, and once."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest

from daskdmed.loading.copying import Copier


@pytest.fixture(params=[1, 2, 4])
def copier(request):
    made = Copier(request.param)
    yield made
    made.close()


def copies(count, owner=-1, seed=0):
    rng = np.random.default_rng(seed)
    sources = [rng.integers(1, 255, (8, 8, 3), np.uint8) for _ in range(count)]
    return [(np.zeros_like(source), source, owner) for source in sources]


def are_made(made):
    return [bool(np.array_equal(target, source)) for target, source, _ in made]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 100])
def test_all_are_made_when_one_has_waited(copier, count):
    made = copies(count)
    for one in made:
        copier.add(*one)
    wait = copier.start()
    wait()
    assert all(are_made(made))
    wait()  # and again, which is nothing


def test_several_threads_may_wait(copier):
    for turn in range(20):
        made = copies(50, seed=turn)
        for one in made:
            copier.add(*one)
        wait = copier.start()
        found = []

        def waits(wait=wait, made=made, found=found):
            wait()
            found.append(all(are_made(made)))

        threads = [threading.Thread(target=waits) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 4


def test_what_was_begun_is_made_before_more_is_begun(copier):
    first, second = copies(40), copies(40, seed=1)
    for one in first:
        copier.add(*one)
    copier.start()
    for one in second:
        copier.add(*one)
    assert not any(are_made(second))
    copier.start()
    assert all(are_made(first))


def test_settled_owners_may_go(copier):
    """Also where copies of theirs were begun; those of others are still to be made."""
    begun, gone, stay = copies(40, 2), copies(3, 2), copies(3, 3)
    for one in begun:
        copier.add(*one)
    copier.start()
    for one in (*gone, *stay):
        copier.add(*one)
    copier.settle([2, 7])
    assert all(are_made(begun))
    assert all(are_made(gone))
    assert not any(are_made(stay))
    # nobody holds on to what has been copied
    watched = [weakref.ref(source) for _, source, _ in (*begun, *gone)]
    begun.clear()
    gone.clear()
    assert not [ref for ref in watched if ref() is not None]
    copier.flush()
    assert all(are_made(stay))


def test_nobody_waits_for_copies_of_others(monkeypatch):
    copier = Copier(2)
    monkeypatch.setattr(copier._pool, "submit", lambda work: None)
    begun, gone = copies(40, 1), copies(3, 2)
    for one in begun:
        copier.add(*one)
    wait = copier.start()
    for one in gone:
        copier.add(*one)
    copier.settle([2])
    assert all(are_made(gone))
    assert not any(are_made(begun))
    wait()
    assert all(are_made(begun))
    copier.close()


def test_helpers_that_do_not_come_keep_nobody_waiting(monkeypatch):
    """Whoever waits makes what no other thread has begun."""
    copier = Copier(3)
    asked = []
    monkeypatch.setattr(copier._pool, "submit", asked.append)
    made = copies(40)
    for one in made:
        copier.add(*one)
    wait = copier.start()
    assert len(asked) == 2
    wait()
    assert all(are_made(made))
    asked[0]()  # late, and there is nothing left
    copier.close()


def test_a_failure_is_raised_to_all_who_wait(copier):
    wrong = (np.zeros((2, 2), np.uint8), np.zeros((3, 3), np.uint8), -1)
    for one in (*copies(20), wrong, *copies(20)):
        copier.add(*one)
    wait = copier.start()
    for _ in range(2):
        with pytest.raises(ValueError, match="broadcast"):
            wait()
    with pytest.raises(ValueError, match="broadcast"):
        copier.start()
    copier.close()  # which is no trouble


def test_closing_makes_what_was_begun_and_forgets_the_rest():
    copier, begun, rest = Copier(2), copies(40), copies(40, seed=1)
    for one in begun:
        copier.add(*one)
    wait = copier.start()
    for one in rest:
        copier.add(*one)
    copier.close()
    copier.close()
    wait()
    assert all(are_made(begun))
    assert not any(are_made(rest))
