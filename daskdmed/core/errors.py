"""The exception tree.

Every error raised on purpose derives from :class:`DaskdmedError`, and also from the
builtin that it refines, so that ``except ValueError`` keeps working in user code.
Messages say what went wrong, where (file, level, region), the numbers, and the remedy.

This module does not cover errors of libraries underneath: those are chained as causes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

#: how much of a list a message shows
_SHOWN = 10


class DaskdmedError(Exception):
    """Base class of all errors of this library."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), dict(self.__dict__))


class UsageError(DaskdmedError, ValueError):
    """An argument is wrong, or two arguments contradict each other."""


class ImageError(DaskdmedError, OSError):
    """An image cannot be opened or read; `uri` says which."""

    def __init__(self, message: str, *, uri: str = "") -> None:
        super().__init__(message)
        self.uri = uri

    @classmethod
    def of(cls, uri: str, what: str) -> Self:
        """An error whose message begins with the image."""
        return cls(f"{uri}: {what}", uri=uri)


class ImageNotFoundError(ImageError, FileNotFoundError):
    """The image does not exist."""


class ImagePermissionError(ImageError, PermissionError):
    """The image exists but may not be read."""


class UnsupportedImageError(ImageError):
    """No backend reads this file, or the backend that would is not installed."""


class CorruptImageError(ImageError):
    """The file's structure is broken: truncated, cyclic, or absurd."""


class TileError(ImageError):
    """One storage tile cannot be read or decoded: `tile` of `level`, in array order (row,
    column)."""

    def __init__(
        self, message: str, *, uri: str = "", level: int = 0, tile: tuple[int, ...] = ()
    ) -> None:
        super().__init__(message, uri=uri)
        self.level = level
        self.tile = tile


class ChangedImageError(ImageError):
    """The file was replaced since it was opened: what was read of it and what would come now do
    not belong together. Open it again."""


class RemoteError(ImageError):
    """A server did not give what it was asked for in so many `tries`, and might later."""

    def __init__(self, message: str, *, uri: str = "", tries: int = 0) -> None:
        super().__init__(message, uri=uri)
        self.tries = tries


class ResolutionError(UsageError):
    """The resolution asked for cannot be had (no mpp in the file, no such level...)."""


class DatasetError(UsageError):
    """A dataset is inconsistent: duplicate ids, no patients, an unknown record..."""


class NoTissueError(DatasetError):
    """A slide (or every slide of a dataset) has no tissue, or no place where one may sample."""


class BudgetError(DaskdmedError, MemoryError):
    """The byte budget cannot hold what was asked for; the message gives the numbers."""


class GeometryError(UsageError):
    """Sizes do not fit: an image smaller than a crop, a stride of zero..."""


class SpaceError(ImageError, GeometryError):
    """An image contradicts itself about where it lies, or does not lie on one grid."""


class LoaderError(DaskdmedError, RuntimeError):
    """A loader cannot go on: the message names the patient, the record and the region. `patient`
    and `record` are empty when it concerns no single patient."""

    def __init__(self, message: str, *, patient: str = "", record: str = "") -> None:
        super().__init__(message)
        self.patient = patient
        self.record = record


class LoaderClosedError(LoaderError):
    """The loader was closed, or was never started."""


class StateError(UsageError):
    """A state cannot be saved, or does not belong to this loader; the message says why."""


class StoreError(DaskdmedError, OSError):
    """A result store cannot be created, resumed or written."""


class SampleNotAvailableError(DaskdmedError, FileNotFoundError):
    """A sample image is neither in the data folder nor can it be downloaded."""


class AnnotationError(DaskdmedError, ValueError):
    """Annotations or patch coordinates cannot be read, made or written.

    `uri` is empty for text and for values made in memory; `index` is the position of the feature
    within the file, counted from 0 in file order, or None.
    """

    def __init__(self, message: str, *, uri: str = "", index: int | None = None) -> None:
        super().__init__(message)
        self.uri = uri
        self.index = index


class AnnotationNotFoundError(AnnotationError, FileNotFoundError):
    """The file of annotations does not exist."""


class MissingExtraError(DaskdmedError, ImportError):
    """An optional dependency is missing; the message names the extra to install."""


def _rebuild(cls: type[Exception], message: str, state: dict[str, Any]) -> Exception:
    """Unpickle an error with keyword attributes (they must cross processes whole)."""
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


def meant(name: str, known: Iterable[str]) -> str:
    """ "; is 'known' meant?" where something known is written nearly like a name, else nothing."""
    import difflib

    lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; is {lower[near[0]]!r} meant?" if near else ""


def listing(items: Sequence[Any]) -> str:
    """The first few of a list, and how many more, for messages."""
    shown = ", ".join(repr(i) for i in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
