"""Batches come to where they are wanted: in pinned memory, on a device, and are what they were."""

from __future__ import annotations

import itertools
import types
from contextlib import contextmanager

import dask.array as da
import numpy as np
import pytest
import torch

from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL
from daskdmed.errors import UsageError
from daskdmed.loading import delivery
from daskdmed.loading.chunks import SmallChunks
from daskdmed.loading.delivery import Delivery, StreamLane, device_of
from daskdmed.transforms import Compose, RandomFlip, ToFloat
from tests.loading.conftest import coordinate_array

SIZES = {
    "smallchunk_size": 24,
    "batch_size": 6,
    "bigchunk_size": 64,
    "resident": "200 kB",
    "smallchunks_per_bigchunk": 12,
}


@pytest.fixture(scope="module")
def data():
    """Slides of 130 x 150 pixels, each with a mask of two channels that says where it lies."""
    patients = []
    for i in range(2):
        pixels = coordinate_array(130, 150, i, chunks=64)
        mask = da.stack([pixels[..., 1], pixels[..., 0]], -1)
        records = {"wsi": Record(array=pixels), "mask": Record(array=mask)}
        patients.append(Patient(f"p{i}", records))
    return Dataset("slides", patients)


def batches_of(data, count=5, **options):
    options = {"record": "wsi", "target": "mask", **SIZES, **options}
    with LightDL(data, **options) as loader:
        return list(itertools.islice(loader, count))


def assert_the_same(there, here):
    """Batches of a device are those of the host, targets as tensors, channels first."""
    for (x, patients, chunks), (x0, patients0, chunks0) in zip(there, here, strict=True):
        assert x.dtype == x0.dtype
        assert x.stride() == x0.stride()
        assert torch.equal(x.cpu(), x0)
        assert patients == patients0
        assert np.array_equal(chunks.keys, chunks0.keys)
        assert np.array_equal(chunks.origins, chunks0.origins)
        assert isinstance(chunks.targets, torch.Tensor)
        targets = torch.as_tensor(chunks0.targets)
        assert torch.equal(chunks.targets.cpu(), targets.movedim(-1, 1))
        assert torch.equal(chunks[0].target.cpu(), targets[0].movedim(-1, 0))


@pytest.fixture
def pinning(monkeypatch):
    """As if there were an accelerator: memory that would be pinned, by where it begins."""
    found = {}

    def pinned_bytes(nbytes):
        memory = torch.empty(nbytes, dtype=torch.uint8)
        found[memory.data_ptr()] = memory
        return memory

    def pinned(tensor):
        if tensor.untyped_storage().data_ptr() in found:
            return tensor
        copy = pinned_bytes(tensor.numel() * tensor.element_size()).view(tensor.dtype)
        return copy.view(tensor.shape).copy_(tensor)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)  # whatever ran before
    monkeypatch.setattr(delivery, "_can_pin", lambda: True)
    monkeypatch.setattr(delivery, "pinned_bytes", pinned_bytes)
    monkeypatch.setattr(delivery, "pinned", pinned)
    return found


class TestAsked:
    @pytest.mark.parametrize(
        ("device", "says"),
        [
            ("gpu", "no device of torch"),
            (1.5, "no device of torch"),
            ("meta", "no memory"),
            ("cpu:3", "there are 1 cpu devices"),
            ("xla", "finds no xla device here"),
            pytest.param(
                "cuda",
                "finds no cuda device here",
                marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
            ),
        ],
    )
    def test_no_such_device(self, data, device, says):
        with pytest.raises(UsageError, match=says) as error:
            LightDL(data, record="wsi", **SIZES, device=device)
        assert repr(device) in str(error.value)

    def test_without_an_index_the_one_that_is_current(self, monkeypatch):
        there = {"is_available": lambda: True, "device_count": lambda: 4}
        module = types.SimpleNamespace(**there, current_device=lambda: 3)
        monkeypatch.setattr(torch, "xpu", module)
        for asked, found in (("xpu", 3), ("xpu:2", 2)):
            sends = Delivery(asked)
            sends.begin()
            assert sends.device == sends.lane.device == torch.device("xpu", found)
        with pytest.raises(UsageError, match="there are 4 xpu devices"):
            device_of("xpu:4")

    def test_any_name_of_one(self):
        assert device_of(None) is None
        assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")

    def test_pinning_is_yes_or_no(self, data):
        with pytest.raises(UsageError, match="pin_memory must be True, False or None, got 'yes'"):
            LightDL(data, record="wsi", **SIZES, pin_memory="yes")

    @pytest.mark.skipif(delivery._can_pin(), reason="there is an accelerator")
    def test_pinning_without_an_accelerator_warns_as_pytorch_does(self, data):
        with pytest.warns(UserWarning, match="finds no accelerator") as warned:
            loader = LightDL(data, record="wsi", **SIZES, pin_memory=True)
        assert warned[0].filename == __file__
        with loader:
            assert not next(loader)[0].is_pinned()


class TestPinned:
    def of(self, values):
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        return tensor.untyped_storage().data_ptr()

    @pytest.mark.parametrize("tfms", [None, lambda x: x + 1, lambda x: x + torch.randint(3, ())])
    def test_batches_and_targets(self, data, pinning, tfms):
        plain = batches_of(data, tfms=tfms)
        assert not pinning
        batches = batches_of(data, tfms=tfms, pin_memory=True)
        for (x, _, chunks), (x0, _, chunks0) in zip(batches, plain, strict=True):
            assert {self.of(x), self.of(chunks.targets)} <= set(pinning)
            assert torch.equal(x, x0)
            assert np.array_equal(chunks.targets, chunks0.targets)

    def test_by_itself_once_cuda_is_used(self, data, pinning, monkeypatch):
        batches_of(data)
        assert not pinning
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        batches_of(data, pin_memory=False)
        assert not pinning
        assert all(self.of(x) in pinning for x, _, _ in batches_of(data))

    @pytest.mark.parametrize("tfms", [None, lambda x: x + 1])
    def test_windows(self, data, pinning, tfms):
        options = {"record": "wsi", "kernel_size": 50, "batch_size": 4, "tfms": tfms}
        with SlidingWindowDL(data, **options) as loader:
            plain = [x for x, _, _ in loader]
        assert not pinning
        with SlidingWindowDL(data, **options, pin_memory=True) as loader:
            batches = [x for x, _, _ in loader]
        assert all(self.of(x) in pinning for x in batches)
        assert all(map(torch.equal, batches, plain))
        assert len(batches) == len(plain) == 5

    def test_types_and_shapes(self, pinning):
        memory = Delivery(None, pin_memory=True).empty((3, 5, 2), np.uint16)
        assert (memory.shape, memory.dtype, memory.flags.c_contiguous) == ((3, 5, 2), "u2", True)
        assert self.of(memory) in pinning


class TestOnADevice:
    #: a GPU where there is one
    name = "cuda" if torch.cuda.is_available() else "cpu"

    @pytest.mark.parametrize(
        ("options", "streams"),
        [
            ({}, False),
            ({}, True),
            ({"tfms": lambda x: x + torch.randint(3, ())}, True),  # in the consumer's thread
            ({"tfms": RandomFlip()}, True),
            ({"batch_tfms": Compose([RandomFlip(), ToFloat()])}, False),
        ],
    )
    def test_the_same_batches(self, data, options, streams, monkeypatch):
        if streams:
            monkeypatch.setattr(delivery, "lane_of", StreamLane)
        assert_the_same(batches_of(data, device=self.name, **options), batches_of(data, **options))

    def test_windows(self, data, monkeypatch):
        options = {"record": "wsi", "kernel_size": 50, "batch_size": 4}
        with SlidingWindowDL(data, **options) as loader:
            plain = [x for x, _, _ in loader]
        monkeypatch.setattr(delivery, "lane_of", StreamLane)
        with SlidingWindowDL(data, **options, device=self.name) as loader:
            batches = list(loader)
        for (x, _, windows), there in zip(batches, plain, strict=True):
            assert x.device.type == self.name
            assert torch.equal(x.cpu(), there)
            assert np.array_equal(np.moveaxis(windows.data, -1, 1), there)

    def test_targets_of_one_channel(self):
        labels = np.arange(96 * 96, dtype=np.int32).reshape(96, 96)
        records = {
            "wsi": Record(array=coordinate_array(96, 96, chunks=64)),
            "labels": Record(array=da.from_array(labels, chunks=64)),
        }
        data = Dataset("x", [Patient("a", records)])
        for _, _, chunks in batches_of(data, 2, target="labels", device=self.name):
            assert chunks.targets.shape == (6, 24, 24)
            for chunk in chunks:
                y, x = chunk.origin
                assert np.array_equal(chunk.target.cpu(), labels[y : y + 24, x : x + 24])


class Streams:
    """Streams and events of a device, as torch's modules have them; notes what is asked of them."""

    def __init__(self):
        self.asked = []
        self.done = True
        self.current = self.Stream()

    def Stream(self, device=None):
        stream = types.SimpleNamespace()
        stream.wait_event = lambda event: self.asked.append(("wait", stream, event))
        stream.wait_stream = lambda other: self.asked.append(("follow", stream, other))
        return stream

    def Event(self):
        event = types.SimpleNamespace()
        event.record = lambda stream: self.asked.append(("record", stream, event))
        event.query = lambda: self.done
        return event

    def current_stream(self, device):
        return self.current

    @contextmanager
    def stream(self, stream):
        self.asked.append(("in", stream))
        yield
        self.asked.append(("out", stream))


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU, and notes which streams use it."""

    device = torch.device("cuda", 0)
    used_on = ()

    def record_stream(self, stream):
        self.used_on = (*self.used_on, stream)


@pytest.fixture
def streams(monkeypatch):
    found = Streams()
    monkeypatch.setattr(StreamLane, "__init__", lambda lane, device: None)
    return found


@pytest.fixture
def sender(streams, monkeypatch):
    """A delivery to a GPU that there is not."""
    lane = StreamLane(None)
    lane.device, lane._module, lane._stream = torch.device("cuda", 0), streams, streams.Stream()
    sends = Delivery(None, pin_memory=False)
    sends.device, sends.lane = lane.device, lane

    def to(self, device, non_blocking):
        assert non_blocking
        streams.asked.append(("copy", self))
        return self.clone().as_subclass(Elsewhere)

    monkeypatch.setattr(torch.Tensor, "to", to)
    return sends


def chunks_with(targets):
    rows = np.zeros((2, 2), np.int64)
    return SmallChunks(np.zeros((2, 4, 4, 3), "u1"), [None] * 2, rows[:, 0], rows, rows, targets)


class TestOrder:
    """What torch is asked for, in the order that its documentation wants."""

    def test_the_loop_waits_for_the_copy_on_its_stream(self, sender, streams):
        x, targets = torch.zeros(2, 3, 4, 4), np.ones((2, 4, 4), "u1")
        chunks, side = chunks_with(targets), sender.lane._stream
        parcel = sender.send(x, chunks)
        kinds = [kind for kind, *_ in streams.asked]
        assert kinds == ["in", "copy", "record", "copy", "record", "record", "out"]
        assert all(stream is side for kind, stream, *_ in streams.asked if kind != "copy")
        streams.asked.clear()
        there = sender.receive(parcel, chunks)
        assert streams.asked == [("wait", streams.current, parcel.event)]
        assert there.used_on == chunks.targets.used_on == (streams.current,)

    def test_host_memory_is_kept_until_it_was_copied_from(self, sender, streams):
        streams.done = False
        hosts = [torch.zeros(2), torch.ones(2)]
        for x in hosts:
            sender.send(x, chunks_with(None))
        assert [host for _, host in sender._leaving] == hosts
        streams.done = True
        sender.send(torch.zeros(3), chunks_with(None))
        assert not sender._leaving

    def test_what_a_transform_put_there_is_waited_for(self, sender, streams):
        x = torch.zeros(2).as_subclass(Elsewhere)
        parcel = sender.send(x, chunks_with(None))
        assert parcel.x is x
        assert streams.asked[0] == ("follow", sender.lane._stream, streams.current)
        assert [kind for kind, *_ in streams.asked] == ["follow", "in", "record", "out"]
