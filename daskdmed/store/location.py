"""Where a result store lies: a folder, a URL, or a Zarr store object.

Answers whether something is there already, and replaces a finished store by a newer one, so
that a reader sees the old or the new one and never parts of both.

Not covered: what is in the store (`daskdmed.store.results.resumable`), replacing single files
(`daskdmed.core.files`).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, ZipStore

from daskdmed.core.errors import DaskdmedError, StoreError, UsageError
from daskdmed.core.files import exchange
from daskdmed.core.places import filesystem, is_remote, local_path
from daskdmed.core.types import PathLike
from daskdmed.images.ngff.metadata import MALFORMED
from daskdmed.images.ngff.storage import zip_root
from daskdmed.store.homestore import at_home, in_memory

#: without these nothing is a Zarr node: removed first, and written last
_METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
#: characters of a name that stay in a file name on every system
_SAFE = " !#$&'()+,-.;=@[]_{}~"
#: bytes of a name, of 255 that file systems allow; the rest is for suffixes and siblings
_LONGEST = 180
_HASHED = re.compile(r"~[0-9a-f]{16}$")
#: file systems of URLs that take no objects, or none in place of others
_FIXED = {"zip", "tar", "libarchive", "http", "https", "github", "git", "reference"}


def file_name(text: str, *, hashed: bool = False) -> str:
    """A text as the name of one file or folder; different texts give different names.

    Characters that some system does not allow are percent-encoded, and so are a dot at the
    beginning (hidden) and a dot or blank at the end (dropped by Windows). Of what is too long
    then, the beginning is kept and a hash of the text takes the place of the rest.
    """
    name = quote(text, safe=_SAFE)
    if name.endswith((".", " ")):
        name = f"{name[:-1]}%{ord(name[-1]):02X}"
    if name.startswith("."):
        name = "%2E" + name[1:]
    # what looks as if it had a hash gets one too, so that it meets no other
    if hashed or len(name) > _LONGEST or _HASHED.search(name):
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        name = f"{re.sub('%.?$', '', name[: _LONGEST - 17])}~{digest}"
    return name


def file_names(texts: Iterable[str]) -> dict[str, str]:
    """Names of several files in one folder, by text, that differ where case does not count too."""
    names = {text: file_name(text) for text in texts}
    meeting = Counter(name.casefold() for name in names.values())
    return {
        text: file_name(text, hashed=True) if meeting[name.casefold()] > 1 else name
        for text, name in names.items()
    }


def result_path(
    out: PathLike,
    patient: str,
    record: str,
    names: Mapping[str, str] | None = None,
    suffix: str = ".zarr",
) -> str:
    """Where the result of one image of a dataset lies: ``<out>/<patient>/<record>.zarr``.

    The same for heatmaps, predictions and features. A folder per patient, so that no two
    images share a store whatever they are called; `names` are the `file_names` of all patients.
    """
    folder = names[patient] if names else file_name(patient)
    return f"{os.fspath(out).rstrip('/')}/{folder}/{file_name(record)}{suffix}"


#: what a file system says of itself, whatever lies in it
_OF_THE_PLACE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EMFILE, errno.ENFILE,
)  # fmt: skip


@contextlib.contextmanager
def damage_named(where: object) -> Iterator[None]:
    """What a store that cannot be true raises while it is read, as a `StoreError` that names it.

    Zarr, codecs and whoever goes through attributes let through whatever their parsers raise.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DaskdmedError) and str(where) in str(error):
            raise
        if isinstance(error, OSError) and error.errno in _OF_THE_PLACE:
            raise
        raise StoreError(
            f"{where}: the store is damaged ({type(error).__name__}: {error}); make it again"
        ) from error


@dataclass(frozen=True)
class Location:
    """A place for a store: absolute path, URL, or store object. Make it with `Location.of`."""

    target: str | Store

    @classmethod
    def of(cls, out: PathLike | Store) -> Location:
        """From what users give: a path, a URL, or a Zarr store."""
        if not isinstance(out, Store):
            return cls(local_path(out) or os.fspath(out))
        if isinstance(out, LocalStore) and not out.read_only:
            return cls(str(out.root.absolute()))
        return cls(out)

    def writable(self, client: object = None) -> Location:
        """Itself; an error where a run, or the workers of a client, cannot write block by block."""
        if client is not None and self.in_memory:
            raise UsageError(
                "workers of a cluster cannot write into this process's memory; "
                "give a path or URL that all of them see (out=, path=)"
            )
        target, reason = self.target, ""
        if isinstance(target, Store):
            if target.read_only:
                reason = "this store is read-only"
            elif not (target.supports_writes and target.supports_deletes):
                reason = f"a {type(target).__name__} cannot replace what it holds"
        else:
            protocols = target.partition("://")[0].split("::") if is_remote(target) else ()
            fixed = _FIXED.intersection(protocols)
            if target.rstrip("/").lower().endswith((".zip", ".ozx")) and not os.path.isdir(target):
                reason = "a zip file cannot replace what it holds"
            elif fixed:
                reason = f"{fixed.pop()}:// is for reading"
        if reason:
            raise StoreError(
                f"{self}: {reason}, and results are written block by block; give a folder, the "
                "URL of an object store or a zarr MemoryStore, and pack it when it is complete "
                "(in the folder: zip -r0 ../result.zarr.zip .)"
            )
        return self

    def __str__(self) -> str:
        return str(self.target)

    @property
    def path(self) -> Path | None:
        """The folder, None when the store is not a local one."""
        if isinstance(self.target, Store) or is_remote(self.target):
            return None
        return Path(self.target)

    @property
    def in_memory(self) -> bool:
        """Whether other processes cannot see it."""
        return in_memory(self.target)

    @property
    def store(self) -> str | Store:
        """What Zarr opens: an array in it says in other processes that it is not there."""
        return at_home(self.target)

    @property
    def staging(self) -> Location:
        """Where a store is built that shall replace this one: a sibling with a hidden name; a store
        object has no siblings and is its own staging."""
        return self._sibling("new")

    def _sibling(self, word: str) -> Location:
        if not isinstance(self.target, str):
            return self
        parent, _, name = self.target.rstrip("/").rpartition("/")
        return Location(f"{parent}/.{name}.{word}")

    def open(self, mode: Any = "r+", zarr_format: Any = 3) -> zarr.Group:
        """The group that is there."""
        root = zip_root(self.target) if isinstance(self.target, str) else None
        try:
            target: Any = self.store if root is None else ZipStore(self.target, mode="r")
            return zarr.open_group(target, path=root, mode=mode, zarr_format=zarr_format)
        except (OSError, *MALFORMED, RuntimeError) as error:
            raise StoreError(
                f"{self}: cannot open it as a Zarr v{zarr_format or '2 or v3'} group "
                f"({type(error).__name__}: {error}); give another out="
            ) from error

    def holds_group(self) -> bool:
        """Whether a group is there; a replacement that a crash interrupted is ended first. A
        `StoreError` where something else is: a file, or a folder with other content."""
        self._recover()
        path = self.path
        if path is None:
            try:
                zarr.open_group(self.target, mode="r")
            except FileNotFoundError:
                return False
            return True
        if not path.exists():
            return False
        # a run that was killed at its first write leaves an empty folder or a *.partial file
        content = [] if path.is_file() else os.listdir(path)
        if path.is_dir() and all(name.endswith(".partial") for name in content):
            return False
        if not {"zarr.json", ".zgroup"}.intersection(content):
            kind = "a file" if path.is_file() else f"a folder with {len(content)} other entries"
            raise StoreError(
                f"{path} is {kind}, no Zarr group, and is left as it is; give another out="
            )
        return True

    def remove(self) -> None:
        """Delete what is there, if anything. Killed half-way, it leaves nothing that opens as a
        store with holes: a folder is renamed before it is deleted, elsewhere the metadata of the
        root go first."""
        path = self.path
        if path is not None:
            trash = self._beside("trash")
            _remove_folder(trash)
            if path.exists():
                os.rename(path, trash)
                shutil.rmtree(trash)
        elif isinstance(self.target, Store):
            zarr.core.sync.sync(self.target.clear())
        else:
            _remove_objects(*filesystem(self.target))

    def sweep(self, *, before: float = math.inf) -> None:
        """Delete objects of a folder that a killed run left half-written, last written before a
        time; default all, for a store that nobody else writes to."""
        for partial in self.path.rglob("*.partial") if self.path is not None else ():
            # a write that ended just now takes its file away
            with contextlib.suppress(FileNotFoundError):
                if partial.stat().st_mtime < before:
                    partial.unlink()

    def replace(self, newer: Location) -> None:
        """Put `newer`, a sibling, in the place of this store.

        Folders are exchanged in one step where the system can do that (Linux, macOS), else
        by two renames, and a crash between these is mended by the next `holds_group`.

        Object stores cannot rename. There a marker says that the newer store is complete,
        the old root metadata are deleted (from now on readers find nothing), then the other
        old objects, then the new ones are copied, the root metadata last (from now on
        readers find the new store), and the marker and the copy's source are deleted. A
        crash in between is mended by the next `holds_group`, which begins again from the
        marker.
        """
        if newer == self:
            return
        if self.path is not None and newer.path is not None:
            self._swap(self.path, newer.path)
            return
        fs, inner = filesystem(str(self.target))
        fs.pipe_file(self._marker, b"replace")
        self._move_objects(fs, inner, filesystem(str(newer.target))[1])

    def _beside(self, word: str) -> Path:
        return Path(str(self._sibling(word).target))

    @property
    def _marker(self) -> str:
        """The object that says that the newer store is complete."""
        path: str = filesystem(str(self._sibling("ready").target))[1]
        return path

    def _swap(self, path: Path, newer: Path) -> None:
        old = self._beside("old")
        _remove_folder(old)
        if not path.exists():
            os.rename(newer, path)
            return
        if exchange(newer, path):
            os.rename(newer, old)
        else:
            os.rename(path, old)
            os.rename(newer, path)
        shutil.rmtree(old)

    def _move_objects(self, fs: Any, inner: str, newer: str) -> None:
        """Idempotent as long as the marker is there."""
        _remove_objects(fs, inner)
        names = [name for name in fs.find(newer) if not name.endswith("/")]
        prefix = names[0][: names[0].index(newer.strip("/"))] + newer.strip("/") if names else ""
        roots = [f"{prefix}/{name}" for name in _METADATA if f"{prefix}/{name}" in names]
        for name in [n for n in names if n not in roots] + roots:
            fs.cp_file(name, f"{inner.rstrip('/')}{name[len(prefix) :]}")
        fs.rm_file(self._marker)
        _remove_objects(fs, newer)

    def _recover(self) -> None:
        """End a replacement that a crash interrupted."""
        path = self.path
        if path is not None:
            old = self._beside("old")
            if not path.exists() and old.exists():
                os.rename(old, path)
        elif isinstance(self.target, str):
            fs, inner = filesystem(self.target)
            if fs.exists(self._marker):
                self._move_objects(fs, inner, filesystem(str(self.staging.target))[1])


def _remove_folder(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _remove_objects(fs: Any, inner: str) -> None:
    """Delete all objects below a prefix, those that make it a Zarr node first."""
    if not fs.exists(inner):
        return
    for name in _METADATA:
        if fs.exists(f"{inner.rstrip('/')}/{name}"):
            fs.rm_file(f"{inner.rstrip('/')}/{name}")
    if fs.exists(inner):
        fs.rm(inner, recursive=True)
    fs.invalidate_cache()
