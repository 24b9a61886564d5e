"""The global generators of NumPy and `random`, lent to hooks."""

import random

import numpy as np
import pytest

from daskdmed.compat.pydmed import _numbers, lightdl
from daskdmed.compat.pydmed.lightdl import LightDL, SmallChunk, SmallChunkCollector
from tests.compat.pydmed.made import Loader, dataset, settings


@pytest.fixture(params=["in memory", "by its methods"])
def way(request, monkeypatch):
    """How the state of `random` is swapped: fast on CPython, and as it is documented."""
    if request.param == "by its methods":
        monkeypatch.setattr(_numbers, "_memory", None)
    elif _numbers._memory is None:
        pytest.skip("this Python keeps it elsewhere")


def drawn():
    """From everything that has a state: `gauss` keeps every other number for later."""
    return random.getrandbits(77), random.gauss(), random.sample(range(99), 3), np.random.random()


def lent(seed, times):
    numbers = _numbers.Numbers(np.random.default_rng(seed))
    found = []
    for _ in range(times):
        with numbers:
            found.append(drawn())
    return found


def test_numbers_go_on_from_loan_to_loan_and_the_scripts_own_do_too(way):
    random.seed(3)
    np.random.seed(3)
    wanted = [drawn() for _ in range(3)]
    random.seed(3)
    np.random.seed(3)
    own, found = [drawn()], lent(1, 1)
    own.append(drawn())
    assert lent(1, 300)[0] == found[0]
    own.append(drawn())
    assert own == wanted
    assert len(set(map(repr, lent(1, 300) + lent(2, 300)))) == 600


def test_both_ways_give_the_same_numbers(monkeypatch):
    fast = lent(1, 300)
    monkeypatch.setattr(_numbers, "_memory", None)
    assert lent(1, 300) == fast


def test_what_is_lent_is_what_random_makes_of_the_seed(way):
    rng = np.random.default_rng(8)
    numpys, pythons = (int(rng.integers(2**63)) for _ in range(2))
    numbers = _numbers.Numbers(np.random.default_rng(8))
    with numbers:
        found = [random.random() for _ in range(1000)], np.random.bytes(9)
    wanted, other = random.Random(pythons), np.random.RandomState(np.random.MT19937(numpys))
    assert found == ([wanted.random() for _ in range(1000)], other.bytes(9))


def test_a_hook_that_fails_gives_them_back(way):
    random.seed(3)
    wanted = random.random()
    random.seed(3)
    with pytest.raises(KeyError), _numbers.Numbers(np.random.default_rng(1)):
        raise KeyError(random.random())
    assert random.random() == wanted


class Whole(SmallChunkCollector):
    def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
        return SmallChunk(bigchunk.data[:9, :9], {}, {}, self.patient)


@pytest.mark.parametrize("tfms", [None, np.copy])
def test_hooks_need_not_wait_while_a_batch_is_put_together(monkeypatch, tfms):
    asked, real = [], lightdl.batch_of

    def batch_of(made, chunks):
        asked.append(_numbers._lock.acquire(timeout=60))
        _numbers._lock.release()
        return real(made, chunks)

    monkeypatch.setattr(lightdl, "batch_of", batch_of)
    loader = LightDL(dataset(), Loader, Whole, settings(), 5, tfms)
    loader.start()
    try:
        assert loader.get()[0].shape == (5, 9, 9, 3)
    finally:
        loader.pause_loading()
    assert asked == [True]
