"""The page ``/daskdmed`` on Dask's dashboard, drawn by bokeh.

A second application of bokeh beside Dask's own, on the same server, with the same theme and bar.
Each open tab has a document that is updated twice a second from the scheduler's `LiveState`, on
the scheduler's event loop: columns that have not changed are not sent.

Not covered: numbers, ranks, runs and the log as HTML (`daskdmed.monitor.pieces`).
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from bokeh.core.properties import value, without_property_validation
from bokeh.core.property.descriptors import UnsetValueError
from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    CustomJSTickFormatter,
    Div,
    HoverTool,
    RadioButtonGroup,
    Range1d,
)
from bokeh.plotting import figure
from distributed.dashboard.components import add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from distributed.utils import log_errors

from daskdmed.core.live import READY, WAITED
from daskdmed.monitor import pieces
from daskdmed.monitor.picture import grid, legend, place_of
from daskdmed.monitor.pieces import GREEN, INK, ORANGE, PAPER, SOFT, Palette
from daskdmed.monitor.state import HISTORY, Cell, LiveState, ResidentSet

#: milliseconds between updates of a tab
_UPDATE = 500
#: pixels that the picture is high, and those for the title of a set
_HEIGHT, _TITLE = 340, 24
_EMPTY = (
    "No loader and no run is heard of. Loaders with <code>client=</code> of this cluster, or "
    '<code>LightDL(dashboard=":8787")</code>, appear here when they are started; heatmaps and '
    "predictions with <code>client=</code>, too."
)
#: from new to old
_AGES = ("#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154")

Columns: TypeAlias = dict[str, Any]


class Cells:
    """The resident sets, one below the other: a cell per big chunk."""

    def __init__(self, state: LiveState, **kwargs: Any) -> None:
        self._state = state
        self._palette = Palette()
        self._members: tuple[Any, ...] = ()
        #: what cells are coloured by: 0 slide, 1 age
        self.by = 0
        names = ("x0", "x1", "y0", "y1", "level", "strong", "light", "line", "width", "dash")
        self.source = ColumnDataSource({name: [] for name in (*names, "slide", "place", "told")})
        self.titles = ColumnDataSource({"x": [], "y": [], "text": []})
        self.root = figure(
            tools="",
            toolbar_location=None,
            x_range=Range1d(0, 900),
            y_range=Range1d(_HEIGHT, 0),
            height=_HEIGHT,
            **kwargs,
        )
        self.root.axis.visible = False
        self.root.grid.visible = False
        self.root.outline_line_color = None
        self.root.min_border = 0
        box = {"left": "x0", "right": "x1", "top": "y0", "source": self.source}
        outer = self.root.quad(
            **box, bottom="y1", fill_color="light", line_color="line", line_width="width",
            line_dash="dash",
        )  # fmt: skip
        self.root.quad(
            left="x0", right="x1", top="level", bottom="y1", fill_color="strong",
            line_color=None, source=self.source,
        )  # fmt: skip
        self.root.text(
            "x", "y", "text", source=self.titles, text_font_size="13px", text_color=INK,
            text_baseline="top", text_font=value("Helvetica, Arial, sans-serif"),
        )  # fmt: skip
        tips = (
            '<div style="font:12px Helvetica,Arial,sans-serif"><b>@slide</b><br>at @place<br>'
            "@told</div>"
        )
        self.root.add_tools(HoverTool(renderers=[outer], tooltips=tips))

    @without_property_validation  # type: ignore[untyped-decorator]
    @log_errors  # type: ignore[untyped-decorator]
    def update(self) -> None:
        """Draw what is there now; what changes little is sent when it does."""
        sets, now = list(self._state.sets.values()), time.monotonic()
        width, height = self._size()
        members = (width, self.by, *(tuple(one.cells) for one in sets))
        cells = [cell for one in sets for cell in one.cells.values()]
        if members != self._members:
            self._members = members
            self._place(sets, width, height)
            self.source.data = {**self._boxes, **self._changing(cells, now)}
            self.root.x_range.end, self.root.y_range.start = width, height
        else:
            known = self.source.data
            new = self._changing(cells, now).items()
            known.update({k: v for k, v in new if not np.array_equal(v, known[k])})

    def _size(self) -> tuple[float, float]:
        """Pixels that the browser gives the picture; it says so when it has drawn it."""
        with contextlib.suppress(UnsetValueError):
            width, height = self.root.inner_width, self.root.inner_height
            if width and height:
                return float(width), float(height)
        return 900.0, float(_HEIGHT)

    def _place(self, sets: list[ResidentSet], width: float, height: float) -> None:
        """Where everything stands."""
        boxes, titles, top = [], [], 0.0
        slots = [1 + max((cell.slot for cell in one.cells.values()), default=0) for one in sets]
        room = height - _TITLE * len(sets)
        for one, count in zip(sets, slots, strict=True):
            side, columns = grid(count, width, room * count / sum(slots))
            titles.append((top, pieces.title(one)))
            top += _TITLE
            for cell in one.cells.values():
                x, y = cell.slot % columns * side, top + cell.slot // columns * side
                boxes.append((x + 1, x + side - 1, y + 1, y + side - 1))
            top += side * -(-count // columns)
        cells = [cell for one in sets for cell in one.cells.values()]
        sides = np.array(boxes, np.float64).reshape(-1, 4)
        self._boxes: Columns = {
            **dict(zip(("x0", "x1", "y0", "y1"), sides.T, strict=True)),
            "slide": [f"{cell.patient} / {cell.record}" for cell in cells],
            "place": [place_of(cell) for cell in cells],
        }
        self.titles.data = {
            "x": [1] * len(titles),
            "y": [y + 4 for y, _ in titles],
            "text": [text for _, text in titles],
        }

    def _changing(self, cells: list[Cell], now: float) -> Columns:
        """Columns that change from moment to moment."""
        there = np.array([cell.state == READY for cell in cells], bool)
        share = np.array([cell.share for cell in cells], np.float64) * there
        bottom, top = self._boxes["y1"], self._boxes["y0"]
        colours = self._colours(cells, now)
        return {
            "level": bottom - (bottom - top) * share,
            "strong": [strong for strong, _ in colours],
            "light": [
                light if cell.state == READY else PAPER
                for cell, (_, light) in zip(cells, colours, strict=True)
            ],
            "line": [
                ORANGE if cell.state == WAITED else strong
                for cell, (strong, _) in zip(cells, colours, strict=True)
            ],
            "width": [3.0 if cell.state == WAITED else 1.0 for cell in cells],
            "dash": ["solid" if cell.state in (READY, WAITED) else "3 2" for cell in cells],
            "told": [_told(cell, now) for cell in cells],
        }

    def _colours(self, cells: list[Cell], now: float) -> list[tuple[str, str]]:
        if self.by == 0:
            return [self._palette(cell.patient, cell.record) for cell in cells]
        oldest = max((now - cell.seen for cell in cells), default=0.0) or 1.0
        steps = [int((now - cell.seen) / oldest * (len(_AGES) - 1)) for cell in cells]
        return [(_AGES[step], "#eef0f2") for step in steps]


def _told(cell: Cell, now: float) -> str:
    left = "all" if cell.left < 0 else f"{cell.left:,} of {cell.whole:,}"
    state = {READY: "in memory", WAITED: "waited for"}.get(cell.state, "being read")
    # ages in steps, so that they change seldom
    age = int(now - cell.seen) // 5 * 5
    return f"{left} draws left, {state}, asked for {age} s ago"


class Strip:
    """Admissions and evictions of the last minutes."""

    def __init__(self, state: LiveState, **kwargs: Any) -> None:
        self._state = state
        self.source = ColumnDataSource({"x": [], "width": [], "up": [], "down": []})
        self.root = figure(
            title="big chunks that came (up) and left (down), per second",
            tools="",
            toolbar_location=None,
            x_range=Range1d(-HISTORY, 0),
            height=150,
            **kwargs,
        )
        self.root.vbar("x", "width", "up", source=self.source, fill_color=GREEN, line_color=None)
        self.root.vbar("x", "width", "down", source=self.source, fill_color=ORANGE, line_color=None)
        self.root.grid.grid_line_color = "#eef0f2"
        self.root.xaxis.formatter = CustomJSTickFormatter(code="return tick ? -tick + ' s' : 'now'")
        self.root.yaxis.formatter = CustomJSTickFormatter(code="return Math.abs(tick)")
        self.root.title.text_font_size = "12px"
        self.root.outline_line_color = None

    @without_property_validation  # type: ignore[untyped-decorator]
    @log_errors  # type: ignore[untyped-decorator]
    def update(self) -> None:
        """Move it to the left."""
        bars = list(itertools.chain.from_iterable(self._bars()))
        values = np.array(bars, np.float64).reshape(-1, 4)
        self.source.data = dict(zip(("x", "width", "up", "down"), values.T, strict=True))

    def _bars(self) -> Iterable[list[tuple[float, float, float, float]]]:
        now = time.monotonic()
        for one in list(self._state.sets.values()):
            history = list(one.ranks[0].history)  # ranks admit the same
            yield [
                (
                    (a.time + b.time) / 2 - now,
                    b.time - a.time,
                    (b.admitted - a.admitted) / (b.time - a.time),
                    (a.evicted - b.evicted) / (b.time - a.time),
                )
                for a, b in itertools.pairwise(history)
                if b.time > a.time
            ]


class Words:
    """Everything that is HTML."""

    def __init__(self, state: LiveState, **kwargs: Any) -> None:
        self._state = state
        self.numbers = Div(**kwargs)
        self.rest = Div(**kwargs)

    @without_property_validation  # type: ignore[untyped-decorator]
    @log_errors  # type: ignore[untyped-decorator]
    def update(self) -> None:
        """Say it anew."""
        sets = list(self._state.sets.values())
        parts = []
        for one in sets:
            if len(sets) > 1:
                parts.append(
                    f'<div style="margin:6px 0 3px;color:{INK}">{one.ranks[0].key[1]}</div>'
                )
            parts.append(pieces.numbers(one))
        numbers = "".join(parts)
        if not sets and not self._state.runs:
            numbers = f'<div style="font-size:14px;color:{SOFT};padding:20px 4px">{_EMPTY}</div>'
        self.numbers.text = numbers
        tables = [pieces.ranks(one) for one in sets]
        log = pieces.log(self._state, time.monotonic())
        self.rest.text = "".join((*tables, pieces.runs(self._state), log))


class Page:
    """All of it, for one tab."""

    def __init__(self, state: LiveState) -> None:
        self.words = Words(state, sizing_mode="stretch_width")
        self.cells = Cells(state, sizing_mode="stretch_width")
        self.strip = Strip(state, sizing_mode="stretch_width")
        by = RadioButtonGroup(labels=["by slide", "by age"], active=0)
        by.on_change("active", lambda attr, old, new: setattr(self.cells, "by", new))
        under = Div(text=legend(), sizing_mode="stretch_width")
        self.root = column(
            self.words.numbers,
            row(under, by, sizing_mode="stretch_width"),
            self.cells.root,
            self.strip.root,
            self.words.rest,
            sizing_mode="stretch_width",
            margin=(8, 16, 8, 16),
        )

    def update(self) -> None:
        """Called twice a second."""
        for part in (self.words, self.cells, self.strip):
            part.update()


def _document(make: Callable[[], Any], title: str, *, bar: bool) -> Callable[..., None]:
    """What bokeh calls for each tab."""

    def fill(scheduler: Any, extra: dict[str, Any], doc: Any) -> None:
        part = make()
        part.update()
        doc.title = title
        add_periodic_callback(doc, part, _UPDATE)
        doc.add_root(part.root)
        if bar:
            doc.template = env.get_template("simple.html")
            doc.template_variables.update(extra)
        doc.theme = BOKEH_THEME

    return fill


def add(scheduler: Any, stock: Any, state: LiveState) -> None:
    """Add the page to a scheduler's dashboard, whose own application is `stock` (None: none)."""
    from tornado.ioloop import IOLoop

    if stock is None:
        return
    alone = "/individual-daskdmed-big-chunks"
    pages = {
        "/daskdmed": _document(lambda: Page(state), "Dask: daskdmed", bar=True),
        alone: _document(
            lambda: Cells(state, sizing_mode="stretch_both"), "Dask: daskdmed big chunks", bar=False
        ),
    }
    # kept per scheduler: its lists are those of all pages
    variables = template_variables(scheduler)
    if "daskdmed" not in variables["pages"]:
        variables["pages"].append("daskdmed")
        variables["plots"].append({"url": alone.strip("/"), "name": "Daskdmed Big Chunks"})
    app = BokehApplication(pages, scheduler, prefix=stock.prefix, template_variables=variables)
    scheduler.http_application.add_application(app)
    app.initialize(IOLoop.current())
    app.start()
    # dask-labextension is told of the plots of the first application only
    with contextlib.suppress(AttributeError):
        stock._applications[alone] = app._applications[alone]
