"""The grid of one image by name: what loaders, tables and maps tell each other.

Not covered: where its windows lie (`daskdmed.tiling.grid`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daskdmed.tiling.grid import WindowGrid


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """The windows of one image: where they would all lie, had all been computed.

    The grid is at the resolution that was read: `level`, None when mpp or power was asked for,
    with `downsample` level-0 pixels per pixel, `mpp` (x, y) there, or for images without it the
    millimeters per pixel along each axis. `source` is empty for an array.
    """

    patient: str
    record: str
    grid: WindowGrid
    downsample: tuple[float, ...]
    level: int | None = None
    mpp: tuple[float, float] | None = None
    source: str = ""
    spacing: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = {
            "patient": self.patient,
            "record": self.record,
            "shape": list(self.grid.shape),
            "kernel_size": list(self.grid.kernel_size),
            "stride": list(self.grid.stride),
            "edge": self.grid.edge,
            "counts": list(self.grid.counts),
            "downsample": list(self.downsample),
            "level": self.level,
            "mpp": None if self.mpp is None else list(self.mpp),
            "source": self.source,
        }
        return found if self.spacing is None else {**found, "spacing": list(self.spacing)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ImageGrid:
        """Back from `to_json`."""
        grid = WindowGrid(
            tuple(int(v) for v in plain["shape"]),
            tuple(int(v) for v in plain["kernel_size"]),
            tuple(int(v) for v in plain["stride"]),
            plain["edge"],
        )
        mpp, spacing = plain["mpp"], plain.get("spacing")
        return cls(
            patient=str(plain["patient"]),
            record=str(plain["record"]),
            grid=grid,
            downsample=tuple(float(v) for v in plain["downsample"]),
            level=None if plain["level"] is None else int(plain["level"]),
            mpp=None if mpp is None else (float(mpp[0]), float(mpp[1])),
            source=str(plain.get("source", "")),
            spacing=None if spacing is None else tuple(float(v) for v in spacing),
        )
