"""`DatasetCatalog` and `MetadataCatalog`: datasets and what is known of them, by name.

Catalogues of this process. Nothing is registered by importing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from daskdmed.core.errors import DatasetError, UsageError, listing, meant


class DatasetCatalog:
    """Functions by name, each of which gives the dicts of a dataset.

    A dict is of a slice or of a whole scan: ``file_name``, ``sem_seg_file`` (not there when there
    are no masks), ``scan_id``; of a slice ``slice_id`` from 1 and ``scan_num_slices``; of a scan
    ``image_size``; perhaps ``subject_id``, ``time_point``, ``singlefile_path``. Whatever begins
    with ``scan_`` is handed on by ``inference``.
    """

    _registered: ClassVar[dict[str, Callable[[], list[dict[str, Any]]]]] = {}

    @classmethod
    def register(cls, name: str, func: Callable[[], list[dict[str, Any]]]) -> None:
        """Add a function; it is called whenever the dataset is asked for.

        Raises
        ------
        UsageError
            The name is taken, or `func` is no function.
        """
        if not callable(func):
            raise UsageError(
                f"dataset {name!r} is registered with a function that gives its dicts, got "
                f"{type(func).__name__}"
            )
        if name in cls._registered:
            raise UsageError(
                f"a dataset {name!r} is registered already; take another name, or "
                f"DatasetCatalog.remove({name!r})"
            )
        cls._registered[name] = func

    @classmethod
    def get(cls, name: str) -> list[dict[str, Any]]:
        """The dicts of a dataset.

        Raises
        ------
        DatasetError
            No such dataset, or its function gives no list of dicts.
        """
        if name not in cls._registered:
            raise DatasetError(
                f"no dataset {name!r}{meant(str(name), cls._registered)}; registered are "
                f"{listing(cls.list()) or 'none'}: DatasetCatalog.register(name, function) adds one"
            )
        found: Any = cls._registered[name]()
        if not isinstance(found, Sequence) or not all(isinstance(d, dict) for d in found):
            raise DatasetError(f"the function of dataset {name!r} gives no list of dicts")
        return list(found)

    @classmethod
    def list(cls) -> list[str]:
        """Names that are registered."""
        return [*cls._registered]

    @classmethod
    def remove(cls, name: str) -> None:
        """Forget a dataset, and what is known of it."""
        cls._registered.pop(name, None)
        MetadataCatalog.remove(name)

    @classmethod
    def clear(cls) -> None:
        """Forget all."""
        cls._registered.clear()


class Metadata:
    """What is known of a dataset, as attributes.

    ``categories`` (names of the masks), ``category_ids``, ``category_id_to_contiguous_id``,
    ``evaluator_type``, ``spacing`` (millimetres per voxel: rows, columns, slices), ``scan_root``,
    ``category_abbreviations``, ``category_colors``, and any other. A dict by task is looked up with
    the ``PRIMARY_TASK`` of the configuration.
    """

    def __init__(self, name: str = "") -> None:
        self.__dict__["name"] = name

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != value:
            raise UsageError(
                f"{key!r} of dataset {self.__dict__['name']!r} is {self.__dict__[key]!r} already, "
                f"and cannot become {value!r}: what others may have used does not change"
            )
        self.__dict__[key] = value

    def __getattr__(self, key: str) -> Any:
        # only asked for what is not there
        raise AttributeError(
            f"nothing is known of {key!r} of dataset {self.__dict__.get('name', '')!r}"
            f"{meant(key, self.__dict__)}; it has {listing(list(self.__dict__))}"
        )

    def set(self, **values: Any) -> Metadata:
        """Add values; gives itself, so that calls can be chained.

        Raises
        ------
        UsageError
            A key has another value already.
        """
        for key, value in values.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or `default`."""
        return self.__dict__.get(key, default)

    def of_task(self, key: str, task: str, default: Any = None) -> Any:
        """A value, of a task where there is one for each."""
        value = self.get(key, default)
        if isinstance(value, dict) and task in value:
            return value[task]
        return value

    def as_dict(self) -> dict[str, Any]:
        """All values."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"Metadata({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"

    def _repr_html_(self) -> str:
        from daskdmed.compat.medsegpy._html import metadata_html

        return metadata_html(self)


class MetadataCatalog:
    """`Metadata` of datasets by name; made when they are first asked for."""

    _known: ClassVar[dict[str, Metadata]] = {}

    @classmethod
    def get(cls, name: str) -> Metadata:
        """What is known of a dataset: always the same object."""
        return cls._known.setdefault(name, Metadata(name))

    @classmethod
    def remove(cls, name: str) -> None:
        """Forget what is known of a dataset."""
        cls._known.pop(name, None)


__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]
