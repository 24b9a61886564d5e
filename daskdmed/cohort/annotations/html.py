"""How annotations look in a notebook: a small picture and a table of labels.

Not covered: figures (`daskdmed.plot`).
"""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

import numpy as np

from daskdmed.core.types import Array

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
    """An HTML table, short whatever the number of shapes."""
    colours = label_colours(annotations)
    areas = annotations.areas
    sums: dict[str | None, float] = {}
    for item, area in zip(annotations, areas.tolist(), strict=True):
        sums[item.label] = sums.get(item.label, 0.0) + area
    ordered = sorted(annotations.counts.items(), key=lambda pair: -pair[1])
    rows = []
    for label, number in ordered[:_ROWS]:
        red, green, blue = colours[label]
        swatch = f'<span style="color:rgb({red},{green},{blue})">&#9632;</span>'
        name = "<i>none</i>" if label is None else html.escape(label)
        rows.append(f"<tr><td>{swatch} {name}</td><td>{number}</td><td>{sums[label]:.6g}</td></tr>")
    rest = ordered[_ROWS:]
    if rest:
        rows.append(
            f"<tr><td>{len(rest)} more labels</td><td>{sum(n for _, n in rest)}</td><td></td></tr>"
        )
    head = "<tr><th>label</th><th>shapes</th><th>area (level-0 px&sup2;)</th></tr>"
    source = f"<br>{html.escape(annotations.source)}" if annotations.source else ""
    notes = f"<br>{len(annotations.notes)} notes of what was repaired" if annotations.notes else ""
    return (
        '<div style="display:flex;gap:1em;align-items:flex-start">'
        f"{_image(annotations, colours)}<div><b>{len(annotations)} annotations</b>{source}{notes}"
        f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _image(annotations: Annotations, colours: dict[str | None, tuple[int, int, int]]) -> str:
    bounds = annotations.bounds
    if bounds is None:
        return ""
    import imagecodecs

    png = imagecodecs.png_encode(picture(annotations, colours, bounds))
    code = base64.b64encode(png).decode("ascii")
    return f'<img alt="annotations" src="data:image/png;base64,{code}">'


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
