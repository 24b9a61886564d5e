"""Fingerprints: equal for equal models, different for different ones, the same elsewhere."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from daskdmed.core.fingerprint import fingerprint

FACTOR = 3.0


def scaled(x):
    return x * FACTOR


def make(n):
    return lambda x: x + n


class Scale:
    def __init__(self, factor):
        self.factor = factor
        self.lock = threading.Lock()

    def __call__(self, x):
        return x * self.factor


class Net(torch.nn.Module):
    def __init__(self, seed=0, threshold=0.5):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = torch.nn.Linear(3, 2)
        self.threshold = threshold

    def forward(self, x):
        return self.linear(x) > self.threshold


def test_equal_models_have_equal_fingerprints():
    for build in (lambda: make(1), lambda: Scale(2), Net, lambda: functools.partial(scaled)):
        assert fingerprint(build()) == fingerprint(build())
    net = Net()
    before = fingerprint(net)
    net.eval()
    with torch.inference_mode():
        net(torch.ones(1, 3))
    assert fingerprint(net) == before


def test_different_models_have_different_fingerprints(monkeypatch):
    values = [
        *[make(1), make(2), lambda x: x + 1, lambda x: x - 1, Scale(1), Scale(2)],
        *[Net(0), Net(1), Net(0, threshold=0.6), np.mean, np.max, scaled],
        *[functools.partial(scaled, 1), functools.partial(scaled, 2), None, 0, False, 0.0, ""],
        *[np.zeros(3), np.zeros((3, 1)), np.zeros(3, np.float32), np.ones(3), np.float32(1)],
        *[(1, 2), [1, 2], {1: 2}, {1, 2}, Scale(1).__call__, Scale, torch.zeros(3)],
    ]
    assert len({fingerprint(v) for v in values}) == len(values)
    before = fingerprint(scaled)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 4.0)
    assert fingerprint(scaled) != before


def test_a_function_over_a_global_network_sees_its_weights():
    namespace = {"net": torch.nn.Linear(2, 1)}
    exec("def model(x):\n    return net(x)", namespace)
    before = fingerprint(namespace["model"])
    with torch.no_grad():
        namespace["net"].weight += 1
    assert fingerprint(namespace["model"]) != before


def test_an_object_may_name_itself():
    class Named:
        def __init__(self, content):
            self.content = content

        def __dask_tokenize__(self):
            return "named"

    assert fingerprint(Named(1)) == fingerprint(Named(2))


def test_cycles_end():
    a: list = []
    a.append(a)
    assert fingerprint(a) == fingerprint(a)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_finds_the_same(tmp_path, seed):
    code = (
        "import numpy as np\nfrom daskdmed.core.fingerprint import fingerprint\n"
        "names = {'a', 'b', 'c'}\n"
        "def model(x):\n    return np.asarray(x).mean() + len(names) + sum(y for y in x)\n"
        "print(fingerprint((model, {'b': 1}, names)))\n"
    )
    script = tmp_path / "a.py"
    script.write_text(code)

    def run(hash_seed):
        return subprocess.run(
            [sys.executable, str(script)],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert run(seed) == run("3")
