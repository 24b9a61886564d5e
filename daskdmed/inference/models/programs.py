"""Networks as files: TorchScript archives and programs of ``torch.export``.

A program is a value: it is sent to workers as the bytes of its file, so that they need not
see the file, and becomes a module where it runs.

Not covered: training, compiling. Files that hold weights only need the class they belong
to, which a file name cannot give.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daskdmed.core.errors import UsageError

Kind = Literal["script", "export"]


@dataclass(frozen=True)
class Program:
    """A TorchScript archive or an exported program. Make it with `Program.of`."""

    name: str  # path, for people
    kind: Kind
    content: bytes

    @classmethod
    def of(cls, model: Any) -> Program:
        """From a path (UsageError for what is no program), a scripted module or a program."""
        if isinstance(model, (str, os.PathLike)):
            path = Path(os.fspath(model)).expanduser()
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UsageError(
                    f"model={os.fspath(model)!r} cannot be read ({type(error).__name__}: "
                    f"{error}); give a file made by torch.jit.save or torch.export.save, a "
                    "torch.nn.Module, or any callable"
                ) from error
            return cls(str(path), _kind(str(path), content), content)
        buffer = io.BytesIO()
        torch = sys.modules["torch"]
        if is_exported(model):
            torch.export.save(model, buffer)
            return cls("an exported program", "export", buffer.getvalue())
        with _quiet():
            torch.jit.save(model, buffer)
        return cls("a scripted module", "script", buffer.getvalue())

    def __repr__(self) -> str:
        return f"Program({self.name!r}, {self.kind!r}, {len(self.content)} bytes)"

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return "program", self.kind, self.digest

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()

    def load(self, device: Any = None) -> Any:
        """The module in evaluation mode, on `device` or where the file says.

        Raises UsageError where the torch that is installed cannot load it.
        """
        try:
            import torch
        except ImportError as error:
            raise UsageError(
                f"{self.name}: programs need torch; pip install daskdmed[torch]"
            ) from error
        try:
            with _quiet():
                if self.kind == "script":
                    module = torch.jit.load(io.BytesIO(self.content), map_location=device)  # type: ignore[no-untyped-call]
                    return module.eval()
                program = torch.export.load(io.BytesIO(self.content))
                return _module(program, device)
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            raise UsageError(
                f"{self.name}: cannot be loaded as "
                f"{'TorchScript' if self.kind == 'script' else 'an exported program'} "
                f"({type(error).__name__}: {error}); save it with the torch that loads it"
            ) from error


def _module(program: Any, device: Any) -> Any:
    if device is not None:
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(device))
    module = program.module()
    # the batch that the program was made for, when it takes no other
    module.daskdmed_batch = fixed_batch(program)
    return module


def fixed_batch(program: Any) -> int | None:
    """The only number of windows that an exported program takes; None when it takes any."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta.get("val")
            size = value.shape[0] if hasattr(value, "shape") and value.ndim else None
            return size if type(size) is int else None
    return None


def is_exported(model: Any) -> bool:
    """Whether a model is an exported program, not yet a module."""
    export = sys.modules.get("torch.export")  # not loaded: there can be none
    return export is not None and isinstance(model, export.ExportedProgram)


def is_scripted(model: Any) -> bool:
    """Whether a model is a scripted or traced module."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.jit.ScriptModule)


def is_program(model: Any) -> bool:
    """Whether `Program.of` has to be asked before a model can be called."""
    return isinstance(model, (str, os.PathLike)) or is_exported(model)


def _kind(name: str, content: bytes) -> Kind:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = [entry.partition("/")[2] or entry for entry in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise UsageError(
            f"{name} is no archive of torch ({len(content)} bytes); give a file made by "
            "torch.jit.save or torch.export.save"
        ) from error
    if any(p.startswith("models/") or "serialized_exported_program" in p for p in parts):
        return "export"
    if any(p.startswith("code/") or p == "constants.pkl" for p in parts):
        return "script"
    raise UsageError(
        f"{name} holds weights, not a program; build the module, load_state_dict them, and "
        "give the module (or save it with torch.jit.save or torch.export.save)"
    )


class _quiet(warnings.catch_warnings):
    """torch announces that TorchScript is old whenever one is loaded."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return entered
