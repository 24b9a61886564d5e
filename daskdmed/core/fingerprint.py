"""A name for what a model computes, equal in another process.

A run that is resumed must go on with the model that began it. Weights are hashed by
content, functions by their code and by what they refer to, objects by their attributes.

Not covered: proof. Two models with equal fingerprints have equal weights and code as far
as Python lets them be seen; state inside C extensions is named by its type only. A class
that knows better defines ``__dask_tokenize__``, which is then used instead.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterable
from typing import Any

import numpy as np

_MAX_DEPTH = 12


def fingerprint(value: Any) -> str:
    """32 hexadecimal digits for a ``torch.nn.Module`` (its weights and structure), a function
    (code, constants, defaults, closure, and the globals it names) or any object (type and
    attributes)."""
    digest = _Digest()
    digest.add(value, 0)
    return digest.hash.hexdigest()[:32]


class _Digest:
    """One pass over an object graph."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        # what is on the way is kept alive, so that no two objects share an id
        self._alive: list[Any] = []

    def _put(self, *parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            self.hash.update(len(data).to_bytes(8, "little") + data)

    def add(self, value: Any, depth: int) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            self._put(type(value).__name__, value if isinstance(value, bytes) else repr(value))
            return
        if id(value) in self._seen:
            self._put("seen", self._seen[id(value)])
            return
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        kind = type(value)
        self._put(f"{kind.__module__}.{kind.__qualname__}")
        if depth < _MAX_DEPTH:
            self._content(value, depth + 1)

    def _content(self, value: Any, depth: int) -> None:
        if isinstance(value, type):
            self._put(value.__module__, value.__qualname__)
        elif hasattr(value, "__dask_tokenize__"):
            self.add(value.__dask_tokenize__(), depth)
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, np.generic):
            self._put(value.dtype, value.tobytes())
        elif isinstance(value, (tuple, list)):
            self._all(value, depth)
        elif isinstance(value, (set, frozenset)):
            self._put(*sorted(fingerprint(v) for v in value))
        elif isinstance(value, dict):
            self._all((part for item in value.items() for part in item), depth)
        elif isinstance(value, (types.ModuleType, types.BuiltinFunctionType, np.ufunc)):
            self._put(getattr(value, "__module__", ""), value.__name__)
        elif isinstance(value, functools.partial):
            self._all((value.func, value.args, value.keywords), depth)
        elif isinstance(value, types.MethodType):
            self._all((value.__func__, value.__self__), depth)
        elif isinstance(value, types.FunctionType):
            self._function(value, depth)
        elif isinstance(value, types.CodeType):
            self._code(value, depth)
        else:
            self._object(value, depth)

    def _all(self, values: Iterable[Any], depth: int) -> None:
        count = 0
        for value in values:
            self.add(value, depth)
            count += 1
        self._put("count", count)

    def _array(self, value: np.ndarray[Any, Any]) -> None:
        self._put(value.dtype, value.shape)
        if value.dtype.hasobject:
            self._all(value.ravel().tolist(), 1)
        else:
            self.hash.update(np.ascontiguousarray(value).view(np.uint8).data)

    def _function(self, function: types.FunctionType, depth: int) -> None:
        self._put(function.__module__, function.__qualname__)
        if _installed(function.__module__):
            return  # a library's function is its name; its version is another matter
        self._code(function.__code__, depth)
        self._all((function.__defaults__, function.__kwdefaults__), depth)
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # a cell that is not filled yet
                content = "empty"
            self.add(content, depth)
        for name in _names(function.__code__):
            if name in function.__globals__:
                self._put(name)
                self.add(function.__globals__[name], depth)

    def _code(self, code: types.CodeType, depth: int) -> None:
        self._put(code.co_code, code.co_names, code.co_varnames)
        # the docstring and line numbers do not compute anything
        self._all((c for c in code.co_consts if not isinstance(c, str) or c), depth)

    def _object(self, value: Any, depth: int) -> None:
        module = type(value).__module__
        torch = sys.modules.get("torch")  # without it there is nothing of it
        if torch is not None and isinstance(value, torch.Tensor):
            self._put(str(value.dtype), tuple(value.shape))
            self._array(_tensor_bytes(value))
            return
        if torch is not None and isinstance(value, torch.nn.Module):
            self._network(value, depth)
            return
        if not _installed(module):
            self.add(vars(type(value)).get("__call__"), depth)
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self.add(attributes, depth)

    def _network(self, value: Any, depth: int) -> None:
        self._put(repr(value))
        if hasattr(value, "inlined_graph"):  # TorchScript: the code is not in the class
            # without line numbers, and without names that count up in a process
            self._put(re.sub(r"#.*|__torch__[\w.]*", "", str(value.inlined_graph)))
        for name, tensor in value.state_dict().items():
            self._put(name)
            self.add(tensor, depth)
        for module in value.modules():
            if not _installed(type(module).__module__):
                self.add(getattr(type(module), "forward", None), depth)
                self.add(_plain_attributes(module), depth)


def _plain_attributes(module: Any) -> dict[str, Any]:
    """What a user's network keeps beside its weights and its mode."""
    return {k: v for k, v in sorted(vars(module).items()) if k[0] != "_" and k != "training"}


def _names(code: types.CodeType) -> list[str]:
    """Global names that a function and the functions inside it refer to."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_names(constant))
    return sorted(names)


@functools.lru_cache(maxsize=1024)
def _installed(module: str | None) -> bool:
    """Whether a module is a library (installed or built in) rather than the user's code."""
    found = sys.modules.get(module or "")
    path = getattr(found, "__file__", None)
    if module == "__main__" or found is None:
        return False
    return path is None or "site-packages" in path or path.startswith(sys.base_prefix + "/lib")


def _tensor_bytes(value: Any) -> np.ndarray[Any, Any]:
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    data: np.ndarray[Any, Any] = flat.view(torch.uint8).numpy()
    return data
