"""A package under a second name, so that a script's own import lines find it.

``install("medsegpy", "daskdmed.compat.medsegpy")`` makes ``from medsegpy.data import ...`` give the
modules of `daskdmed.compat.medsegpy`: the same objects, imported when they are asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from daskdmed.core.errors import UsageError, listing


class Installed(MetaPathFinder):
    """A package that is found under another name too; `remove`, or the end of a ``with``, ends it.

    Made by `install`.
    """

    def __init__(self, alias: str, package: str) -> None:
        self.alias, self.package = alias, package

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of a module below the alias; an error says what there is where it has no counterpart."""
        if name != self.alias and not name.startswith(f"{self.alias}."):
            return None
        real = self.package + name[len(self.alias) :]
        if importlib.util.find_spec(real) is None:
            parent = importlib.import_module(real.rpartition(".")[0])
            there = [m.name for m in pkgutil.iter_modules(parent.__path__) if m.name[0] != "_"]
            raise ModuleNotFoundError(
                f"No module named {name!r}: {parent.__name__} stands for "
                f"{name.rpartition('.')[0]} and has {listing(there)}",
                name=name,
            )
        return ModuleSpec(name, _Alias(real), is_package=True)

    def remove(self) -> None:
        """End it; the modules are not found under the second name any more. Idempotent."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            for name in [n for n in sys.modules if f"{n}.".startswith(f"{self.alias}.")]:
                del sys.modules[name]

    def __enter__(self) -> Installed:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Alias(Loader):
    """Puts the module of another name in the place of the one that is imported."""

    def __init__(self, real: str) -> None:
        self._real = real

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self._real)


def install(alias: str, package: str) -> Installed:
    """Have `package` found as `alias` too, with all its modules; nothing is imported yet.

    Raises
    ------
    UsageError
        The package of that name itself is imported already, or can be.
    """
    for finder in sys.meta_path:
        if isinstance(finder, Installed) and finder.alias == alias:
            if finder.package == package:
                return finder
            raise UsageError(f"{alias} stands for {finder.package} already; remove() that first")
    if alias in sys.modules or importlib.util.find_spec(alias) is not None:
        raise UsageError(
            f"{alias} itself is installed: `import {alias}` would give either, depending on who "
            f"imports first. Uninstall it, or change the import lines to {package}"
        )
    found = Installed(alias, package)
    sys.meta_path.insert(0, found)
    return found
