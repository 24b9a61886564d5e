"""PyDmed's dataloader: its documented behaviour, where the original had defects too (P1 to P19)."""

import logging
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch

import daskdmed.compat.pydmed as pydmed
from daskdmed.compat.pydmed.extensions.dl import LabelBalancedDL
from daskdmed.compat.pydmed.lightdl import (
    PYDMEDRESERVED_DLRETURNEDLASTINSTANCE,
    PYDMEDRESERVED_HALTDL,
    BigChunk,
    BigChunkLoader,
    LightDL,
    SmallChunk,
    SmallChunkCollector,
)
from daskdmed.errors import LoaderClosedError, LoaderError, UsageError
from daskdmed.events import BatchMade, subscribe
from tests.compat.pydmed.made import Collector, Loader, dataset, settings
from tests.waiting import until

_made = []


@pytest.fixture(autouse=True)
def ended():
    """Whatever a test does, its dataloaders end with it."""
    yield
    while _made:
        _made.pop().pause_loading()


def loader(data=None, kind=LightDL, first=(), **options):
    given = {
        "dataset": data or dataset(),
        "type_bigchunkloader": Loader,
        "type_smallchunkcollector": Collector,
        "const_global_info": settings(),
        "batch_size": 5,
        "tfms": None,
    }
    _made.append(kind(*first, **{**given, **options}))
    return _made[-1]


def taken(one, count):
    """So many batches, and an end."""
    one.start()
    found = [one.get() for _ in range(count)]
    one.pause_loading()
    return found


# -- batches ---------------------------------------------------------------------------------


def to_tensor(image):
    """torchvision's ToTensor."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def test_small_chunks_are_what_the_hooks_cropped():
    batches = taken(loader(tfms=to_tensor), 12)
    for x, patients, chunks in batches:
        assert x.shape == (5, 3, 16, 16)
        for image, patient, chunk in zip((x * 255).round().byte(), patients, chunks, strict=True):
            big, small = chunk.dict_info_of_bigchunk, chunk.dict_info_of_smallchunk
            assert chunk.patient is patient
            assert chunk.data is None
            assert repr(chunk) == f"<SmallChunk of patient {patient.int_uniqueid}: NoneType>"
            assert (image[0] == patient.int_uniqueid).all()
            assert image[1, 0, 0] == big["y"] + small["y"]
            assert image[2, 0, 0] == big["x"] + small["x"]
    assert pydmed.lightdl.LightDL is LightDL


def places(batches):
    return [
        (
            c.patient.int_uniqueid,
            *c.dict_info_of_bigchunk.values(),
            *c.dict_info_of_smallchunk.values(),
        )
        for _, _, chunks in batches
        for c in chunks
    ]


def test_the_same_seed_gives_the_same_batches_and_nobody_has_anothers_numbers():
    """P3: workers with the same random numbers; and nothing could be repeated."""
    one, two = places(taken(loader(), 20)), places(taken(loader(), 20))
    assert one == two
    other = taken(loader(const_global_info=settings(seed=1)), 20)
    assert places(other) != one
    corners = {(p, x, y) for p, x, y, *_ in one}
    assert len({(x, y) for _, x, y in corners}) == len(corners) >= 6


def test_the_scripts_own_random_numbers_are_left_alone():
    np.random.seed(5)
    wanted = np.random.random(3).tolist()
    np.random.seed(5)
    one = loader()
    taken(one, 6)
    assert np.random.random(3).tolist() == wanted


def test_every_patient_is_loaded_before_any_is_again():
    """With one big chunk of a patient in memory at most (the original draws with replacement)."""
    visits = []
    for patient, x, y, *_ in places(taken(loader(), 60)):
        if (patient, x, y) not in visits:
            visits.append((patient, x, y))
    order = [patient for patient, *_ in visits]
    assert set(order[:6]) == set(range(6))
    counts = Counter(order)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_patients_as_loaders_or_fewer(count):
    """P6: the original hangs."""
    batches = taken(loader(dataset(count)), 20)
    assert {p for p, *_ in places(batches)} == set(range(count))


def test_a_hook_may_take_two_arguments_and_be_called_abstract():
    from abc import abstractmethod

    class Older(SmallChunkCollector):
        @abstractmethod
        def extract_smallchunk(self, bigchunk, last_message_fromroot):
            assert self.bigchunk is bigchunk
            with pytest.warns(DeprecationWarning, match="write data="):
                return SmallChunk(
                    ata=bigchunk.data[:16, :16],
                    dict_info_of_smallchunk={},
                    dict_info_of_bigchunk=bigchunk.dict_info_of_bigchunk,
                    patient=bigchunk.patient,
                )

    [(x, _, _)] = taken(loader(type_smallchunkcollector=Older), 1)
    assert x.shape == (5, 16, 16, 3)


def test_a_loader_may_give_a_list_and_a_collector_an_array():
    class Several(Loader):
        def extract_bigchunk(self, arg_msg):
            return [super(Several, self).extract_bigchunk(arg_msg).data[:30, :30] for _ in range(3)]

    class OfSeveral(SmallChunkCollector):
        def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
            assert len(bigchunk) == 3
            return bigchunk[call_count % 3][:16, :16]

    [(x, patients, _)] = taken(
        loader(type_bigchunkloader=Several, type_smallchunkcollector=OfSeveral), 1
    )
    assert [int(one[0, 0, 0]) for one in x] == [p.int_uniqueid for p in patients]


def test_none_ends_a_big_chunk():
    """Documented so; the original calls the hook again for ever."""

    class Four(Collector):
        def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
            if call_count == 4:
                return None
            return super().extract_smallchunk(call_count, bigchunk, last_message_fromroot)

    found = places(taken(loader(type_smallchunkcollector=Four), 20))
    assert max(call for *_, call in found) == 3
    assert set(Counter(one[:3] for one in found).values()) == {4}


def test_a_collate_function_gets_small_chunks_and_transforms():
    def collate(chunks, tfms):
        assert tfms == "tfms"
        return {"mean": np.mean([c.data.mean() for c in chunks]), "chunks": chunks}

    [found] = taken(loader(collate_func=collate, tfms="tfms"), 1)
    assert len(found["chunks"]) == 5
    assert found["chunks"][0].data is not None


def test_small_chunks_of_other_shapes_make_no_batch():
    class Growing(Collector):
        def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
            return bigchunk.data[: 10 + call_count]

    with pytest.raises(UsageError, match="differing shapes"):
        taken(loader(type_smallchunkcollector=Growing), 1)


# -- checkpoints, messages, statuses ---------------------------------------------------------


class Stepping(BigChunkLoader):
    """PyDmed's second notebook: where the checkpoint says."""

    def extract_bigchunk(self, arg_msg):
        step = self.get_checkpoint() or 0
        return BigChunk(np.full((16, 16), step, np.uint8), {"step": step}, self.patient)


class Step(SmallChunkCollector):
    def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
        if call_count == 0:
            step = self.get_checkpoint() or 0
            self.set_checkpoint(step + 1)
        return SmallChunk(
            bigchunk.data, {"call": call_count}, bigchunk.dict_info_of_bigchunk, self.patient
        )


@pytest.mark.parametrize("count", [2, 6])
def test_checkpoints_outlast_any_number_of_visits(count):
    """P2: those of collectors that set none were wiped. Also when every patient stays in memory."""
    batches = taken(
        loader(dataset(count), type_bigchunkloader=Stepping, type_smallchunkcollector=Step), 60
    )
    steps = {}
    for _, _, chunks in batches:
        for chunk in chunks:
            seen = steps.setdefault(chunk.patient.int_uniqueid, [])
            step = chunk.dict_info_of_bigchunk["step"]
            if not seen or seen[-1] != step:
                seen.append(step)
    assert len(steps) == count
    for seen in steps.values():
        assert seen == list(range(len(seen)))
        assert len(seen) >= 3


def test_a_loader_that_waits_for_a_checkpoint_is_let_go_of():
    one = loader(dataset(1), type_bigchunkloader=Stepping, type_smallchunkcollector=Step)
    one.start()
    one.get()
    one.pause_loading()
    assert not one.is_dl_running()


def test_messages_reach_whom_they_are_for():
    """P1: they went to another patient. Loader and collector see the same, once, the last one."""
    seen, known = [], threading.Lock()

    class Listening(Loader):
        def extract_bigchunk(self, arg_msg):
            made = super().extract_bigchunk(arg_msg)
            made.heard = arg_msg
            return made

    class Repeating(Collector):
        def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
            assert last_message_fromroot == bigchunk.heard
            if last_message_fromroot is not None and call_count == 0:
                with known:
                    seen.append((self.patient.int_uniqueid, last_message_fromroot))
            return super().extract_smallchunk(call_count, bigchunk, last_message_fromroot)

    one = loader(type_bigchunkloader=Listening, type_smallchunkcollector=Repeating)
    one.start()
    one.get()
    for patient in one.dataset.list_patients[::2]:
        one.send_message(patient, "too early")
        one.send_message(patient, f"for {patient.int_uniqueid}")
    for _ in range(60):
        one.get()
    one.pause_loading()
    assert sorted(seen) == [(n, f"for {n}") for n in (0, 2, 4)]
    with pytest.raises(UsageError, match="send_message: Patient"):
        one.send_message(pydmed.utils.data.Patient(99, {}), "hello")


def test_statuses_can_be_asked_for():
    class Telling(Collector):
        def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
            assert self.get_flag_bigchunkloader_terminated()
            if call_count == 0 and self.patient.int_uniqueid == 0:
                self.set_status({"busy": True})
            return super().extract_smallchunk(call_count, bigchunk, last_message_fromroot)

    one = loader(type_smallchunkcollector=Telling)
    taken(one, 20)
    statuses = [one.book.status(p) for p in one.dataset.list_patients]
    assert statuses[0] == {"busy": True}
    assert set(map(str, statuses[1:])) == {"TODO:packagename reserverd: empty cache"}


# -- errors ------------------------------------------------------------------------------------


def test_a_slide_that_cannot_be_read_is_an_error():
    """P4: everything hangs."""

    class Broken(Loader):
        def extract_bigchunk(self, arg_msg):
            if self.patient.int_uniqueid == 2:
                raise OSError("no such slide")
            return super().extract_bigchunk(arg_msg)

    one = loader(type_bigchunkloader=Broken)
    one.start()
    with pytest.raises(LoaderError, match="patient '2'.*no such slide"):
        for _ in range(60):
            one.get()
    one.pause_loading()


def test_a_collector_that_fails_is_an_error():
    """P5: ``get`` never returns."""

    class Failing(Collector):
        def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
            return bigchunk.no_such_thing

    one = loader(type_smallchunkcollector=Failing)
    one.start()
    with pytest.raises(LoaderError, match="no_such_thing"):
        one.get()
    one.pause_loading()


def test_a_big_chunk_that_memory_was_not_reckoned_with_is_refused():
    one = loader(const_global_info=settings(bytes_of_bigchunk=20_000))
    with pytest.raises(LoaderError, match=r"const_global_info\['bytes_of_bigchunk'\] = 30000"):
        one.get()
    one.pause_loading()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type_bigchunkloader": BigChunkLoader}, "BigChunkLoader must have a method extract_big"),
        ({"type_smallchunkcollector": Loader}, "give a subclass of SmallChunkCollector"),
        ({"const_global_info": settings(num_bigchunkloaders=0)}, "num_bigchunkloaders"),
        ({"data": pydmed.utils.data.Dataset("none", [])}, "has no patients"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_cannot_be_is_said_at_once(options, message):
    with pytest.raises(UsageError, match=message):
        loader(**options)


def test_a_hook_of_other_arguments_is_refused():
    class Odd(SmallChunkCollector):
        def extract_smallchunk(self, bigchunk):
            return None

    with pytest.raises(UsageError, match="takes 1 arguments"):
        loader(type_smallchunkcollector=Odd)


# -- life ----------------------------------------------------------------------------------------


def test_pausing_ends_it_and_can_be_repeated():
    """The original blocks for ever at the second call, and says that it is running."""
    one = loader()
    assert not one.is_dl_running()
    one.start()
    assert one.is_dl_running()
    one.get()
    one.pause_loading()
    one.pause_loading()
    assert not one.is_dl_running()
    assert one.queue_lightdl.qsize() == 0
    assert one.get() == PYDMEDRESERVED_DLRETURNEDLASTINSTANCE
    with pytest.raises(LoaderClosedError, match="has ended"):
        one.start()


def test_it_is_quiet_when_nobody_takes():
    """P10, P11: nothing spins, and rotation waits for the consumer."""
    one, made = loader(), []
    unsubscribe = subscribe(lambda event: made.append(event) if isinstance(event, BatchMade) else 0)
    try:
        one.start()
        one.get()
        # one was taken, four wait, and one has no room: then it stands still
        until(lambda: len(made) == 6)
    finally:
        unsubscribe()
    before = one._loader.stats().visits_admitted
    began = time.process_time(), time.monotonic()
    time.sleep(1)
    used = (time.process_time() - began[0]) / (time.monotonic() - began[1])
    assert one._loader.stats().visits_admitted == before
    assert used < 0.9


def test_logs_are_there_at_once(tmp_path, caplog):
    """They were lost in a crash, and without a file."""

    class Writing(Collector):
        def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
            if call_count == 0:
                self.log(f"patient {self.patient.int_uniqueid} begins")
            return super().extract_smallchunk(call_count, bigchunk, last_message_fromroot)

    file = tmp_path / "log.txt"
    one = loader(type_smallchunkcollector=Writing, fname_logfile=str(file))
    with caplog.at_level(logging.INFO, "daskdmed.compat.pydmed"):
        one.start()
        one.get()
        one.log("mine")
    text = file.read_text()
    one.pause_loading()
    assert "begins\n" in text
    assert " mine\n" in text  # maybe not last: other batches are made meanwhile
    assert "mine" in caplog.messages


def test_what_was_given_can_be_visualized(monkeypatch):
    """Without data, and bounded (P9)."""
    monkeypatch.setattr(pydmed.lightdl, "_REMEMBERED", 7)
    one = loader()
    batches = taken(one, 30)
    shown = {}
    one.visualize(lambda patient, chunks: shown.update({patient: chunks}))
    last = {}
    for _, _, chunks in batches:
        for chunk in chunks:
            last.setdefault(chunk.patient, []).append(chunk.dict_info_of_smallchunk)
    assert set(shown) == set(one.dataset.list_patients)
    for patient, chunks in shown.items():
        assert [c.dict_info_of_smallchunk for c in chunks] == last[patient][-7:]
        assert {c.data for c in chunks} == {None}


# -- who comes next ------------------------------------------------------------------------------


class Scheduled(LightDL):
    """Patients from the last to the first, each once."""

    def initial_schedule(self):
        return list(reversed(self.dataset.list_patients))[:3]

    def schedule(self):
        never = [p for p in self.get_list_waitingpatients() if not self.get_schedcount_of(p)]
        assert len(self.get_list_loadedpatients()) == 2
        if not never:
            return PYDMEDRESERVED_HALTDL, None
        return self.get_list_loadedpatients()[0], max(never)


def test_a_subclass_says_who_comes_next_and_when_it_is_over():
    one = loader(kind=Scheduled)
    one.start()
    found = []
    while True:
        batch = one.get()
        if isinstance(batch, str):
            break
        found.append(batch)
    assert batch == PYDMEDRESERVED_DLRETURNEDLASTINSTANCE
    assert not one.is_dl_running()
    given = places(found)
    assert len(given) == 6 * 12
    assert list(dict.fromkeys(p for p, *_ in given))[-1] == 0
    assert set(Counter(p for p, *_ in given).values()) == {12}
    # a batch that is not full comes as it is
    assert [len(chunks) for _, _, chunks in found] == [5] * 14 + [2]
    one.pause_loading()


def test_the_usual_schedule_can_be_asked_for():
    class Asking(LightDL):
        def schedule(self):
            remove, load = super().schedule()
            assert remove in self.get_list_loadedpatients()
            assert load in self.get_list_waitingpatients()
            return remove, load

    given = places(taken(loader(kind=Asking), 40))
    assert {p for p, *_ in given} == set(range(6))


def test_labels_come_equally_often_and_none_is_lost():
    """P16: a label of which nobody is in memory never came back."""
    data = dataset(9, labels=9)
    rare = {0, 1}
    one = loader(
        data,
        LabelBalancedDL,
        first=(lambda patient: "rare" if patient.int_uniqueid in rare else "often",),
        const_global_info=settings(num_bigchunkloaders=2),
    )
    visits = list(dict.fromkeys(p[:3] for p in places(taken(one, 120))))
    labels = Counter("rare" if p in rare else "often" for p, *_ in visits)
    assert abs(labels["rare"] - labels["often"]) <= 2
    assert {p for p, *_ in visits} == set(range(9))
