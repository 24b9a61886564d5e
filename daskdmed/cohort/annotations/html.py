"""How annotations look in a notebook: a small picture and a table of labels.

Not covered: figures (`daskdmed.plot`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.html import Html, below, beside, join, page, swatch, table, title
from daskdmed.core.types import Array
from daskdmed.images.shown import Plane

if TYPE_CHECKING:
    from daskdmed.cohort.annotations.table import Annotations

#: longer side of the picture in pixels
_SIDE = 256
#: rows of the table; the rarer labels are counted together
_ROWS = 12
#: colours of labels without one, told apart also by the colour-blind (Okabe and Ito, 2008)
_PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def label_colours(annotations: Annotations) -> dict[str | None, tuple[int, int, int]]:
    """A colour for each label: the first that a shape of it has, else one of a palette."""
    colours: dict[str | None, tuple[int, int, int]] = {}
    for item in annotations:
        if item.colour is not None:
            colours.setdefault(item.label, item.colour)
    for number, label in enumerate(annotations.counts):
        colours.setdefault(label, _PALETTE[number % len(_PALETTE)])
    return colours


def annotations_html(annotations: Annotations) -> str:
    """A picture and a table of labels, short whatever the number of shapes."""
    colours = label_colours(annotations)
    areas = annotations.areas
    sums: dict[str | None, float] = {}
    for item, area in zip(annotations, areas.tolist(), strict=True):
        sums[item.label] = sums.get(item.label, 0.0) + area
    ordered = sorted(annotations.counts.items(), key=lambda pair: -pair[1])
    rows: list[tuple[Any, ...]] = []
    for label, number in ordered[:_ROWS]:
        square = swatch(f"rgb({','.join(map(str, colours[label]))})")
        name = Html("<i>none</i>") if label is None else label
        rows.append((join([square, " ", name]), number, f"{sums[label]:.6g}"))
    rest = ordered[_ROWS:]
    if rest:
        rows.append((f"{len(rest)} more labels", sum(n for _, n in rest), ""))
    notes = f"{len(annotations.notes)} notes of what was repaired" if annotations.notes else ""
    head = ("label", "shapes", Html("area (level-0 px&sup2;)"))
    name = f"{len(annotations):,} annotations"
    told = below(title(name, annotations.source, notes), table(head, rows))
    return page(beside(_image(annotations, colours), told))


def _image(annotations: Annotations, colours: dict[str | None, tuple[int, int, int]]) -> Html:
    bounds = annotations.bounds
    if bounds is None:
        return Html("")
    drawn = picture(annotations, colours, bounds)
    return Plane(drawn, drawn.shape[:2]).html(_SIDE, "annotations")


def picture(
    annotations: Annotations,
    colours: dict[str | None, tuple[int, int, int]],
    bounds: tuple[float, float, float, float],
) -> Array:
    """The shapes in their labels' colours on white, (h, w, 3) uint8."""
    x0, y0, x1, y1 = bounds
    scale = max(x1 - x0, y1 - y0, 1.0) / _SIDE
    origin = int(np.floor(y0 / scale)), int(np.floor(x0 / scale))
    ends = int(np.ceil(y1 / scale)), int(np.ceil(x1 / scale))
    shape = max(1, ends[0] - origin[0]), max(1, ends[1] - origin[1])
    labels = list(annotations.counts)
    numbers = {label: k for k, label in enumerate(labels, start=1)}
    values = annotations.rasterize(
        origin, shape, scale, classes=numbers, all_touched=True, dtype="u4"
    )
    table = np.array([(255, 255, 255), *(colours[label] for label in labels)], np.uint8)
    return np.ascontiguousarray(table[values])
