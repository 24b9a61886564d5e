"""What holds for every loader.

A test class derives from `LoaderContract` and says how its loader is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import pickle
import random
import threading
import weakref
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from distributed import Client
from torch.utils.data import DataLoader, IterableDataset

from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL
from daskdmed.errors import BudgetError, LoaderClosedError, LoaderError, StateError, UsageError
from daskdmed.loading import ranks as ranks_module
from daskdmed.policies import OnePass
from tests.loading.conftest import (
    assert_same_batches,
    assert_true_to_place,
    collect,
    coordinate_array,
    coordinate_dataset,
)
from tests.waiting import until

#: of the images
SIZE = {"height": 300, "width": 280, "chunks": 128}


def threads():
    """Threads that loaders have started, those of Dask aside."""
    return {t for t in threading.enumerate() if t.name.startswith("daskdmed")}


def image(function, number=0):
    """An array, each block of which goes through a function (block, block_id)."""
    return coordinate_array(number=number, **SIZE).map_blocks(
        function, dtype="u1", meta=np.empty((0, 0, 0), "u1"), name=f"own-{id(function)}-{number}"
    )


def dataset_of(*arrays):
    patients = [Patient(f"p{i}", {"wsi": Record(array=a)}) for i, a in enumerate(arrays)]
    return Dataset("own", patients)


def names(batches):
    """What each small chunk is, in order."""
    return [
        (str(c.patient.id), c.origin, c.bigchunk.visit, c.draw)
        for _, _, chunks in batches
        for c in chunks
    ]


@contextlib.contextmanager
def group(make, world_size, batch_size, **options):
    """A loader for each rank, none of them started."""
    options = {**options, "batch_size": batch_size, "world_size": world_size}
    ranks = [make(**options, rank=rank) for rank in range(world_size)]
    yield ranks
    for loader in ranks:
        loader.close()


def bad(block):
    raise OSError("this block is bad")


def kind_of(value):
    """A name that is the same in every process."""
    return type(value).__name__


class Gate:
    """Blocks that can be read once it is opened."""

    def __init__(self):
        self.asked, self.open = threading.Event(), threading.Event()

    def __call__(self, block):
        self.asked.set()
        self.open.wait()
        return block


class Asks:
    """A transform of the whole batch that asks for its small chunks."""

    needs_smallchunks = True

    def __call__(self, x, chunks):
        assert len(x) == len(chunks)
        return x + torch.from_numpy(chunks.origins[:, 0].astype("u1"))[:, None, None, None]


class OfLoader:
    """Batches of 8 small chunks of 32 x 32 pixels."""

    #: the class of the loader
    kind: ClassVar[Any]
    #: its parameters
    options: ClassVar[dict[str, Any]]
    #: and those that give each small chunk once, over all ranks
    finite: ClassVar[dict[str, Any]] = {}
    #: what `stats` calls a small chunk
    small: ClassVar[str]

    def make(self, dataset=None, **options):
        dataset = dataset or coordinate_dataset(2, **SIZE)
        return self.kind(dataset, **{**self.options, **options})

    def few(self, **options):
        """A loader of 80 or 90 small chunks a pass."""
        dataset = coordinate_dataset(1, height=200, width=190, chunks=128)
        return self.make(dataset, **{**self.finite, **options})


class OfLightDL(OfLoader):
    kind = LightDL
    options = {
        "smallchunk_size": 32,
        "batch_size": 8,
        "bigchunk_size": 128,
        "resident": "1 MiB",
        "smallchunks_per_bigchunk": 20,
    }
    finite = {"policy": OnePass(), "drop_last": False}
    small = "patches"


class OfSlidingWindowDL(OfLoader):
    kind = SlidingWindowDL
    options = {
        "kernel_size": 32,
        "stride": 20,
        "edge": "shift",
        "batch_size": 8,
        "block_windows": 4,
        "resident": "1 MiB",
    }
    small = "windows"


class LoaderContract(OfLoader):
    """What holds for each kind of loader."""

    # -- batches ----------------------------------------------------------------------

    def test_batches_are_tensors_patients_and_small_chunks(self):
        with self.make() as loader:
            for x, patients, chunks in itertools.islice(loader, 6):
                assert x.shape == (8, 3, 32, 32)
                assert x.dtype == torch.uint8
                assert x.is_contiguous(memory_format=torch.channels_last)
                assert len(patients) == len(chunks) == 8
                assert all(c.patient is p for c, p in zip(chunks, patients, strict=True))
                assert_true_to_place(x, chunks)

    def test_it_is_an_iterable_dataset_for_a_dataloader(self):
        with self.make() as loader, self.make() as same:
            assert isinstance(loader, IterableDataset)
            loop = iter(DataLoader(loader, batch_size=None, num_workers=0))
            assert_same_batches(collect(loop, 3), collect(same, 3))

    def test_worker_processes_of_a_dataloader_are_refused(self):
        with self.make() as loader:
            with pytest.raises(UsageError, match="num_workers=0"):
                pickle.dumps(loader)
            loop = DataLoader(
                loader, batch_size=None, num_workers=1, multiprocessing_context="spawn"
            )
            with pytest.raises(UsageError, match="num_workers=0"):
                next(iter(loop))

    def test_the_end_is_the_end_at_every_further_call(self):
        with self.make(**self.finite) as loader:
            assert len(list(loader)) == len(loader)
            for _ in range(2):
                with pytest.raises(StopIteration):
                    loader.get()

    # -- loops ------------------------------------------------------------------------

    def test_loops_that_count_find_every_pass_whole(self):
        """They take so many batches as there are and never meet the end, as Lightning does."""
        with self.make(**self.finite) as loader, self.make(**self.finite) as plain:
            counted = [names(b for _, b in zip(range(len(loader)), loader)) for _ in range(3)]
            assert counted == [names(plain) for _ in range(3)]
            assert len(counted[0]) == len(set(counted[0])) == len(counted[1]) == len(counted[2])

    def test_a_loop_that_was_left_is_over(self):
        """The next one is a whole pass, the one that would have come in any case."""
        with self.make(**self.finite) as loader, self.make(**self.finite) as plain:
            passes = [names(plain) for _ in range(2)]
            assert names(itertools.islice(loader, 2)) == passes[0][:16]
            assert names(loader) == passes[1]

    def test_batches_by_hand_are_in_no_loop(self):
        with self.make(**self.finite) as loader, self.make(**self.finite) as plain:
            first, second = names(plain), names(plain)
            by_hand = [next(loader), loader.get()]
            assert names(itertools.chain(by_hand, loader)) == first
            assert names(loader) == second

    def test_two_loops_at_a_time_are_refused(self):
        with self.make() as loader:
            first, second = iter(loader), iter(loader)
            next(first)
            next(second)
            with pytest.raises(UsageError, match="another loop.*a loader for each"):
                next(first)
            next(second)

    def test_the_first_loop_gives_what_a_saved_one_left(self):
        with self.make(**self.finite) as loader:
            loop = iter(loader)
            names(itertools.islice(loop, 3))
            state = loader.state_dict()
            rest, second = names(loop), names(loader)
            finished = loader.state_dict()
        with self.make(**self.finite) as other:  # started, and no batch taken
            other.load_state_dict(state)
            assert names(other) == rest
            assert names(other) == second
        with self.make(**self.finite) as other:
            other.load_state_dict(finished)
            assert len(names(other)) == len(second), "nothing was left of it"

    # -- training frameworks ----------------------------------------------------------

    def test_a_batch_can_be_moved(self):
        from lightning_utilities.core.apply_func import apply_to_collection

        class Kind(type):
            def __instancecheck__(cls, value):
                return callable(getattr(value, "to", None))

        class Movable(metaclass=Kind):
            """As Lightning knows them."""

        with self.make() as loader:
            batch = next(loader)
        for kind in (Movable, torch.Tensor):  # to move, and to convert
            x, patients, chunks = apply_to_collection(batch, kind, lambda v: v.to("meta"))
            assert x.device.type == "meta"
            assert all(a is b for a, b in zip(patients, batch[1], strict=True))
            assert chunks is batch[2]
        chunk = chunks[0]
        assert apply_to_collection(chunk, Movable, lambda v: v.to("meta")) is chunk
        for part in (chunks, chunk, chunk.bigchunk):
            assert part.to("meta", non_blocking=True) is part

    # -- transforms -------------------------------------------------------------------

    def test_transforms_per_sample_and_per_batch(self):
        where = []

        def tfms(sample):
            assert sample.shape == (3, 32, 32)
            assert sample.dtype == torch.uint8
            return sample[:, ::2, ::2].float()

        def batch_tfms(x):
            where.append(threading.current_thread())
            return x / 255

        with self.make(tfms=tfms, batch_tfms=batch_tfms) as loader:
            x, _, chunks = next(loader)
        assert where == [threading.main_thread()]
        expected = torch.from_numpy(chunks.data).movedim(-1, 1)[..., ::2, ::2].float() / 255
        assert torch.equal(x, expected)

    @pytest.mark.parametrize("option", ["tfms", "batch_tfms"])
    def test_a_transform_of_the_batch_gets_the_small_chunks(self, option):
        with self.make(**{option: Asks()}) as loader:
            x, _, chunks = next(loader)
        assert torch.equal(x, Asks()(torch.from_numpy(chunks.data).movedim(-1, 1), chunks))

    def test_random_functions_are_seeded_and_take_nothing_from_the_loop(self):
        """They draw from the global generators, which are the training loop's too."""
        callers = set()

        def noisy(sample):
            callers.add(threading.current_thread())
            drawn = torch.rand(1) + float(np.random.rand()) + random.random()  # noqa: NPY002
            return sample + drawn

        def draw():
            return float(torch.rand(1)), float(np.random.rand()), random.random()  # noqa: NPY002

        def reset():
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
            random.seed(0)

        def run(state=None):
            reset()
            with self.make(tfms=noisy) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                batches, drawn = [], []
                for _ in range(3):
                    batches.append(loader.get()[0])
                    drawn.append(draw())
                    until(lambda: loader.stats().batches_ready)  # more is made meanwhile
                return batches, drawn, loader.state_dict()

        once, drawn, state = run()
        again, same, _ = run()
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        assert drawn == same
        reset()
        assert drawn == [draw() for _ in range(3)], "as if there were no loader"
        assert len({float((a - a.floor()).flatten()[0]) for a in once}) == 3
        assert callers == {threading.current_thread()}
        with self.make() as plain:
            for _ in range(3):
                next(plain)
            raw = next(plain)[0]
        later, _, _ = run(state)
        assert not torch.equal(later[0], raw)
        with self.make(tfms=noisy) as loader:
            fourth = collect(loader, 4)[-1][0]
        assert np.array_equal(later[0].numpy(), fourth), "and after a state was loaded"

    def test_other_functions_run_in_the_background(self):
        callers, meeting, met = [], threading.Barrier(2), []

        def plain(sample):
            callers.append(threading.current_thread().name)
            if len(callers) > 8:  # of the first batch
                with contextlib.suppress(threading.BrokenBarrierError):
                    met.append(meeting.wait(0.2))
            return sample

        with self.make(tfms=plain) as loader:
            collect(loader, 8)
        # four batches were ready and one was being made before anybody knew
        assert callers[:8] == ["MainThread"] * 8
        assert callers.count("MainThread") <= 6 * 8
        assert callers.count("daskdmed-loader") >= 2 * 8
        assert not met, "one thread calls the function while another does"

    @pytest.mark.parametrize("result", [None, {"image": 1}, "image", object(), [None]], ids=kind_of)
    def test_what_a_transform_may_not_give(self, result):
        with self.make(tfms=lambda sample: result) as loader:
            for _ in range(2):  # the batch is not lost
                with pytest.raises(
                    UsageError, match="the transform .* gave .*a tensor or an array"
                ):
                    loader.get()
            assert loader.state_dict() == self.make().state_dict()

    @pytest.mark.parametrize("option", ["tfms", "batch_tfms"])
    def test_a_transform_that_forgets_to_return_the_batch(self, option):
        class Forgets(Asks):
            def __call__(self, x, chunks):
                x += 1

        with self.make(**{option: Forgets()}) as loader:
            with pytest.raises(UsageError, match="gave None; let it return"):
                loader.get()

    def test_errors_of_transforms_reach_the_consumer(self):
        def broken(sample):
            raise ValueError("no good")

        sizes = itertools.count(1)

        with self.make(tfms=broken) as loader:
            for _ in range(2):
                with pytest.raises(ValueError, match="no good"):
                    next(loader)
        with (
            self.make(tfms=lambda sample: sample[:, : next(sizes)]) as loader,
            pytest.raises(UsageError, match="differing shapes"),
        ):
            next(loader)

    # -- life -------------------------------------------------------------------------

    def test_closing_ends_everything(self):
        before = threads()
        loader = self.make()
        assert "not started" in repr(loader)
        assert loader.start() is loader.start()
        x, _, chunks = loader.get()
        mine = threads() - before
        assert mine
        assert "running" in repr(loader)
        loader.close()
        loader.close()
        assert not any(t.is_alive() for t in mine)
        assert "closed" in repr(loader)
        for call in (loader.get, loader.start, loader.pause, lambda: list(loader)):
            with pytest.raises(LoaderClosedError):
                call()
        assert_true_to_place(x, chunks)  # a batch outlives its loader
        self.make().close()  # never started

    def test_a_forgotten_loader_ends(self):
        before = threads()
        loader = self.make()
        next(loader)
        mine = threads() - before
        gone = weakref.ref(loader)
        del loader
        gc.collect()
        assert gone() is None
        for thread in mine:
            thread.join()
            assert not thread.is_alive()

    def test_a_paused_loader_gives_what_is_ready_and_goes_on_later(self):
        with self.make() as loader, self.make() as same:
            first = collect(loader, 1)
            loader.pause()
            with pytest.raises(TimeoutError, match="paused"):
                while True:
                    x, patients, chunks = loader.get(timeout=0.05)
                    first.append((x.numpy(), [p.id for p in patients], chunks.origins))
            loader.resume()
            assert_same_batches(first + collect(loader, 3), collect(same, len(first) + 3))

    def test_a_timeout_and_a_batch_after_it(self):
        gate = Gate()
        with self.make(dataset_of(image(gate))) as loader:
            with pytest.raises(TimeoutError, match=r"no batch within 0.05 s \(.* being read\)"):
                loader.get(timeout=0.05)
            gate.open.set()
            assert len(loader.get()[0]) == 8

    def test_closing_while_a_read_is_under_way(self):
        gate = Gate()
        loader = self.make(dataset_of(image(gate))).start()
        waiting = []

        def consume():
            try:
                loader.get()
            except LoaderClosedError as error:
                waiting.append(error)

        consumer = threading.Thread(target=consume)
        closer = threading.Thread(target=loader.close)
        consumer.start()
        gate.asked.wait()
        closer.start()
        consumer.join()  # although the read is not over
        assert len(waiting) == 1
        gate.open.set()
        closer.join()
        assert not closer.is_alive()

    @pytest.mark.parametrize("name", ["batch_size", "tfms", "rank", "world_size"])
    def test_what_cannot_be_changed_says_so(self, name):
        loader = self.make()
        before = getattr(loader, name)
        for _ in range(2):
            with pytest.raises(UsageError, match=f"{name} .* cannot be changed to 5.* {name}="):
                setattr(loader, name, 5)
            loader.start()
        assert getattr(loader, name) == before
        loader.close()

    def test_it_can_be_used_where_an_event_loop_runs(self):
        """As in Jupyter, and beside other coroutines."""

        async def take(loader):
            first = loader.get()
            second, beside = await asyncio.gather(
                asyncio.to_thread(loader.get), asyncio.sleep(0, "beside")
            )
            assert beside == "beside"
            return names([first, second])

        with self.make() as loader, self.make() as same:
            assert asyncio.run(take(loader)) == names(itertools.islice(same, 2))

    # -- clients ----------------------------------------------------------------------

    def test_asynchronous_and_closed_clients_are_refused(self):
        async def refused():
            async with Client(
                processes=False,
                n_workers=1,
                dashboard_address=":0",
                asynchronous=True,
                set_as_default=False,
            ) as client:
                with pytest.raises(UsageError, match="asynchronous"):
                    self.make(client=client).start()
            return client

        asyncio.run(refused())
        options = {"dashboard_address": ":0", "set_as_default": False}
        with Client(processes=False, n_workers=1, **options) as client:
            pass
        with pytest.raises(UsageError, match="client= is closed"):
            self.make(client=client).start()

    def test_a_client_that_is_closed_under_the_loader(self):
        with (
            Client(
                processes=False,
                n_workers=1,
                threads_per_worker=1,
                dashboard_address=":0",
                set_as_default=False,
            ) as client,
            self.make(client=client) as loader,
        ):
            next(loader)
            client.close()
            with pytest.raises(LoaderError, match="connection"):
                for _ in range(1000):
                    loader.get()

    def test_more_than_half_of_the_memory_is_refused(self):
        with pytest.raises(BudgetError, match="half of the workers' memory"):
            self.make(resident="1000 TiB").start()

    # -- state ------------------------------------------------------------------------

    @pytest.mark.parametrize("taken", [0, 1, 7])
    def test_a_state_goes_on_with_the_next_batch(self, taken):
        with self.make() as loader:
            collect(loader, taken)
            state = json.loads(json.dumps(loader.state_dict()))
            expected = collect(loader, 6)
        # another process has other objects: the same arrays, made again
        other = self.make()
        other.load_state_dict(state)
        with other:
            assert_same_batches(collect(other, 6), expected)
            assert other.stats().batches == taken + 6

    def test_states_that_do_not_fit_are_refused(self):
        with self.make() as loader:
            next(loader)
            state = loader.state_dict()
        with pytest.raises(LoaderClosedError):
            loader.load_state_dict(state)
        with pytest.raises(StateError, match="another loader.*only ranks and batch_size may"):
            self.make(coordinate_dataset(3, **SIZE)).load_state_dict(state)
        for version in ({"version": 99}, {**state, "version": 2}, {}, None, []):
            with pytest.raises(StateError, match=r"version .* reads versions 3 and 4"):
                self.make().load_state_dict(version)
        untouched = self.make()
        damages = [{"position": "x"}, {"position": -8}, {"batches": None}, {"parameters": 3}]
        for damage in damages:
            with pytest.raises(StateError, match="damaged"):
                untouched.load_state_dict({**state, **damage})
        assert untouched.state_dict() == self.make().state_dict()

    def test_a_state_can_be_loaded_at_any_time(self):
        """What was made ahead is dropped; a loop that is going on goes on from there."""
        with self.make(**self.finite) as loader, self.make(**self.finite) as plain:
            whole = names(plain)
            loop = iter(loader)
            assert names(itertools.islice(loop, 2)) == whole[:16]
            state = loader.state_dict()
            assert names(itertools.islice(loop, 3)) == whole[16:40]
            with pytest.raises(StateError):
                loader.load_state_dict({**state, "position": None})
            assert names([loader.get()]) == whole[40:48], "a refused state changes nothing"
            for _ in range(2):  # back
                loader.load_state_dict(state)
                assert names([loader.get()]) == whole[16:24]
                assert loader.stats().batches == 3
            later = loader.state_dict()
            loader.load_state_dict(self.make(**self.finite).state_dict())
            assert names([loader.get()]) == whole[:8]
            loader.load_state_dict(later)  # and ahead
            assert names(loop) == whole[24:]
            assert names(loader) == names(plain), "the next loop is a whole one"

    @pytest.mark.parametrize(
        ("then", "now"),
        [
            ((2, 8), (1, 8)),
            ((4, 8), (2, 8)),
            ((1, 16), (1, 24)),
            ((2, 8), (3, 5)),
        ],
        ids=str,
    )
    def test_a_pass_goes_on_with_other_ranks_and_batch_sizes(self, then, now):
        """Each small chunk once; each rank loads a state of any of those that were."""
        with group(self.few, *then) as ranks:
            first = [b for loader in ranks for b in itertools.islice(loader, 2)]
            states = [json.loads(json.dumps(loader.state_dict())) for loader in ranks]
        with group(self.few, *now) as ranks, self.few() as plain:
            lengths = []
            for number, loader in enumerate(ranks):
                loader.load_state_dict(states[-number % len(states)])
                lengths.append(len(loader))
            rest = [list(loader) for loader in ranks]
            assert [len(batches) + 2 for batches in rest] == lengths
            assert all(len(b[0]) == now[1] for batches in rest for b in batches[:-1])
            assert sorted(names(itertools.chain(first, *rest))) == sorted(names(plain))
            # and the next pass is a whole one
            again = [list(loader) for loader in ranks]
            assert sorted(names(itertools.chain(*again))) == sorted(names(plain))
            assert [len(batches) for batches in again] == [len(loader) for loader in ranks]

    @pytest.mark.parametrize("told", [False, True])
    def test_nothing_is_left_of_a_pass_that_was_whole(self, told):
        """Whether its end was met or its batches were counted."""
        with self.few() as loader:
            names(loader if told else itertools.islice(loader, len(loader)))
            state = loader.state_dict()
            following = sorted(names(loader))
        with group(self.few, 2, 5) as ranks:
            for loader in ranks:
                loader.load_state_dict(state)
                with pytest.raises(StopIteration):
                    loader.get()
            loops = [list(loader) for loader in ranks]
            assert sorted(names(itertools.chain(*loops))) == following
            assert [len(batches) for batches in loops] == [len(loader) for loader in ranks]

    def test_a_state_of_the_version_before(self):
        with self.few() as loader:
            whole = names(loader)
        with self.few() as loader:
            names(itertools.islice(loader, 3))
            new = loader.state_dict()
        kept = {"position", "ended", "epoch", "batches", "windows", "failed", "parameters"}
        old = {name: value for name, value in new.items() if name in kept}
        old |= {"version": 3}
        if self.kind is LightDL:
            old |= {"iterated": 3, "over": False}
        for size in (8, 5):
            with self.few(batch_size=size) as loader:
                loader.load_state_dict(old)
                assert names(loader) == whole[24:]

    # -- ranks ------------------------------------------------------------------------

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_ranks_share_everything(self, world_size):
        with self.make(**self.finite) as loader:
            whole = names(loader)
        shares = []
        for rank in range(world_size):
            with self.make(**self.finite, rank=rank, world_size=world_size) as loader:
                shares.append(names(loader))
        assert sorted(itertools.chain(*shares)) == sorted(whole)
        assert len(set(whole)) == len(whole)
        assert min(map(len, shares)) > 0

    @pytest.mark.parametrize("started", [False, True])
    def test_a_process_group_that_comes_after_the_loader(self, monkeypatch, started):
        options = {**self.finite, "rank": 1, "world_size": 2}
        with self.make(**options) as loader:
            expected, length = names(loader), len(loader)
        late = self.make(**self.finite)
        if started:
            late.start()
        with self.make(**self.finite) as too_late:
            next(too_late)
            monkeypatch.setattr(ranks_module, "_process_group", lambda: (1, 2))
            assert (late.rank, late.world_size, len(late)) == (1, 2, length)
            assert names(late) == expected
            with pytest.raises(UsageError, match=r"\(rank 1 of 2\) was initialised after"):
                next(too_late)
            monkeypatch.setattr(ranks_module, "_process_group", lambda: None)
            assert len(names(late)) == len(expected), "a group that is gone changes nothing"
        late.close()

    def test_processes_that_know_nothing_of_each_other_are_told(self, monkeypatch, caplog):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with self.make() as loader:
            assert "WORLD_SIZE" not in caplog.text, "the group may still come"
            collect(loader, 2)
        assert caplog.text.count("WORLD_SIZE=2") == 1
        assert "every process gets the same batches" in caplog.text
        caplog.clear()
        monkeypatch.setenv("RANK", "1")
        with self.make(rank="auto") as loader:
            assert (loader.rank, loader.world_size) == (1, 2)
            next(loader)
        assert "the same batches" not in caplog.text

    def test_a_process_group_that_comes_after_a_state(self, monkeypatch):
        """The state is that of a loader which knew of no others."""
        with group(self.few, 2, 8) as ranks:
            first = [b for loader in ranks for b in itertools.islice(loader, 2)]
            state = ranks[0].state_dict()
        late = []
        for rank in range(2):
            with monkeypatch.context() as later, self.few() as loader:
                loader.load_state_dict(state)
                later.setattr(ranks_module, "_process_group", lambda rank=rank: (rank, 2))
                late += list(loader)
        with self.few() as loader:
            assert sorted(names(first + late)) == sorted(names(loader))

    def test_a_rank_goes_on_from_the_state_of_another(self):
        """Of which a training framework saves one only."""

        def make(rank):
            return self.make(**self.finite, rank=rank, world_size=2)

        with make(0) as loader:
            collect(loader, 3)
            state = loader.state_dict()
        with make(1) as other, make(1) as same:
            other.load_state_dict(state)
            assert names(other) == names(same)[24:]
            assert other.stats().batches >= 6

    # -- errors -----------------------------------------------------------------------

    def test_an_error_reaches_the_consumer_with_its_place(self):
        with self.make(dataset_of(image(bad))) as loader:
            for _ in range(2):
                with pytest.raises(
                    LoaderError, match=r"patient 'p0', record 'wsi', .*this block is bad"
                ) as info:
                    loader.get()
            assert (info.value.patient, info.value.record) == ("p0", "wsi")
            assert isinstance(info.value.__cause__, OSError)

    def test_skipping_loses_nothing_else_and_says_what(self):
        mixed = dataset_of(
            coordinate_array(number=0, **SIZE), image(bad, 1), coordinate_array(number=2, **SIZE)
        )
        seen = set()
        with self.make(mixed, on_error="skip") as loader:
            for x, patients, chunks in itertools.islice(loader, 40):
                seen |= {p.id for p in patients}
                assert_true_to_place(x, chunks)
            failed = loader.stats().failed
        assert seen == {"p0", "p2"}
        assert {f.patient for f in failed} == {"p1"}
        assert "this block is bad" in failed[0].message

    @pytest.mark.parametrize(
        "wrong",
        [
            {"batch_size": 0},
            {"batch_size": 2.5},
            {"batch_size": True},
            {"on_error": "ignore"},
            {"resident": "lots"},
            {"rank": 2, "world_size": 2},
            {"rank": -1, "world_size": 2},
            {"rank": 1},
            {"world_size": 2},
            {"world_size": 0, "rank": 0},
        ],
        ids=str,
    )
    def test_wrong_arguments_are_named(self, wrong):
        with pytest.raises(UsageError, match="|".join(wrong)):
            self.make(**wrong)

    # -- looking at it ----------------------------------------------------------------

    def test_what_it_shows(self):
        with self.make() as loader:
            for _ in itertools.islice(loader, 3):
                pass
            page, stats = loader._repr_html_(), loader.stats()
        assert (stats.batches, getattr(stats, self.small)) == (3, 24)
        assert 0 < stats.first_batch_seconds <= stats.seconds
        assert 0 < stats.wait_seconds <= stats.seconds
        assert 0 < stats.wait_fraction <= 1
        assert stats.resident_bytes <= stats.budget_bytes
        for text in (page, str(stats)):
            for name in (self.small, "batches", "memory", "left out"):
                assert name in text
        for (name, value), line in zip(stats.rows(), str(stats).splitlines(), strict=True):
            assert line.startswith(f"{name}  ")
            assert line.endswith(value)
        assert "<table>" in page
        assert loader.name.startswith(self.kind.__name__)
