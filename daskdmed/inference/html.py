"""What counts and scores look like in a notebook. Not covered: metrics per scan (`Evaluation`)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from daskdmed.core.html import COLOURS, Html, below, facts, page, soft, table, title
from daskdmed.core.types import Array

if TYPE_CHECKING:
    from daskdmed.inference.metrics import Confusion, ScoreHistogram

#: classes of a confusion that are shown, bars of a histogram
_CLASSES, _BARS = 12, 60


def confusion_html(counts: Confusion) -> str:
    """The matrix, the larger a number the darker, and metrics per class."""
    most = max(int(counts.matrix.max(initial=0)), 1)
    per_class = counts.dice, counts.precision, counts.sensitivity
    rows = [
        (
            f"class {number}",
            *(_shaded(n, n / most) for n in row[:_CLASSES]),
            *(f"{metric[number]:.4g}" for metric in per_class),
        )
        for number, row in enumerate(counts.matrix[:_CLASSES].tolist())
    ]
    head = ["true", *(f"predicted {n}" for n in range(len(rows)))]
    left = counts.classes - _CLASSES
    more = soft(f"and {left:,} more classes") if left > 0 else ""
    shown = table([*head, "dice", "precision", "sensitivity"], rows)
    return page(title("Confusion", f"{counts.total:,} pixels"), shown, more)


def _shaded(count: int, share: float) -> Html:
    style = f"background:rgba(74,127,181,{0.6 * share:.2f});padding:1px 5px;border-radius:2px"
    return Html(f'<span style="{style}">{count:,}</span>')


def histogram_html(scores: ScoreHistogram) -> str:
    """How the scores of positives and of negatives lie."""
    ends = f"from {scores.edges[0]:.4g} to {scores.edges[-1]:.4g}"
    kinds = ("positives", scores.positives, 4), ("negatives", scores.negatives, 3)
    rows = [
        (f"{int(values.sum()):,} {name}", below(_bars(values, COLOURS[colour][0]), soft(ends)))
        for name, values, colour in kinds
    ]
    said = f"area under the ROC curve {scores.auc:.4g}, exact to {scores.auc_error:.2g}"
    return page(title("Score histogram", said), facts(rows))


def _bars(values: Array, colour: str) -> Html:
    """Counts of many bins, taken together to a few bars."""
    edges = np.linspace(0, len(values), min(_BARS, len(values)) + 1).astype(int)
    taken = [int(values[a:b].sum()) for a, b in itertools.pairwise(edges)]
    most = max([*taken, 1])
    drawn = "".join(
        f'<rect x="{4 * i}" y="{36 - 36 * n / most:.1f}" width="3.4" height="{36 * n / most:.1f}"/>'
        for i, n in enumerate(taken)
    )
    return Html(f'<svg width="{4 * len(taken)}" height="36" fill="{colour}">{drawn}</svg>')
