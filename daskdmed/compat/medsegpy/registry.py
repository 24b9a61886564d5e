"""Classes by their names, for what configurations name in text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast, overload

from daskdmed.core.errors import UsageError, listing, meant

#: what a class is when it is asked for: a function that makes its objects
T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """Classes under their names.

    Parameters
    ----------
    kind : str
        What they are, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, T] = {}

    @overload
    def register(self, cls: C) -> C: ...
    @overload
    def register(self, cls: None = None) -> Callable[[C], C]: ...
    def register(self, cls: Any = None) -> Any:
        """Add a class: ``@REGISTRY.register()`` above it, or ``REGISTRY.register(cls)``.

        Raises
        ------
        UsageError
            Another class has that name.
        """
        return self._add if cls is None else self._add(cls)

    def _add(self, cls: type) -> type:
        known: Any = self._classes.get(cls.__name__, cls)
        # a notebook's cell that is run again defines the same class anew
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(
                f"a {self.kind} {cls.__name__!r} is registered already, {known.__module__}."
                f"{known.__qualname__}; name this one otherwise"
            )
        self._classes[cls.__name__] = cast(T, cls)
        return cls

    def get(self, name: str) -> T:
        """The class of a name.

        Raises
        ------
        UsageError
            There is none; says what there is.
        """
        if name not in self._classes:
            raise UsageError(
                f"no {self.kind} {name!r}{meant(str(name), self._classes)}; registered are "
                f"{listing(sorted(self._classes))}"
            )
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(sorted(self._classes))})"
