"""`Resolution`: the ways to say how finely an image is looked at, of which one is taken.

Not covered: what an image makes of it (`daskdmed.images.view`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.errors import ResolutionError
from daskdmed.core.space import spacing_of

#: UDUNITS names as OME-Zarr has them, and the usual symbols
_MICROMETERS = {
    **dict.fromkeys(("picometer", "pm"), 1e-6),
    **dict.fromkeys(("angstrom", "å"), 1e-4),
    **dict.fromkeys(("nanometer", "nm"), 1e-3),
    **dict.fromkeys(("micrometer", "micron", "microns", "um", "µm", "μm"), 1.0),
    **dict.fromkeys(("millimeter", "mm"), 1e3),
    **dict.fromkeys(("centimeter", "cm"), 1e4),
    **dict.fromkeys(("decimeter", "dm"), 1e5),
    **dict.fromkeys(("meter", "m"), 1e6),
    **dict.fromkeys(("inch", "in"), 25400.0),
    **dict.fromkeys(("foot", "ft"), 304800.0),
}


def micrometers_per(unit: str | None) -> float | None:
    """Micrometers per unit of length; None when it is not given, or is none."""
    return _MICROMETERS.get((unit or "").lower())


@dataclass(frozen=True, slots=True)
class Resolution:
    """One of the mutually exclusive ways to say the resolution: `mpp` as (x, y) micrometers,
    `spacing` as millimeters along (z, y, x), None for an axis that stays as it is."""

    level: int | None = None
    mpp: tuple[float, float] | None = None
    power: float | None = None
    spacing: tuple[float | None, float | None, float | None] | None = None

    @classmethod
    def of(
        cls,
        level: int | None = None,
        mpp: float | tuple[float, float] | None = None,
        power: float | None = None,
        spacing: Any = None,
    ) -> Resolution:
        """Check and normalise the keywords. ``level=0`` counts as "not given" beside the
        others, because it is the default of every public function."""
        said = (("mpp", mpp), ("power", power), ("spacing", spacing))
        given = [n for n, v in said if v is not None]
        if level:
            given.append("level")
        if len(given) > 1:
            raise ResolutionError(
                f"level, mpp, power and spacing exclude each other, got {' and '.join(given)}; "
                "give one"
            )
        if mpp is not None:
            try:
                pair = (mpp, mpp) if isinstance(mpp, (int, float)) else tuple(mpp)
                x, y = (float(v) for v in pair)
            except (TypeError, ValueError, OverflowError):
                x = y = 0.0
            if not (0 < x < np.inf and 0 < y < np.inf):
                raise ResolutionError(f"mpp must be one or two positive numbers, got {mpp!r}")
            return cls(mpp=(x, y))
        if power is not None:
            if not (np.isfinite(power) and power > 0):
                raise ResolutionError(f"power must be a positive number, got {power!r}")
            return cls(power=float(power))
        if spacing is not None:
            return cls(spacing=spacing_of(spacing))
        if level is None:
            level = 0
        if int(level) != level or level < 0:
            raise ResolutionError(f"level must be an integer >= 0, got {level!r}")
        return cls(level=int(level))

    def __str__(self) -> str:
        if self.mpp is not None:
            return f"mpp={self.mpp[0]:g}" if self.mpp[0] == self.mpp[1] else f"mpp={self.mpp}"
        if self.power is not None:
            return f"power={self.power:g}"
        if self.spacing is not None:
            return f"spacing={self.spacing}"
        return f"level={self.level}"
