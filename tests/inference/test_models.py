"""Models: programs in files, memory that runs out, precision, layout and CPU threads."""

from __future__ import annotations

import logging
import pickle
import threading
import time
import warnings

import numpy as np
import pytest
import torch

from daskdmed import heatmap
from daskdmed.core.fingerprint import fingerprint
from daskdmed.errors import StoreError, UsageError
from daskdmed.inference.models.programs import Program
from daskdmed.inference.models.torchrun import BatchLimit, cpu_threads
from daskdmed.inference.models.values import Layout, as_window_values
from daskdmed.inference.models.window import WindowModel, scaled_tensor

IMAGE = np.random.default_rng(0).integers(0, 256, (100, 130, 3), np.uint8)


class Net(torch.nn.Module):
    """A small network; `inputs` tells what it was given."""

    def __init__(self, k: int = 2):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Conv2d(3, 4, 3, stride=2)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.body(x))).mean((2, 3)))


class Tell(torch.nn.Module):
    """Wraps a network, and notes what it is given."""

    def __init__(self, net, notes):
        super().__init__()
        self.net, self.notes = net, notes

    def forward(self, x):
        conv = self.net.body.weight.is_contiguous(memory_format=torch.channels_last)
        x_last = x.is_contiguous(memory_format=torch.channels_last)
        values = self.net(x)
        self.notes.append((x_last, conv, self.net.body(x).dtype, torch.get_num_threads(), len(x)))
        return values

    def __deepcopy__(self, memo):
        import copy

        return Tell(copy.deepcopy(self.net, memo), self.notes)


def run(model, **keywords):
    return heatmap(IMAGE, model, kernel_size=32, batch_size=5, block_windows=3, **keywords)


@pytest.fixture(scope="module")
def expected():
    return run(Net().eval()).compute()


def save(net, kind, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "script":
            torch.jit.save(torch.jit.script(net), path)
        elif kind == "trace":
            torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 32, 32)), path)
        else:
            example = torch.zeros(4, 3, 32, 32)
            batch = {"x": {0: torch.export.Dim("n", min=1)}} if kind == "dynamic" else None
            torch.export.save(torch.export.export(net, (example,), dynamic_shapes=batch), path)
    return path


@pytest.mark.parametrize("kind", ["script", "trace", "dynamic", "static"])
def test_programs_by_path(kind, tmp_path, expected):
    path = save(Net().eval(), kind, tmp_path / ("p.pt" if kind in ("script", "trace") else "p.pt2"))
    for model in (path, str(path)):
        np.testing.assert_allclose(run(model), expected, atol=1e-6)
    # the file is sent along, so that workers need not see it
    program = pickle.loads(pickle.dumps(WindowModel(path)))
    path.unlink()
    found = program.place()(np.zeros((3, 3, 32, 32), np.float32))
    assert found.shape == (3, 2)


def test_an_exported_program_and_a_scripted_module_as_objects(tmp_path, expected):
    program = torch.export.load(save(Net().eval(), "static", tmp_path / "p.pt2"))
    np.testing.assert_allclose(run(program), expected, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Net().eval())
    np.testing.assert_allclose(run(scripted), expected, atol=1e-6)
    moved = pickle.loads(pickle.dumps(WindowModel(scripted).portable())).place()
    assert moved(np.zeros((3, 3, 32, 32), np.float32)).shape == (3, 2)


def test_a_program_is_known_by_its_content(tmp_path):
    a = save(Net().eval(), "script", tmp_path / "a.pt")
    (tmp_path / "same.pt").write_bytes(a.read_bytes())
    other = Net().eval()
    other.head.bias.data += 1
    b = save(other, "script", tmp_path / "b.pt")
    assert fingerprint(Program.of(a)) == fingerprint(Program.of(tmp_path / "same.pt"))
    assert fingerprint(Program.of(a)) != fingerprint(Program.of(b))
    out = tmp_path / "out.zarr"
    run(a, out=out)
    run(tmp_path / "same.pt", out=out, resume=True)
    with pytest.raises(StoreError, match="model: the store has"):
        run(b, out=out, resume=True)


def test_scripted_modules_differ_by_code(tmp_path):
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    class Thrice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 3

    Thrice.__qualname__ = Thrice.__name__ = "Twice"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two, three = (torch.jit.script(m()) for m in (Twice, Thrice))
        again = torch.jit.script(Twice())
    assert fingerprint(two) == fingerprint(again)
    assert fingerprint(two) != fingerprint(three)


def test_files_that_are_no_programs(tmp_path):
    weights, text, torn = (tmp_path / n for n in ("w.pth", "readme.txt", "torn.pt"))
    torch.save(Net().state_dict(), weights)
    text.write_text("hello")
    torn.write_bytes(save(Net().eval(), "script", tmp_path / "p.pt").read_bytes()[:-300])
    for path, message in (
        (weights, "holds weights"),
        (text, "no archive of torch"),
        (torn, "no archive of torch"),
        (tmp_path / "absent.pt", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=message):
            run(path)


class Small(torch.nn.Module):
    """A device with room for `most` windows, as torch reports it."""

    def __init__(self, net, most):
        super().__init__()
        self.net, self.most, self.sizes = net, most, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.net(x)


@pytest.mark.parametrize("most", [1, 3, 4])
def test_batches_are_halved_when_memory_runs_out(most, caplog):
    import dask

    small = Small(Net().eval(), most)
    with caplog.at_level(logging.WARNING, "daskdmed.inference"), dask.config.set(num_workers=1):
        found = heatmap(IMAGE, small, kernel_size=16, batch_size=16)
    whole = heatmap(IMAGE, Net().eval(), kernel_size=16, batch_size=16)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    failed = [n for n in small.sizes if n > most]
    # 16, 8, 4... are each tried once: what was learnt is kept
    assert len(failed) == len(set(failed)) <= 5
    assert sum(n for n in small.sizes if n <= most) == 9 * 7 + 2 * (most >= 2) + 2 * (most < 2)
    assert "going on with" in caplog.text


def test_a_callable_that_runs_out_of_memory():
    sizes = []

    def model(windows):
        sizes.append(len(windows))
        if len(windows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return windows.mean(axis=(1, 2, 3))

    found = heatmap(IMAGE, model, kernel_size=16)
    np.testing.assert_allclose(
        found, heatmap(IMAGE, lambda w: w.mean(axis=(1, 2, 3)), kernel_size=16)
    )
    assert max(sizes[-5:]) <= 2


def test_a_window_that_never_fits():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        heatmap(IMAGE, Small(Net(), 0), kernel_size=16)
    assert any("single window" in note for note in caught.value.__notes__)


def test_other_errors_are_not_retried():
    calls = []

    def call(batch):
        calls.append(len(batch))
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        BatchLimit().run(call, np.zeros((8, 2)))
    assert calls == [8]


def test_the_limit_begins_anew_elsewhere():
    limit = BatchLimit()
    assert limit.halve(64) == 32
    assert limit.halve(100) == 50  # of a batch cut before the limit was known
    assert limit.of(64) == 32
    assert pickle.loads(pickle.dumps(limit)).of(64) == 64


def test_channels_last(expected):
    notes = []
    net = Tell(Net().eval(), notes)
    np.testing.assert_allclose(run(net, channels_last=True), expected, atol=1e-5)
    assert {(x, conv) for x, conv, *_ in notes} == {(True, True)}
    assert not net.net.body.weight.is_contiguous(memory_format=torch.channels_last)
    notes.clear()
    np.testing.assert_allclose(
        run(net, channels_last=True, batch_tfms=lambda x: x.float() / 255), expected, atol=1e-5
    )
    assert {(x, conv) for x, conv, *_ in notes} == {(True, True)}
    notes.clear()
    run(net)
    assert {(x, conv) for x, conv, *_ in notes} == {(False, False)}


@pytest.mark.parametrize("autocast", [True, "bfloat16", torch.bfloat16])
def test_autocast(autocast, expected, tmp_path):
    notes = []
    found = run(Tell(Net().eval(), notes), autocast=autocast)
    assert {kind for _, _, kind, *_ in notes} == {torch.bfloat16}
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert (found.compute() != expected).any()


def test_precision_is_part_of_the_parameters(tmp_path):
    out = tmp_path / "a.zarr"
    run(Net(), out=out)
    run(Net(), out=out, resume=True, autocast=False)
    with pytest.raises(StoreError, match="autocast: the store has None, this call 'True'"):
        run(Net(), out=out, resume=True, autocast=True)


@pytest.mark.parametrize(
    "keywords", [{"autocast": True}, {"channels_last": True}, {"device": "cpu"}]
)
def test_what_is_for_modules_only(keywords):
    with pytest.raises(UsageError, match=next(iter(keywords))):
        run(lambda w: w.mean(axis=(1, 2, 3)), **keywords)


@pytest.mark.parametrize("autocast", ["int8", "float99", torch.uint8, 3])
def test_bad_precision(autocast):
    with pytest.raises(UsageError, match="autocast must be"):
        run(Net(), autocast=autocast)


def test_cpu_threads_are_shared_and_put_back():
    import dask
    from dask.system import CPU_COUNT

    before = torch.get_num_threads()
    torch.set_num_threads(max(CPU_COUNT, 2))
    try:
        for workers in (1, 2, 4 * CPU_COUNT):
            notes = []
            with dask.config.set(num_workers=workers):
                run(Tell(Net(), notes))
            assert {threads for *_, threads, _ in notes[1:]} == {max(CPU_COUNT // workers, 1)}
            assert torch.get_num_threads() == max(CPU_COUNT, 2)
    finally:
        torch.set_num_threads(before)


def test_cpu_threads_of_several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen, after = [], []

    def work(pause):
        with cpu_threads(1000):
            time.sleep(pause)
            seen.append(torch.get_num_threads())
        after.append(torch.get_num_threads())

    try:
        threads = [threading.Thread(target=work, args=(0.01 * i,)) for i in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert seen == [1] * 6
        assert after == [3] * 6
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("shape", "ndim", "kept", "layout"),
    [
        ((5,), 2, (5,), Layout(0)),
        ((5, 1), 2, (5,), Layout(0)),
        ((5, 3), 2, (5, 3), Layout(3)),
        ((5, 3, 1, 1), 2, (5, 3), Layout(3)),
        ((5, 1, 1, 1), 2, (5,), Layout(0)),
        ((5, 4, 6), 2, (5, 4, 6), Layout(0, (4, 6))),
        ((5, 1, 4, 6), 2, (5, 4, 6), Layout(0, (4, 6))),
        ((5, 3, 4, 6), 2, (5, 3, 4, 6), Layout(3, (4, 6))),
        ((5, 3, 1, 6), 2, (5, 3, 1, 6), Layout(3, (1, 6))),
        ((5, 7), 1, (5, 7), Layout(7)),
        ((5, 3, 7), 1, (5, 3, 7), Layout(3, (7,))),
        ((5, 2, 3, 4), 3, (5, 2, 3, 4), Layout(0, (2, 3, 4))),
        ((5, 9, 2, 3, 4), 3, (5, 9, 2, 3, 4), Layout(9, (2, 3, 4))),
    ],
)
def test_shapes_of_values(shape, ndim, kept, layout):
    values = as_window_values(np.zeros(shape), 5, ndim)
    assert values.shape == kept
    assert Layout.of(values, ndim) == layout


@pytest.mark.parametrize(
    ("shape", "ndim"), [((4, 3), 2), ((), 2), ((5, 3, 4), 3), ((5, 2, 3, 4, 5), 2), ((5, 0), 2)]
)
def test_shapes_that_are_no_values(shape, ndim):
    with pytest.raises(UsageError, match="returned shape"):
        as_window_values(np.zeros(shape), 5, ndim)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int8", "int16", "uint32", "float32", "bool"])
@pytest.mark.parametrize("on_device", [False, True])
def test_training_and_prediction_see_one_scale(kind, on_device):
    from daskdmed import Dataset, LightDL, Patient, Record, predict
    from daskdmed.transforms import ToFloat

    top = 1000 if kind in ("int16", "uint16", "uint32") else 2 if kind == "bool" else 120
    image = np.random.default_rng(0).integers(0, top, (32, 48, 2)).astype(kind)
    full = {"uint8": np.float32(255), "uint16": np.float32(65535)}.get(kind, np.float32(1))
    wanted = np.moveaxis(image.astype(np.float32) / full, -1, 0)

    class Same(torch.nn.Module):
        def forward(self, x):
            assert x.dtype == torch.float32
            return x

    if on_device:  # what a module on another device than the CPU is given
        tensor = torch.from_numpy(np.moveaxis(image, -1, 0)[None].copy())
        found = scaled_tensor(tensor, channels_last=False)[0]
        np.testing.assert_array_equal(found, wanted)
        return
    dense = predict(image, Same(), kernel_size=16, overlap=0, blend="constant").compute()
    np.testing.assert_array_equal(dense, wanted)
    assert WindowModel(Same()).form((16, 16), image).dtype == np.float32

    class First(torch.nn.Module):
        def forward(self, x):
            return x[:, :, 0, 0]

    corners = heatmap(image, First(), kernel_size=16).compute()
    np.testing.assert_array_equal(corners, wanted[:, ::16, ::16])
    if kind in ("uint8", "uint16", "int16", "float32"):
        dataset = Dataset("one", [Patient("a", {"x": Record(array=image)})])
        with LightDL(
            dataset, smallchunk_size=16, batch_size=4, epoch_length=1, batch_tfms=ToFloat()
        ) as loader:
            for x, _, chunks in loader:
                for one, chunk in zip(x.numpy(), chunks, strict=True):
                    column, row = chunk.location
                    part = wanted[:, row : row + 16, column : column + 16]
                    np.testing.assert_array_equal(one, part)


def test_several_outputs_are_never_taken_for_windows():
    class Two(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))

    # two outputs for two windows: an array could be made of them, and would mix both
    with pytest.raises(UsageError, match="tuple of 2.*picks the output"):
        heatmap(np.zeros((16, 32, 3), np.uint8), Two(), kernel_size=16)
    found = heatmap(IMAGE, lambda w: [one.mean() for one in w], kernel_size=16)
    np.testing.assert_allclose(found, heatmap(IMAGE, lambda w: w.mean((1, 2, 3)), kernel_size=16))
