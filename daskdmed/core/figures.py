"""Figures that notebooks show.

Not covered: what is drawn (`daskdmed.plot`, ``LightDL.plot_coverage``).
"""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

from daskdmed.core.extras import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(what: str, **options: Any) -> Figure:
    """A figure that pyplot does not know of, so that nobody has to close it; `what` needs it.

    A notebook that has drawn nothing with pyplot yet would show its name only.
    """
    figure: Figure = extra("matplotlib.figure", "plot", f"{what} needs").Figure(**options)
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", bbox_inches="tight")
    return written.getvalue()
