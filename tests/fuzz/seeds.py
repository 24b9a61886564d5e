"""Sound files of every kind: what is damaged. All of them are small; some are real, most are made.

An input is named by two numbers: the seed of a campaign and its own. `Corpus` keeps the files in an
order that depends on nothing but what is there, and its `digest` tells whether two machines mean
the same inputs by the same numbers.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

#: modules with a function ``make(folder) -> Iterator[Seed]``
MAKERS = ("tiffs", "pictures", "zarrs", "volumes", "documents")


@dataclass(frozen=True)
class Seed:
    """A file or a folder, and how it is opened.

    `files` are contents by path, `main` is the path that is opened: one of the files, or the folder
    that holds them. `opener` names a function of `judge`, `options` are its arguments. `share` says
    how often it is drawn, where most have 1. `missing` files were there before it was damaged.
    """

    name: str
    opener: str
    main: str
    files: Mapping[str, bytes]
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    missing: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """What reports count by."""
        return self.name.partition("/")[0]

    @classmethod
    def of(cls, name: str, opener: str, path: Path, share: float = 1.0, **options: Any) -> Seed:
        """Of what lies in a folder."""
        if path.is_file():
            files = {path.name: path.read_bytes()}
        else:
            found = sorted(p for p in path.rglob("*") if p.is_file())
            files = {p.relative_to(path.parent).as_posix(): p.read_bytes() for p in found}
        return cls(name, opener, path.name, files, options, share)

    def write(self, folder: Path) -> Path:
        """Write it; returns the path that is opened."""
        for name, content in self.files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return folder / self.main


@dataclass(frozen=True)
class Corpus:
    """All seeds, in order."""

    seeds: Sequence[Seed]

    @classmethod
    def make(cls) -> Corpus:
        """Every seed of every maker."""
        with tempfile.TemporaryDirectory(prefix="daskdmed-fuzz-seeds-") as folder:
            found = [seed for name in MAKERS for seed in _made(name, Path(folder))]
        names = [seed.name for seed in found]
        assert len(set(names)) == len(names), "two seeds of one name"
        return cls(found)

    @cached_property
    def digest(self) -> str:
        """Changes with any byte of any seed, and with their order."""
        found = hashlib.blake2b(digest_size=6)
        for seed in self.seeds:
            for name, content in seed.files.items():
                found.update(f"{seed.name}:{name}:{len(content)};".encode() + content)
        return found.hexdigest()

    def only(self, wanted: str) -> Corpus:
        """Those whose name holds a text."""
        return Corpus([seed for seed in self.seeds if wanted in seed.name])


def _made(name: str, folder: Path) -> Iterator[Seed]:
    maker: Callable[[Path], Iterator[Seed]] = importlib.import_module(f"tests.fuzz.{name}").make
    place = folder / name
    place.mkdir()
    yield from maker(place)
