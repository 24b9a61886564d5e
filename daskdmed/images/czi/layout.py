"""What the blocks of a CZI make together: extents, pyramid, and dimensions beside x and y.

Not covered: pixels (`daskdmed.images.czi.backend`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError

#: edge of what counts as a tile where blocks do not lie on a grid, as those of most scanners
_TILE = 1024
_MOST_CHANNELS = 4096
#: name of the pixel type -> NumPy name, samples
_PIXELS = {
    "Gray8": ("uint8", 1), "Gray16": ("uint16", 1), "Gray32Float": ("float32", 1),
    "Bgr24": ("uint8", 3), "Bgr48": ("uint16", 3),
}  # fmt: skip


@dataclass(slots=True)
class Layout:
    """Of a scene, or of all together; places count from the file's own origin."""

    x: int
    y: int
    width: int
    height: int
    dtype: str
    samples: int
    #: whole numbers, 1 first
    factors: list[int]
    tile: tuple[int, int]
    #: letters of the dimensions beside x and y -> (first, number)
    dimensions: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Planes that are read together."""
        return self.dimensions.get("C", (0, 1))[1]

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each level: whole pixels of the pyramid only."""
        return [(self.height // f, self.width // f) for f in self.factors]


def lay_out(uri: str, document: Any, scene: int | None) -> Layout:
    """Of an open document of pylibCZIrw."""
    scenes = document.scenes_bounding_rectangle_no_pyramid
    box = document.total_bounding_rectangle_no_pyramid if scene is None else scenes[scene]
    if box.w <= 0 or box.h <= 0:
        raise CorruptImageError.of(uri, f"its extent is {box.w} x {box.h} pixels")
    blocks = _Blocks(scene)
    document.enumerate_subblocks(blocks.add)
    if not blocks.sizes:
        raise UnsupportedImageError.of(uri, "it holds no image blocks")
    kinds = set(blocks.kinds)
    if len(kinds) > 1 or not kinds <= set(_PIXELS):
        raise UnsupportedImageError.of(
            uri, f"channels of {', '.join(sorted(kinds))} in one image are not read; export it"
        )
    dtype, samples = _PIXELS[kinds.pop()]
    dimensions = {
        letter: (min(values), max(values) - min(values) + 1)
        for letter, values in blocks.dimensions.items()
        if letter not in "SM"
    }
    channels = dimensions.get("C", (0, 1))[1]
    if channels > _MOST_CHANNELS:
        raise CorruptImageError.of(uri, f"it claims {channels} channels, more than any image has")
    factors = [f for f in sorted(blocks.factors) if box.w // f > 0 and box.h // f > 0]
    tile = blocks.tile(box.x, box.y)
    return Layout(box.x, box.y, box.w, box.h, dtype, samples, [1, *factors], tile, dimensions)


class _Blocks:
    """Collects facts about blocks, called for each."""

    def __init__(self, scene: int | None) -> None:
        self._scene = scene
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.factors: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.dimensions: dict[str, set[int]] = {}
        self._corners: list[tuple[int, int]] = []

    def add(self, _: int, block: Any) -> bool:
        at = block.coordinate.to_dict()
        if self._scene is not None and at.get("S", 0) != self._scene:
            return True
        logical, stored = block.logicalRect, block.physicalSize
        if (logical.w, logical.h) == (stored.w, stored.h):
            self.sizes[stored.h, stored.w] += 1
            self._corners.append((logical.y, logical.x))
            self.kinds[block.pixelType.name] += 1
            for letter, value in at.items():
                self.dimensions.setdefault(letter, set()).add(value)
        elif min(stored.w, stored.h) > 0:
            factor = round(logical.w / stored.w)
            fits = (
                abs(a - factor * b) < factor
                for a, b in ((logical.w, stored.w), (logical.h, stored.h))
            )
            if factor > 1 and all(fits):
                self.factors[factor] += 1
        return True

    def tile(self, x: int, y: int) -> tuple[int, int]:
        """(height, width) of the grid on which all blocks lie, or of a made up one."""
        height, width = max(self.sizes, key=lambda s: (self.sizes[s], s))
        if all((top - y) % height == 0 and (left - x) % width == 0 for top, left in self._corners):
            return height, width
        return _TILE, _TILE
