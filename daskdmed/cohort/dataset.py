"""`Dataset`: a named, immutable sequence of patients with unique ids.

Covers selecting, joining, splitting and describing. Reading folders and manifests is in
`daskdmed.cohort.folder` and `daskdmed.cohort.manifest`, how parts are dealt in
`daskdmed.cohort.splits`; balancing classes is a matter of sampling weights, not of copies,
and belongs to the policies of `daskdmed.persistence`.
"""

from __future__ import annotations

import difflib
import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

from daskdmed.cohort.patient import Patient
from daskdmed.cohort.record import Record
from daskdmed.cohort.splits import check_fractions, fold_indices, split_indices
from daskdmed.core.errors import DatasetError, listing
from daskdmed.core.frozen import missing, plain
from daskdmed.core.places import StorageOptions, using
from daskdmed.core.types import PathLike

By: TypeAlias = str | Callable[[Patient], Hashable] | None
MissingLabels: TypeAlias = Literal["raise", "allow"]

_NO_DEFAULT: Any = object()


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Sequence[Patient]):
    """Patients in a fixed order.

    Indexed by position (``dataset[0]``), slice, or id (``dataset["p1"]``).

    Parameters
    ----------
    name : str
        Free text; parts of a split append to it.
    patients : iterable of Patient
        May be empty, as the result of a filter may be.

    Raises
    ------
    DatasetError
        Something is not a `Patient`, or an id occurs twice; lists the ids.
    """

    name: str
    patients: tuple[Patient, ...]

    def __init__(self, name: str, patients: Iterable[Patient]) -> None:
        kept = tuple(patients)
        for position, patient in enumerate(kept):
            if not isinstance(patient, Patient):
                raise DatasetError(
                    f"dataset {name!r}: item {position} is a {type(patient).__name__}; "
                    "a dataset is made of Patient(id, records, labels)"
                )
        object.__setattr__(self, "name", str(name))
        object.__setattr__(self, "patients", kept)
        if len(self._positions) < len(kept):
            twice = sorted(k for k, n in Counter(p.key for p in kept).items() if n > 1)
            raise DatasetError(
                f"dataset {name!r}: {len(twice)} ids occur more than once: {listing(twice)}; "
                "ids must be unique (compared as text): rename them, or put the records of one "
                "patient into one Patient"
            )

    # ---------------------------------------------------------------- made from
    @classmethod
    def from_folder(
        cls,
        folder: PathLike,
        pattern: str = "*",
        *,
        name: str | None = None,
        labels: Any = None,
        id_column: str | None = None,
        label_columns: Sequence[str] | None = None,
        missing_labels: MissingLabels = "raise",
        record: str = "wsi",
        recursive: bool = True,
        patient: Callable[[Any], str | int] | None = None,
        mpp: float | tuple[float, float] | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> Dataset:
        """One patient per slide or volume of a folder, sorted by path; no image is opened.

        Parameters
        ----------
        folder : path
            Searched with its subfolders unless ``recursive=False``; Zarr groups
            (``*.zarr``) count as one image. Or a URL that its file system can list, with
            ``storage_options=`` as in `daskdmed.open_slide`.
        pattern : str
            As in a shell, of the file name, or of the path below `folder` when it contains
            a slash. "*" means every file whose suffix is known for slides; where there are
            none, for volumes; where there are none of both, pictures (PNG, JPEG...) except
            PNGs that are label maps beside others. A pair of ``.hdr`` and ``.img`` is one
            image, and with "*" a folder with ``.dcm`` files too, named as the folder: a slide
            or a volume as the first of them says.
        labels : path, mapping or DataFrame, optional
            A CSV or Parquet table with one row per patient, ``{id: label}``, or
            ``{id: {name: label}}``. Columns of a CSV in which every value is a number
            become int or float.
        id_column : str, optional
            Column of the ids (or of the file names); by default the one named like an id
            ("patient", "id", "slide"...), else the first.
        label_columns : sequence of str, optional
            Which other columns become labels; all by default.
        missing_labels : {"raise", "allow"}
            What to do with patients that the table does not name, or leaves empty.
        record : str
            Name of the record; with several images of a patient "wsi-1", "wsi-2"...
        patient : callable, optional
            ``patient(path) -> id``; images with the same id become one patient. By default
            the file name without its suffix, which must then be unique.
        mpp, backend, **options : optional
            Passed on to every `Record`: of volumes background, spacing, dataset...

        Raises
        ------
        DatasetError
            No such folder, no images in it, the same id twice, or labels that are missing.
        MissingExtraError
            A Parquet table without the extra "tables".
        """
        from daskdmed.cohort.folder import read_images

        told = (labels, id_column, label_columns, missing_labels)
        with using(StorageOptions.of(folder, options.get("storage_options"))):
            own_name, found = read_images(folder, pattern, recursive, patient, told)
        patients = []
        for patient_id, paths, row in found:
            one = len(paths) == 1
            names = [record] if one else [f"{record}-{i}" for i, _ in enumerate(paths, start=1)]
            slides = {
                n: Record(p, mpp=mpp, backend=backend, **options)
                for n, p in zip(names, paths, strict=True)
            }
            patients.append(Patient(patient_id, slides, row))
        return cls(own_name if name is None else name, patients)

    @classmethod
    def from_bids_like(
        cls,
        images: PathLike,
        labels: PathLike | None = None,
        *,
        name: str | None = None,
        channels: bool | None = None,
        missing_labels: MissingLabels = "raise",
        **options: Any,
    ) -> Dataset:
        """Scans in one folder and their label maps in another, matched by id; nothing is opened.

        As nnU-Net and the Medical Segmentation Decathlon lay them out, ``imagesTr`` and
        ``labelsTr``. Each patient has the record "image" and, where there is one, "label".

        Parameters
        ----------
        images, labels : path
            Folders; their subfolders are not searched. What counts as an image, and the id of
            one, is as of `from_folder`.
        name : str, optional
            Of the dataset; by default that of the folder, or of the one above ``images...``.
        channels : bool, optional
            Whether what stands behind the last underscore of a name is the number of a channel
            in four digits, as nnU-Net has it: ``case_0000.nii.gz`` and ``case_0001.nii.gz``
            are the records "0000" and "0001" of the patient "case", to be stacked with
            ``record=["0000", "0001"]``, and a single ``case_0000.nii.gz`` its "image". By
            default when all names end so and one in "_0000".
        missing_labels : {"raise", "allow"}
            What to do with images without a label map. Labels of no image are left out.
        **options
            Passed on to the `Record` of every image: background, time, spacing...

        Raises
        ------
        DatasetError
            No such folder, no images in it, an id twice, or channels or labels that are
            missing; lists them.

        Examples
        --------
        >>> dataset = Dataset.from_bids_like(  # doctest: +SKIP
        ...     "Task09_Spleen/imagesTr", "Task09_Spleen/labelsTr", background=-1024
        ... )
        """
        from daskdmed.cohort.scans import read_pairs

        own, patients = read_pairs(images, labels, channels, missing_labels, options)
        return cls(own if name is None else name, patients)

    @classmethod
    def from_slices(
        cls,
        folder: PathLike,
        pattern: str,
        *,
        labels: str | None = None,
        name: str | None = None,
        missing_labels: MissingLabels = "raise",
        missing_slices: MissingLabels = "raise",
        axis: int = 0,
        dataset: str | None = None,
        label_dataset: str | None = None,
        spacing: float | Sequence[float] | None = None,
        background: float | Sequence[float] | None = None,
    ) -> Dataset:
        """Scans of which every slice is a file, one patient per scan: see `Record.stack`.

        Each has the record "image" and, where there is one, "label". The first slice of each is
        opened.

        Parameters
        ----------
        folder : path
            Searched with its subfolders.
        pattern : str
            Of file names, or of paths below `folder` when it contains a slash. ``{id}`` stands
            for the name of the scan and ``{slice}`` for the number of the slice, by which
            they are sorted: ``"{id}_{slice}.im"`` for MedSegPy's
            ``9000099_V00-Aug00_001.im``. Other names in braces, which must be the same
            within a scan, become labels of the patient. Or a regular expression with these
            as named groups: ``r"(?P<id>[0-9]+)_V00_(?P<slice>[0-9]+)[.]im"``.
        labels : str, optional
            The same of label maps: ``"{id}_{slice}.seg"``. They must have the slices that the
            scan has.
        name : str, optional
            Of the dataset, by default that of the folder.
        missing_labels, missing_slices : {"raise", "allow"}
            What to do with scans without a label map, and with gaps in the numbers of a scan;
            a scan with gaps has the slices that are there, one behind the other.
        axis, dataset, spacing, background : optional
            As of `Record.stack`; `label_dataset` is that of labels, default the same.

        Raises
        ------
        DatasetError
            No file matches, or slices or labels that are missing, or there twice; names them.
        """
        from daskdmed.cohort.scans import read_slices

        options = {"axis": axis, "spacing": spacing}
        own, patients = read_slices(
            folder,
            pattern,
            labels,
            missing_labels,
            missing_slices,
            {**options, "dataset": label_dataset or dataset},
            {**options, "dataset": dataset, "background": background},
        )
        return cls(own if name is None else name, patients)

    @classmethod
    def from_arrays(
        cls,
        arrays: Iterable[Any] | Mapping[str, Any],
        *,
        name: str = "arrays",
        ids: Sequence[str | int] | None = None,
        labels: Sequence[Any] | Mapping[Any, Any] | None = None,
        record: str = "image",
        mpp: float | tuple[float, float] | None = None,
        spatial_ndim: int | None = None,
        **options: Any,
    ) -> Dataset:
        """One patient per Dask, NumPy or Zarr array.

        Parameters
        ----------
        arrays : iterable of arrays, or mapping of id to array
            Spatial axes first, (y, x[, c]) or (z, y, x[, c]).
        ids : sequence, optional
            As many as arrays; "0", "1"... by default.
        labels : sequence or mapping by id, optional
            A value (becomes the label "label") or a mapping of labels, per array.
        mpp, spatial_ndim, **options : optional
            Passed on to every `Record`: of volumes spacing, space, background.
        """
        if isinstance(arrays, Mapping):
            if ids is not None:
                raise DatasetError("ids= is for a list of arrays; the mapping gives the ids")
            ids, arrays = list(arrays), list(arrays.values())
        arrays = list(arrays)
        ids = [str(i) for i in range(len(arrays))] if ids is None else list(ids)
        if labels is None:
            rows: list[Any] = [{}] * len(arrays)
        elif isinstance(labels, Mapping):
            by_text = {str(k): v for k, v in labels.items()}
            without = [i for i in ids if str(i) not in by_text]
            if without:
                raise DatasetError(f"labels= has no entry for {listing(without)}")
            rows = [by_text[str(i)] for i in ids]
        else:
            rows = list(labels)
        if not len(arrays) == len(ids) == len(rows):
            raise DatasetError(
                f"got {len(arrays)} arrays, {len(ids)} ids and {len(rows)} labels; "
                "give one of each per patient"
            )
        patients = [
            Patient(
                patient_id,
                {record: Record(array=array, mpp=mpp, spatial_ndim=spatial_ndim, **options)},
                row if isinstance(row, Mapping) else {"label": row},
            )
            for patient_id, array, row in zip(ids, arrays, rows, strict=True)
        ]
        return cls(name, patients)

    @classmethod
    def from_manifest(
        cls,
        path: PathLike,
        *,
        name: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Read what `to_manifest` wrote, or a table made by hand.

        A ``.json`` file or a CSV with one row per record: the columns ``patient`` and
        ``uri``, and optionally ``record``, ``mpp``, ``backend``, ``label:*``, ``fact:*``; of
        volumes ``spacing`` ("3 1 1"), ``background``, ``series``, ``dataset``, ``time``...
        Relative uris are relative to the folder of the manifest. What is wrong is a
        `DatasetError` that names file and row. Every record behind a URL gets `storage_options`,
        which no manifest holds, see `daskdmed.open_slide`.
        """
        from daskdmed.cohort.manifest import read_manifest

        return read_manifest(cls, path, name, storage_options)

    def to_manifest(self, path: PathLike) -> None:
        """Write a manifest, ``.json`` or ``.csv``; the file appears whole or not at all.

        JSON keeps everything; CSV keeps everything but the dataset's name and whether an id
        was an integer. Slides below the folder of the manifest are written as relative
        paths, so that the folder can be moved. A record of an array or a stack of slices, or a
        label or fact that JSON cannot hold, is a `DatasetError`.
        """
        from daskdmed.cohort.manifest import write_manifest

        write_manifest(self, path)

    # ---------------------------------------------------------------- a sequence
    def __len__(self) -> int:
        return len(self.patients)

    def __iter__(self) -> Iterator[Patient]:
        return iter(self.patients)

    @overload
    def __getitem__(self, item: int | str) -> Patient: ...
    @overload
    def __getitem__(self, item: slice) -> Dataset: ...
    def __getitem__(self, item: int | str | slice) -> Patient | Dataset:
        if isinstance(item, slice):
            return Dataset(self.name, self.patients[item])
        if isinstance(item, str):
            if item not in self._positions:
                raise self._unknown([item])
            return self.patients[self._positions[item]]
        return self.patients[item]

    def __contains__(self, item: object) -> bool:
        if isinstance(item, str):
            return item in self._positions
        if isinstance(item, Patient):
            return item.key in self._positions and self[item.key] == item
        return False

    def __add__(self, other: Dataset) -> Dataset:
        return self.concat(other)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dataset):
            return NotImplemented
        return self.name == other.name and self.patients == other.patients

    def __hash__(self) -> int:
        return hash((self.name, self.ids))

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {p.key: i for i, p in enumerate(self.patients)}

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """The ids as text, in order."""
        return tuple(p.key for p in self.patients)

    @functools.cached_property
    def token(self) -> str:
        """Deterministic fingerprint of ids, record names and what the records point to.

        Independent of the name and of labels. Files count by uri, so the token changes
        when a folder moves; it does not change when the content of a file does.
        """
        from dask.base import tokenize

        rows = [(p.key, [(n, r.key) for n, r in p.records.items()]) for p in self.patients]
        return str(tokenize("dataset", rows))

    def __dask_tokenize__(self) -> tuple[str, str, list[str]]:
        return "Dataset", self.name, [p.token for p in self.patients]

    # ---------------------------------------------------------------- labels
    def labels(self, name: str, default: Any = _NO_DEFAULT) -> list[Any]:
        """One label of every patient, in order; a `DatasetError` lists those that lack it."""
        without = [p.key for p in self.patients if name not in p.labels]
        if without and default is _NO_DEFAULT:
            raise self._lacking(f"label {name!r}", without, "filter them out or pass default=")
        return [p.labels.get(name, default) for p in self.patients]

    @functools.cached_property
    def label_names(self) -> list[str]:
        """Every label name that occurs, in order of appearance."""
        return list(dict.fromkeys(name for p in self.patients for name in p.labels))

    # ---------------------------------------------------------------- select and join
    def filter(self, predicate: Callable[[Patient], Any]) -> Dataset:
        """The patients for which the predicate is true; may be empty."""
        return Dataset(self.name, [p for p in self.patients if predicate(p)])

    def subset(self, ids: Iterable[str | int]) -> Dataset:
        """The patients with these ids, in the order of `ids`, known and each once."""
        keys = [str(i) for i in ids]
        unknown = [k for k in keys if k not in self._positions]
        if unknown:
            raise self._unknown(unknown)
        return Dataset(self.name, [self.patients[self._positions[k]] for k in keys])

    def concat(self, *others: Dataset, name: str | None = None) -> Dataset:
        """This dataset and others, one after the other; ids must stay unique."""
        every = (self, *others)
        return Dataset(
            "+".join(d.name for d in every) if name is None else name,
            [p for d in every for p in d.patients],
        )

    # ---------------------------------------------------------------- split
    def split(
        self,
        fractions: Sequence[float] | Mapping[str, float],
        *,
        by: By = None,
        seed: int = 0,
    ) -> tuple[Dataset, ...]:
        """Disjoint parts that together are the whole; the dataset itself stays as it is.

        Parameters
        ----------
        fractions : sequence, or mapping of part name to fraction
            They sum to 1.
        by : str or callable, optional
            A label name or ``by(patient) -> class``: each class is split on its own. Every
            part then gets at least one patient of each class that has as many patients as
            there are parts.
        seed : int
            The same ids and seed give the same parts, whatever their order.

        Raises
        ------
        DatasetError
            The fractions do not sum to 1, or patients lack the label.
        """
        named = dict(fractions if isinstance(fractions, Mapping) else enumerate(fractions))
        shares = check_fractions(list(named.values()))
        parts = split_indices(self.ids, self._classes(by), shares, int(seed))
        return tuple(self._take(str(n), part) for n, part in zip(named, parts, strict=True))

    def kfold(self, k: int, *, by: By = None, seed: int = 0) -> list[tuple[Dataset, Dataset]]:
        """`k` pairs (train, validation); each patient validates exactly once.

        Parameters and errors as of `split`; folds differ by at most one patient, in each class
        too. `k` is from 2 to the number of patients.
        """
        pairs = []
        for i, fold in enumerate(fold_indices(self.ids, self._classes(by), k, int(seed))):
            held_out = set(fold)
            rest = [j for j in range(len(self)) if j not in held_out]
            train = self._take(f"fold{i}-train", rest)
            pairs.append((train, self._take(f"fold{i}-validation", fold)))
        return pairs

    def _take(self, part: str, positions: Sequence[int]) -> Dataset:
        return Dataset(f"{self.name}/{part}", [self.patients[i] for i in positions])

    def _classes(self, by: By) -> list[Hashable]:
        if by is None:
            return [0] * len(self)
        found = self.labels(by, None) if isinstance(by, str) else [by(p) for p in self.patients]
        classes = [plain(value) for value in found]
        odd = next((c for c in classes if not isinstance(c, Hashable)), None)
        if odd is not None:
            raise DatasetError(
                f"by={by!r} gives a {type(odd).__name__}, which cannot name a class; "
                "give a function of the patient that returns a number or a text"
            )
        without = [k for k, c in zip(self.ids, classes, strict=True) if missing(c)]
        if without:
            raise self._lacking(f"class by {by!r}", without, "filter them out first")
        return classes

    def _lacking(self, what: str, without: Sequence[str], remedy: str) -> DatasetError:
        return DatasetError(
            f"dataset {self.name!r}: {len(without)} of {len(self)} patients have no {what}: "
            f"{listing(without)}; known labels are {self.label_names}; {remedy}"
        )

    def _unknown(self, ids: Sequence[str]) -> DatasetError:
        near = difflib.get_close_matches(ids[0], self.ids, n=3)
        hint = f"; near {ids[0]!r} there are {near}" if near else ""
        return DatasetError(
            f"dataset {self.name!r} of {len(self)} patients has no {listing(list(ids))}{hint}"
        )

    # ---------------------------------------------------------------- shown
    def __repr__(self) -> str:
        records = list(dict.fromkeys(n for p in self.patients for n in p.records))
        return (
            f"Dataset({self.name!r}, {len(self)} patients, records={records}, "
            f"labels={self.label_names})"
        )

    def _repr_html_(self) -> str:
        from daskdmed.cohort.html import dataset_html

        return dataset_html(self)
