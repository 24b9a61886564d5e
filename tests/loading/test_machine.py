"""Loaders that are killed, resumed with other numbers, and moved about, against one undisturbed.

The machine keeps a group of ranks and a model of where they stand: a place in the stream of
an epoch, and what is known of the present loop. ``DASKDMED_LONG_TESTS=1`` tries many more.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from daskdmed import LightDL
from daskdmed.loading.quotas import Quota
from daskdmed.policies import EachOnce, OnePass
from tests.loading.conftest import coordinate_dataset

LONG = bool(os.environ.get("DASKDMED_LONG_TESTS"))
DATASET = coordinate_dataset(2, height=100, width=90, chunks=64)
TINY = {"smallchunk_size": 16, "bigchunk_size": 48, "resident": "40 KiB"}
#: what plans may be of; batches of quotas have one size
PLANS = {
    "endless": {},
    "pass": {"policy": OnePass()},
    "lattice": {"policy": EachOnce(13)},
    "quotas": {"quotas": [Quota(0.4, patients={"y": 1})], "resident": "120 KiB"},
}


def keys(batch):
    """What each small chunk is, with its pixels."""
    x, _, chunks = batch
    return [
        (c.patient.id, c.origin, c.bigchunk.visit, c.draw, row.tobytes())
        for row, c in zip(np.asarray(x), chunks, strict=True)
    ]


class Stream:
    """The small chunks of an epoch, from one loader that nobody disturbs."""

    def __init__(self, options, epoch):
        self._loader = LightDL(DATASET, **options, drop_last=False)
        self._loader.set_epoch(epoch)
        self._known = []

    def __getitem__(self, part):
        while len(self._known) < part.stop:
            try:
                self._known += keys(self._loader.get())
            except StopIteration:
                break
        return self._known[part]

    def close(self):
        self._loader.close()


@dataclass
class Model:
    """Where a group of ranks stands."""

    epoch: int = 0
    #: small chunks of the epoch that all have taken
    position: int = 0
    #: small chunks of the present loop
    iterated: int = 0
    #: batches of each rank, of the epoch and of all
    batches: int = 0
    total: int = 0
    over: bool = False
    looped: bool = False
    resumed: bool = False
    chosen: bool = False

    def begin(self, epoch):
        fresh = Model(epoch=epoch, total=self.total)
        self.__dict__.update(fresh.__dict__)

    def set_epoch(self, epoch):
        if epoch != self.epoch or (self.over and not self.resumed):
            self.begin(epoch)
        self.chosen = True


@dataclass
class Saved:
    """States of all ranks at one moment, and the model then."""

    states: list
    model: Model


class Elastic(RuleBasedStateMachine):
    saved = Bundle("saved")
    ranks = ()
    size = 1

    @initialize(
        target=saved,
        plan=st.sampled_from(sorted(PLANS)),
        draws=st.integers(3, 20),
        seed=st.integers(0, 3),
        length=st.none() | st.integers(1, 6),
        drop_last=st.booleans(),
        restart=st.booleans(),
        world_size=st.integers(1, 3),
        size=st.integers(1, 9),
    )
    def start(self, plan, draws, seed, length, drop_last, restart, world_size, size):
        self.fixed = size if plan == "quotas" else None
        self.options = {**TINY, "smallchunks_per_bigchunk": draws, "seed": seed, **PLANS[plan]}
        self.length, self.drop_last, self.restart = length, drop_last, restart
        self.finite = plan in ("pass", "lattice")
        self.streams = {}
        self.model = Model()
        self._make(world_size, size)
        return self._save()

    def teardown(self):
        for loader in (*self.ranks, *getattr(self, "streams", {}).values()):
            loader.close()

    def _make(self, world_size, size):
        self.size = self.fixed or size
        options = {"epoch_length": self.length, "drop_last": self.drop_last}
        options |= {"restart": self.restart, "batch_size": self.size}
        self.ranks = [
            LightDL(DATASET, **self.options, **options, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]

    def _save(self):
        states = [json.loads(json.dumps(loader.state_dict())) for loader in self.ranks]
        return Saved(states, copy.copy(self.model))

    # -- the model --------------------------------------------------------------------

    @property
    def stream(self):
        epoch = self.model.epoch
        if epoch not in self.streams:
            size = self.fixed or 10
            self.streams[epoch] = Stream({**self.options, "batch_size": size}, epoch)
        return self.streams[epoch]

    @property
    def together(self):
        return self.size * len(self.ranks)

    def _round(self):
        """What each rank gets next, [] for nothing."""
        model, size = self.model, self.size
        part = [] if model.over else self.stream[model.position : model.position + self.together]
        if self.drop_last and len(part) < self.together:
            part = []
        return [part[rank * size : (rank + 1) * size] for rank in range(len(self.ranks))]

    def _took(self, expected):
        self.model.position += sum(map(len, expected))
        self.model.batches += 1
        self.model.total += 1

    def _left(self):
        """Rounds of the epoch that are left."""
        left = len(self.stream[self.model.position : 10**4])
        return left // self.together if self.drop_last else -(-left // self.together)

    def _begins_anew(self):
        if not self.finite:
            return self.restart
        whole = len(self.stream[0 : 10**4]) // self.together
        return self.restart or self.length is None or self.length >= whole

    def _next_pass(self, again):
        self.model.begin(self.model.epoch + (not again and not self.restart))

    def _loop_ended(self):
        return self.length is not None and self.model.iterated >= self.length * self.together

    def _begin_loop(self):
        """Whether the loop may be an empty one."""
        model = self.model
        resumed, model.resumed = model.resumed, False
        chosen, model.chosen = model.chosen, False
        if resumed and (chosen or not self._loop_ended()):
            return chosen
        again = model.position and (chosen or (model.looped and self._begins_anew()))
        if model.over or again:
            self._next_pass(again=chosen)
        model.iterated = 0
        return not model.position

    def _loop(self, count):
        """What a loop of at most so many rounds gives."""
        may_be_empty = self._begin_loop()
        model = self.model
        for _ in range(count):
            if self._loop_ended():
                return
            expected = self._round()
            if not any(expected):
                if may_be_empty:
                    model.over = True
                    return
                self._next_pass(again=False)
                expected = self._round()
                if not any(expected):
                    model.over = True
                    return
            may_be_empty = True
            self._took(expected)
            model.iterated += self.together
            model.looped = True
            yield expected

    # -- what happens -----------------------------------------------------------------

    @rule(count=st.integers(1, 4))
    def take(self, count):
        for _ in range(count):
            expected = self._round()
            for loader, batch in zip(self.ranks, expected, strict=True):
                if batch:
                    assert keys(loader.get()) == batch
            if not all(expected):
                # those that had a batch hear the end too
                for loader in self.ranks:
                    with pytest.raises(StopIteration):
                        loader.get()
            if any(expected):
                self._took(expected)
            if not all(expected):
                self.model.over = True
                return

    @rule(count=st.integers(1, 5))
    def loop(self, count):
        if not self.drop_last and len(self.ranks) > 1:
            return  # ranks of which one has a batch more are not in step
        loops = [iter(loader) for loader in self.ranks]
        expected = list(self._loop(count))
        for batches in expected:
            for loop, batch in zip(loops, batches, strict=True):
                assert keys(next(loop)) == batch
        if len(expected) < count:
            for loop in loops:
                assert next(loop, None) is None
        for loop in loops:
            loop.close()

    @rule(epoch=st.integers(0, 2))
    def set_epoch(self, epoch):
        for loader in self.ranks:
            loader.set_epoch(epoch)
        self.model.set_epoch(epoch)

    @rule(target=saved)
    def save(self):
        return self._save()

    @rule(
        saved=saved,
        world_size=st.integers(1, 3),
        size=st.integers(1, 9),
        close=st.booleans(),
        own=st.booleans(),
        one=st.integers(0, 2),
    )
    def resume(self, saved, world_size, size, close, own, one):
        """In new loaders, from the state of one rank or of several."""
        if close:
            for loader in self.ranks:
                loader.close()
        self._make(world_size, size)
        self._load(saved, own, one)

    @rule(saved=saved, own=st.booleans(), one=st.integers(0, 2))
    def go_back(self, saved, own, one):
        """In the loaders that are there."""
        self._load(saved, own, one)

    def _load(self, saved, own, one):
        for rank, loader in enumerate(self.ranks):
            loader.load_state_dict(saved.states[(rank if own else one) % len(saved.states)])
        self.model = replace(saved.model, looped=True, resumed=True, chosen=False)

    @rule()
    def look(self):
        loader, model = self.ranks[0], self.model
        stats = loader.stats()
        assert (loader.epoch, stats.batches) == (model.epoch, model.total)
        if self.finite and not model.over:
            whole = model.batches + self._left()
            assert len(loader) == (whole if self.length is None else min(whole, self.length))


# where the machine is busy Dask says that it takes long to begin
TestElastic = pytest.mark.filterwarnings("ignore:Creating scratch")(Elastic.TestCase)
TestElastic.settings = settings(
    max_examples=120 if LONG else 8,
    stateful_step_count=30 if LONG else 10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
