"""Pictures that lie beside the image in a slide's file: label, macro, thumbnail.

Not covered: which a file has, and how they are decoded (readers of each format).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from daskdmed.core.types import Array
from daskdmed.images.filecache import FileKey, cache


class Associated(Mapping[str, Array]):
    """By name, (h, w, c) arrays; each is read when it is looked up."""

    def __init__(self, key: FileKey, names: tuple[str, ...]) -> None:
        self._key, self._names = key, names

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        with cache.lease(self._key) as reader:
            return reader.read_associated(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<associated images {list(self._names)}>"
