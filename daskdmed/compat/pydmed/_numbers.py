"""The global generators of NumPy and `random`, lent to a script's hooks.

A hook draws from them as PyDmed's samples do. Each visit has numbers of its own, of the seed and
the visit: they are lent to the hook while it runs, one hook at a time. So a run gives the same
batches again, unless the script itself draws from these generators at the same moment: a training
loop that is to be repeated has a generator of its own. (Of ``np.random.normal`` NumPy keeps every
other number for later; at each loan that one is dropped.)

Not covered: torch's generators, which are the script's.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import sys
import threading
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

np_random: Any = np.random
#: what NumPy and everybody else calls the state of a Mersenne Twister
_WORDS = 624
_generator: Any = random.random.__self__  # type: ignore[attr-defined]
_lock = threading.Lock()
_running = threading.local()


def _find_words() -> memoryview | None:
    """Place and words of `random`'s generator, as they lie in memory; None where they do not.

    ``random.getstate`` makes 625 objects of them and ``setstate`` takes as many apart: together
    they take longer than the usual hook.
    """
    gil: Any = getattr(sys, "_is_gil_enabled", lambda: True)
    room: Any = _generator.__class__.__base__.__basicsize__ - object.__basicsize__
    if sys.implementation.name != "cpython" or not gil() or room < 4 * (_WORDS + 1):
        return None
    found = (ctypes.c_uint32 * (_WORDS + 1)).from_address(id(_generator) + object.__basicsize__)
    *words, place = _generator.getstate()[1]
    return memoryview(found).cast("B") if list(found) == [place, *words] else None


_memory = _find_words()


def _python_state() -> Any:
    if _memory is None:
        return random.getstate()
    return bytes(_memory), _generator.gauss_next


def _set_python_state(state: Any) -> None:
    if _memory is None:
        random.setstate(state)
    else:
        _memory[:], _generator.gauss_next = state


def _seeded(seed: int) -> Any:
    """What `_python_state` gives of a generator with a seed."""
    state = random.Random(seed).getstate()
    if _memory is None:
        return state
    *words, place = state[1]
    return array("I", [place, *words]).tobytes(), None


class Numbers:
    """States of the global generators for one visit; lent to its hooks: ``with numbers:``."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._numpy: Any = np.random.MT19937(int(rng.integers(2**63)))
        self._python = _seeded(int(rng.integers(2**63)))
        self._own: tuple[Any, Any] = (None, None)

    def __enter__(self) -> None:
        """The global generators go on with these numbers."""
        self._begin()
        _running.numbers = self

    def __exit__(self, *exc_info: object) -> None:
        """They have their own state again."""
        _running.numbers = None
        self._end()

    def _begin(self) -> None:
        _lock.acquire()
        # a state of NumPy's takes a hundred times as long to be copied
        self._own = np_random.get_bit_generator(), _python_state()
        np_random.set_bit_generator(self._numpy)
        _set_python_state(self._python)

    def _end(self) -> None:
        self._python = _python_state()
        np_random.set_bit_generator(self._own[0])
        _set_python_state(self._own[1])
        _lock.release()


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """A hook that waits lets others run."""
    numbers: Numbers | None = getattr(_running, "numbers", None)
    if numbers is None:
        yield
        return
    numbers._end()
    try:
        yield
    finally:
        numbers._begin()
