"""Which labels make which class of a target.

`Categories` joins labels into classes (superclasses), says whether the background is a class
of its own, and turns label maps or stacks of masks into what a network is trained on. It
works on labels of annotations (texts) and on values of label maps (integers) alike.

Not covered: painting polygons (`daskdmed.cohort.annotations`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.core import html
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array

Label: TypeAlias = str | int
Background: TypeAlias = Literal["first", "last"] | None

#: label maps of up to this many different values are translated by a table
_TABLE = 2**16


@dataclass(frozen=True, init=False)
class Categories:
    """Classes made of labels.

    Class number ``k`` (from 1) of a label map is the k-th category; 0 is the background.
    In a multi-channel target each category is one channel of zeros and ones, in the same
    order, and the background is a channel of its own only where `background` asks for it.
    MedSegPy's ``CATEGORIES`` and ``INCLUDE_BACKGROUND`` are the sequence form and
    ``background="first"``.

    Parameters
    ----------
    spec : mapping or sequence
        ``{"tumour": ["invasive", "in situ"], "stroma": "stroma"}``: name of the class to
        its label or labels; or a sequence of labels, where a nested sequence is a
        superclass: ``["stroma", ("invasive", "in situ")]``, which is named
        ``"invasive+in situ"``.
    background : {"first", "last"}, optional
        Where multi-channel targets get a channel that is 1 where no category is.
    erase : sequence of labels, optional
        Labels that paint background over what lies under them, as the exclusions of
        Camelyon16 (group ``"_2"``) do.

    Raises
    ------
    UsageError
        No category, a name twice, a label of the wrong type, or one that both counts and
        erases.

    Examples
    --------
    >>> classes = Categories({"tumour": [1, 2], "stroma": 3}, background="first")
    >>> classes.channels
    ('background', 'tumour', 'stroma')
    >>> classes.collate(np.array([0, 1, 2, 3, 4]))
    array([0, 1, 1, 2, 0], dtype=uint8)
    """

    names: tuple[str, ...] = field()
    members: tuple[tuple[Label, ...], ...] = field()
    background: Background = field(default=None, kw_only=True)
    erase: tuple[Label, ...] = field(default=(), kw_only=True)

    def __init__(
        self,
        spec: Mapping[str, Any] | Sequence[Any],
        *,
        background: Background = None,
        erase: Iterable[Label] = (),
    ) -> None:
        if background not in (None, "first", "last"):
            raise UsageError(f'background is "first", "last" or None, got {background!r}')
        if isinstance(spec, (str, bytes)) or not isinstance(spec, (Mapping, Sequence)):
            raise UsageError(
                "categories are a mapping of names to labels, or a sequence of labels, got "
                f"{spec!r}"
            )
        if isinstance(spec, Mapping):
            pairs = [(str(name), _labels(labels)) for name, labels in spec.items()]
        else:
            groups = [_labels(entry) for entry in spec]
            pairs = [("+".join(map(str, group)), group) for group in groups]
        names = tuple(name for name, _ in pairs)
        if not names:
            raise UsageError("there is no category; name at least one label")
        if len(set(names)) < len(names) or "" in names:
            raise UsageError(f"categories need different names, got {list(names)}")
        erased = _labels(list(erase)) if not isinstance(erase, str) else (erase,)
        both = {label for _, group in pairs for label in group} & set(erased)
        if both:
            raise UsageError(f"the labels {sorted(map(str, both))} are both a category and erased")
        members = tuple(group for _, group in pairs)
        self.__dict__.update(names=names, members=members, background=background, erase=erased)

    @classmethod
    def of(cls, classes: Any) -> Categories:
        """What an argument takes: `Categories`, or the mapping or sequence that makes them."""
        return classes if isinstance(classes, Categories) else cls(classes)

    def __len__(self) -> int:
        """Number of categories, without the background."""
        return len(self.names)

    def _repr_html_(self) -> str:
        rows = [
            (number, name, ", ".join(map(str, labels)))
            for number, (name, labels) in enumerate(
                zip(self.names, self.members, strict=True), start=1
            )
        ]
        erased = f"erased by {', '.join(map(str, self.erase))}" if self.erase else ""
        first = f"the background is the {self.background} channel" if self.background else ""
        heading = html.title("Categories", erased, first)
        return html.page(heading, html.table(("class", "name", "labels"), rows))

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of a multi-channel target."""
        if self.background == "first":
            return ("background", *self.names)
        return (*self.names, "background") if self.background == "last" else self.names

    @property
    def labels(self) -> tuple[Label, ...]:
        """Every label that makes a category, in order, each once."""
        return tuple(dict.fromkeys(label for group in self.members for label in group))

    def classes_of(self, label: Label | None) -> tuple[int, ...]:
        """Numbers, from 1, of a label's categories; (0,) for one that erases."""
        if label in self.erase:
            return (0,)
        return tuple(k for k, group in enumerate(self.members, start=1) if label in group)

    def collate(
        self, labelmap: npt.ArrayLike, *, multichannel: bool = False, dtype: npt.DTypeLike = "u1"
    ) -> Array:
        """Classes of an integer label map of any shape.

        Values that no category names become background. With `multichannel` the channels of
        `channels` lie behind, zeros and ones: only there can a value belong to several
        categories, otherwise the last of them counts.

        Raises
        ------
        UsageError
            The map is not of integers, categories are named by texts, or `dtype` is too
            small for the class numbers.
        """
        values = np.asarray(labelmap)
        if values.dtype.kind not in "iub":
            raise UsageError(
                f"a label map holds integers, got {values.dtype}; convert it first if its "
                "values are whole numbers"
            )
        self._require_integers("values of a label map")
        kind = self.check_dtype(dtype)
        if not multichannel:
            return self._translate(values, self._numbers(), kind)
        planes = np.zeros((*values.shape, len(self.channels)), kind)
        for k, group in enumerate(self.members):
            table = dict.fromkeys(group, 1)
            planes[..., k + (self.background == "first")] = self._translate(values, table, kind)
        self.fill_background(planes)
        return planes

    def collate_channels(self, masks: npt.ArrayLike, *, dtype: npt.DTypeLike = "u1") -> Array:
        """Classes of a stack of masks, labels being positions along the last axis.

        A category is 1 where any of its masks is not 0, a channel each; a `GeometryError`
        when it names a mask that is not there.
        """
        stack = np.asarray(masks)
        self._require_integers("positions of channels")
        available = stack.shape[-1] if stack.ndim else 0
        wrong = [n for n in self.labels if not 0 <= int(n) < available]
        if wrong:
            raise GeometryError(
                f"categories name the channels {wrong}, masks of shape {stack.shape} have "
                f"{available} (counted from 0)"
            )
        planes = np.zeros((*stack.shape[:-1], len(self.channels)), np.dtype(dtype))
        for k, group in enumerate(self.members):
            chosen = stack[..., [int(n) for n in group]]
            planes[..., k + (self.background == "first")] = (chosen != 0).any(axis=-1)
        self.fill_background(planes)
        return planes

    def fill_background(self, planes: Array) -> None:
        """Write the background channel of a multi-channel target, in place."""
        if self.background is None:
            return
        own = 0 if self.background == "first" else -1
        others = planes[..., 1:] if own == 0 else planes[..., :-1]
        planes[..., own] = ~others.astype(bool).any(axis=-1)

    def check_dtype(self, dtype: npt.DTypeLike) -> np.dtype[Any]:
        """The dtype, when class numbers fit into it; else a `UsageError`."""
        kind = np.dtype(dtype)
        if kind.kind in "iu" and len(self) > np.iinfo(kind).max:
            raise UsageError(f"{len(self)} classes do not fit into {kind}; use uint16")
        return kind

    def _require_integers(self, what: str) -> None:
        texts = [label for label in self.labels if isinstance(label, str)]
        if texts:
            raise UsageError(f"categories of {what} are integers, got {texts}")

    def _numbers(self) -> dict[Label, int]:
        return {label: self.classes_of(label)[-1] for label in self.labels}

    @staticmethod
    def _translate(values: Array, numbers: Mapping[Label, int], kind: np.dtype[Any]) -> Array:
        if values.dtype.kind in "ub" and values.dtype.itemsize <= 2:
            table = np.zeros(2 if values.dtype.kind == "b" else _TABLE, kind)
            for label, number in numbers.items():
                if 0 <= int(label) < len(table):
                    table[int(label)] = number
            return np.asarray(table[values.astype(np.intp)])
        result = np.zeros(values.shape, kind)
        for label, number in numbers.items():
            result[values == label] = number
        return result


def _labels(entry: Any) -> tuple[Label, ...]:
    """One label or several as a tuple."""
    if isinstance(entry, str):
        return (entry,)
    if isinstance(entry, Iterable):
        found = tuple(label for item in entry for label in _labels(item))
        return tuple(dict.fromkeys(found))
    try:
        if isinstance(entry, (bool, np.bool_)):
            raise TypeError
        return (operator.index(entry),)
    except TypeError:
        raise UsageError(f"a label is a text or an integer, got {entry!r}") from None
