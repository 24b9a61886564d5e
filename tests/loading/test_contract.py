"""Both loaders keep the contract of loaders."""

from __future__ import annotations

import itertools

import pytest

from daskdmed.errors import UsageError
from daskdmed.policies import OnePass
from tests.loading.contract import LoaderContract, OfLightDL, OfSlidingWindowDL, names


class TestLightDL(OfLightDL, LoaderContract):
    def test_loops_over_an_endless_plan_go_on_in_it(self):
        """However they end, and each is as long as was asked for."""
        with self.make(epoch_length=4) as loader, self.make() as endless:
            counted = [names(b for _, b in zip(range(len(loader)), loader)) for _ in range(2)]
            left = names(itertools.islice(loader, 3))
            whole = names(loader)
            expected = names(itertools.islice(endless, 15))
        assert [*counted[0], *counted[1], *left, *whole] == expected

    @pytest.mark.parametrize("options", [{"policy": OnePass()}, {"epoch_length": 4}, {}], ids=list)
    def test_restarted_loops_give_the_same(self, options):
        """However they end; `set_epoch` gives others, again and again."""
        with self.make(**options, restart=True) as loader:
            first = names(itertools.islice(loader, 4))
            assert names(itertools.islice(loader, 2)) == first[:16]
            assert names(b for _, b in zip(range(4), loader)) == first
            loader.set_epoch(3)
            third = [names(itertools.islice(loader, 4)) for _ in range(2)]
            assert third[0] == third[1] != first
            loop = iter(loader)
            next(loop)
            state = loader.state_dict()
        with self.make(**options, restart=True) as loader:
            loader.load_state_dict(state)
            assert names(itertools.islice(loader, 3)) == third[0][8:]
            assert names(itertools.islice(loader, 4)) == third[0]

    def test_the_length_of_a_loop_can_be_changed(self):
        with self.make(epoch_length=4) as loader:
            first = []
            for batch in loader:
                first.append(batch)
                loader.epoch_length = 2
            assert len(first) == len(loader) == len(list(loader)) == 2
            with pytest.raises(UsageError, match="epoch_length must be"):
                loader.epoch_length = 0

    def test_the_present_epoch_is_begun_anew_where_it_is_asked_for(self):
        """As PyTorch's samplers do with set_epoch(0) before every loop."""
        with self.make(epoch_length=4) as loader:
            loader.set_epoch(0)
            first = names(loader)
            loader.set_epoch(0)
            assert names(loader) == first
            assert names(loader) != first
            loader.set_epoch(0)
            rest = names([next(loader)])
            assert rest[0] not in first, "without a loop it goes on"


class TestSlidingWindowDL(OfSlidingWindowDL, LoaderContract):
    pass
