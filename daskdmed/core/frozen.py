"""A read-only mapping that pickles, for frozen dataclasses; and what leaves these alone.

``types.MappingProxyType`` does not pickle, and a plain dict could be changed behind the
back of everything that was derived from it (tokens, splits, plans).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

if TYPE_CHECKING:
    from typing import Self

V = TypeVar("V")


class Unmoved:
    """What came with a batch and stays on the host, as it is.

    Frameworks move values by calling `to` on what has it. Without it Lightning takes
    dataclasses apart to look for tensors, and refuses frozen ones.
    """

    __slots__ = ()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The same object: it has no pixels on a device."""
        return self


class FrozenMapping(Mapping[str, V]):
    """A mapping with string keys that cannot be changed; copies one level deep, keeps the order."""

    __slots__ = ("_items",)
    _items: dict[str, V]

    def __init__(self, items: Mapping[str, V] | Iterable[tuple[str, V]] = ()) -> None:
        object.__setattr__(self, "_items", dict(items))

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("a FrozenMapping cannot be changed; build a new one from dict(...)")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._items,)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        from dask.base import normalize_token

        return "FrozenMapping", tuple((k, normalize_token(self._items[k])) for k in sorted(self))


def plain(value: Any) -> Any:
    """NumPy scalars as Python's own, so that labels from pandas compare, hash and print well."""
    return value.item() if isinstance(value, np.generic) else value


def missing(value: Any) -> bool:
    """Whether a value says "not known": None, NaN, NaT, or pandas' NA.

    The one rule for labels: tables write an empty cell in any of these ways.
    """
    if value is None or type(value).__name__ == "NAType":
        return True
    return not hasattr(value, "__len__") and bool(value != value)
