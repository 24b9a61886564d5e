"""Where a result store lies: a folder, a URL, or a Zarr store object.

Answers whether something is there already, and replaces a finished store by a newer one.
Not covered: what is in the store (`daskdmed.store.manifest`).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store

from daskdmed.errors import StoreError
from daskdmed.types import PathLike


@dataclass(frozen=True)
class Location:
    """A place for a store. Make it with `Location.of`.

    Parameters
    ----------
    target : str or zarr store
        Absolute path, URL, or store object.
    """

    target: str | Store

    @classmethod
    def of(cls, out: PathLike | Store) -> Location:
        """From what users give: a path, a URL, or a Zarr store."""
        if isinstance(out, Store):
            if isinstance(out, zarr.storage.LocalStore):
                return cls(str(out.root.absolute()))
            return cls(out)
        text = os.fspath(out)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        return cls(text if "://" in text else str(Path(text).absolute()))

    def __str__(self) -> str:
        return str(self.target)

    @property
    def path(self) -> Path | None:
        """The folder, None when the store is not a local one."""
        if isinstance(self.target, Store) or "://" in self.target:
            return None
        return Path(self.target)

    @property
    def in_memory(self) -> bool:
        """Whether other processes cannot see it."""
        if isinstance(self.target, str):
            return self.target.startswith("memory://")
        return isinstance(self.target, zarr.storage.MemoryStore)

    @property
    def staging(self) -> Location:
        """Where a store is built that shall replace this one."""
        return self._sibling("new")

    def _sibling(self, word: str) -> Location:
        assert isinstance(self.target, str)
        parent, _, name = self.target.rstrip("/").rpartition("/")
        return Location(f"{parent}/.{name}.{word}")

    def open(self, mode: Any = "r+") -> zarr.Group:
        """The group that is there.

        Raises
        ------
        StoreError
            What is there is no Zarr group, or cannot be read.
        """
        try:
            return zarr.open_group(self.target, mode=mode, zarr_format=3)
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"{self}: cannot open it as a Zarr v3 group ({type(error).__name__}: {error}); "
                "give another out="
            ) from error

    def holds_group(self) -> bool:
        """Whether a group is there.

        Raises
        ------
        StoreError
            Something else is there: a file, or a folder with other content.
        """
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
        """Delete what is there, if anything. For paths and URLs."""
        path = self.path
        if path is not None:
            if path.exists():
                shutil.rmtree(path)
            return
        fs, inner = _filesystem(str(self.target))
        if fs.exists(inner):
            fs.rm(inner, recursive=True)

    def replace(self, newer: Location) -> None:
        """Put `newer`, a sibling, in the place of this store.

        For folders two renames: a reader sees the old store or the new one, and a crash
        between the two is mended by the next `holds_group`. Object stores cannot rename;
        there the old objects are deleted and the new ones moved.
        """
        if self.path is None or newer.path is None:
            self.remove()
            fs, inner = _filesystem(str(self.target))
            fs.mv(_filesystem(str(newer.target))[1], inner, recursive=True)
            return
        old = self._sibling("old").path
        assert old is not None
        if old.exists():
            shutil.rmtree(old)
        os.rename(self.path, old)
        os.rename(newer.path, self.path)
        shutil.rmtree(old)

    def _recover(self) -> None:
        path = self.path
        if path is None or path.exists():
            return
        old = self._sibling("old").path
        if old is not None and old.exists():
            os.rename(old, path)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    fs, inner = fsspec.core.url_to_fs(url)
    return fs, inner
