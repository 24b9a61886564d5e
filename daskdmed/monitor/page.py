"""The page ``/daskdmed`` on Dask's dashboard, drawn by bokeh.

A second application of bokeh beside Dask's own, on the same server, with the same theme and bar.
Each open tab has a document that is updated every 1.5 seconds from the scheduler's `LiveState`, on
the scheduler's event loop: columns that have not changed are not sent.

Not covered: numbers, ranks, runs and the log as HTML (`daskdmed.monitor.pieces`).
"""

from __future__ import annotations

import contextlib
import html
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

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
from daskdmed.monitor.pieces import GREEN, INK, LINE, ORANGE, PAPER, SOFT, Palette
from daskdmed.monitor.state import HISTORY, Cell, LiveState, ResidentSet

#: milliseconds between updates of a tab
UPDATE = 1500
#: pixels that the picture is high, and those for the title of a set
_HEIGHT, _TITLE = 340, 24
#: side of a cell, at most
_LARGEST = 72
_EMPTY = (
    "No loader and no run is heard of. Loaders with <code>client=</code> of this cluster, or "
    '<code>LightDL(dashboard=":8787")</code>, appear here when they are started; heatmaps and '
    "predictions with <code>client=</code>, too."
)
#: updates after which ages are coloured anew
_AGING = 10
#: levels that are sent as a column; what is said of a free place
_MANY, _FREE = 30, "for the next big chunk"
#: updates after which words that the mouse shows are brought up to date
_TELLING = 5
#: bars that the strip keeps
_BARS = 2000
#: from new to old
_AGES = ("#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154")


class Cells:
    """The resident sets, one below the other: a cell per big chunk.

    A row of the source is a place in a set's picture, so that a big chunk that takes the place of
    another is a patch of one row.
    """

    def __init__(self, state: LiveState, **kwargs: Any) -> None:
        self._state = state
        self._palette = Palette()
        #: what cells are coloured by: 0 slide, 1 age
        self.by = 0
        self._layout: tuple[Any, ...] = ()
        self._rows: list[Cell | None] = []
        #: by set, how often it had changed when it was drawn
        self._drawn: dict[int, int] = {}
        self._ticks = 0
        #: whether words are older than the picture
        self._untold = False
        self.source = ColumnDataSource({name: [] for name in (*_BOX, *_ROW)})
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
        outer = self.root.quad(
            left="x0", right="x1", top="y0", bottom="y1", fill_color="light", line_color="line",
            line_width="width", line_dash="dash", source=self.source,
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
        """Draw what is there now: places that have changed, all when they move."""
        sets, now = list(self._state.sets.values()), time.monotonic()
        self._ticks += 1
        width, height = self._size()
        layout = (width, height, self.by, *((id(one), len(one.slots)) for one in sets))
        rows = [cell for one in sets for cell in one.slots]
        if layout != self._layout or (self.by and self._ticks % _AGING == 0):
            self._layout, self._untold = layout, False
            self._draw(sets, rows, width, height, now)
        else:
            self._patch(sets, rows, now)
        self._rows = rows
        self._drawn = {id(one): one.changes for one in sets}
        titles = [pieces.title(one, now) for one in sets]
        if titles != self.titles.data["text"]:
            self.titles.data.update({"text": titles})

    def _size(self) -> tuple[float, float]:
        """Pixels that the browser gives the picture; it says so when it has drawn it."""
        with contextlib.suppress(UnsetValueError):
            width, height = self.root.inner_width, self.root.inner_height
            if width and height:
                return float(width), float(height)
        return 900.0, float(_HEIGHT)

    def _draw(
        self,
        sets: list[ResidentSet],
        rows: list[Cell | None],
        width: float,
        height: float,
        now: float,
    ) -> None:
        """Everything, where it stands."""
        boxes, tops, top = [], [], 0.0
        counts = [max(len(one.slots), 1) for one in sets]
        room = height - _TITLE * len(sets)
        for one, count in zip(sets, counts, strict=True):
            side, columns = grid(count, width, room * count / sum(counts), _LARGEST)
            tops.append(top + 4)
            top += _TITLE
            for slot in range(len(one.slots)):
                x, y = slot % columns * side, top + slot // columns * side
                boxes.append((x + 1, x + side - 1, y + 1, y + side - 1))
            top += side * -(-count // columns)
        self._boxes = boxes
        oldest = self._oldest(rows, now)
        drawn = [self._row(i, cell, now, oldest) for i, cell in enumerate(rows)]
        sides = np.array(boxes, np.float64).reshape(-1, 4).T
        columns_of = zip(*drawn, strict=True) if drawn else [()] * len(_ROW)
        self.source.data = {
            **dict(zip(_BOX, sides, strict=True)),
            **{name: list(column) for name, column in zip(_ROW, columns_of, strict=True)},
        }
        count = len(sets)
        self.titles.data = {"x": [1] * count, "y": tops, "text": [""] * count}
        self.root.x_range.end, self.root.y_range.start = width, height

    def _patch(self, sets: list[ResidentSet], rows: list[Cell | None], now: float) -> None:
        """Rows that have changed since the last time."""
        known = [self._drawn.get(id(one), -1) for one in sets for _ in one.slots]
        anew, drawn_from = [], []
        for i, (cell, before, at) in enumerate(zip(rows, self._rows, known, strict=True)):
            if cell is not before or (cell is not None and cell.became > at):
                anew.append(i)
            elif cell is not None and cell.changed > at:
                drawn_from.append(i)
        if anew:
            oldest = self._oldest(rows, now)
            values = [self._row(i, rows[i], now, oldest) for i in anew]
            columns = zip(_ROW, zip(*values, strict=True), strict=True)
            self.source.patch({name: list(zip(anew, of, strict=True)) for name, of in columns})
        self._lower(drawn_from, rows)
        self._untold = self._untold or bool(drawn_from)
        if self._untold and self._ticks % _TELLING == 0:
            self._untold = False
            told = [_FREE if cell is None else _told(cell, now) for cell in rows]
            self.source.data.update({"told": told})

    def _lower(self, drawn_from: list[int], rows: list[Cell | None]) -> None:
        """Levels of those that have fewer draws left; many go as one column, in bytes."""
        patches = [(i, self._level(i, cell)) for i in drawn_from if (cell := rows[i]) is not None]
        if len(patches) > _MANY:
            levels = np.array(self.source.data["level"], np.float64)
            where, what = zip(*patches, strict=True)
            levels[list(where)] = what
            self.source.data.update({"level": levels})
        elif patches:
            self.source.patch({"level": patches})

    def _level(self, number: int, cell: Cell) -> float:
        """How high a cell is filled, as a position."""
        _, _, top, bottom = self._boxes[number]
        return bottom - (bottom - top) * cell.share if cell.state == READY else bottom

    def _oldest(self, rows: list[Cell | None], now: float) -> float:
        return max((now - cell.seen for cell in rows if cell is not None), default=0.0) or 1.0

    def _row(self, number: int, cell: Cell | None, now: float, oldest: float) -> tuple[Any, ...]:
        """Values of one place, in the order of `_ROW`."""
        if cell is None:
            bottom = self._boxes[number][3]
            return (bottom, PAPER, PAPER, LINE, 0.5, "2 3", "free", "-", _FREE)
        strong, light = self._palette(cell.patient, cell.record)
        if self.by:
            step = int((now - cell.seen) / oldest * (len(_AGES) - 1))
            strong, light = _AGES[step], "#eef0f2"
        there, waited = cell.state == READY, cell.state == WAITED
        return (
            self._level(number, cell),
            strong,
            light if there else PAPER,
            ORANGE if waited else strong,
            3.0 if waited else 1.0,
            "solid" if there or waited else "3 2",
            f"{cell.patient} / {cell.record}",
            place_of(cell),
            _told(cell, now),
        )


#: columns that say where a place is, and those that say what is there
_BOX = ("x0", "x1", "y0", "y1")
_ROW = ("level", "strong", "light", "line", "width", "dash", "slide", "place", "told")


def _told(cell: Cell, now: float) -> str:
    left = "all" if cell.left < 0 else f"{cell.left:,} of {cell.whole:,}"
    state = {READY: "in memory", WAITED: "waited for"}.get(cell.state, "being read")
    asked = time.strftime("%H:%M:%S", time.localtime(time.time() - now + cell.seen))
    return f"{left} draws left, {state}, asked for at {asked}"


class Strip:
    """Admissions and evictions of the last minutes, by the clock of the scheduler's machine."""

    def __init__(self, state: LiveState, **kwargs: Any) -> None:
        self._state = state
        self._told: dict[int, float] = {}
        self._heights: deque[float] = deque(maxlen=500)
        self.source = ColumnDataSource({"x": [], "width": [], "up": [], "down": []})
        self.root = figure(
            title="big chunks that came (up) and left (down), per second",
            tools="",
            toolbar_location=None,
            x_axis_type="datetime",
            x_range=Range1d(-HISTORY, 0),
            y_range=Range1d(-1, 1),
            height=150,
            **kwargs,
        )
        self.root.vbar("x", "width", "up", source=self.source, fill_color=GREEN, line_color=None)
        self.root.vbar("x", "width", "down", source=self.source, fill_color=ORANGE, line_color=None)
        self.root.grid.grid_line_color = "#eef0f2"
        self.root.yaxis.formatter = CustomJSTickFormatter(code="return Math.abs(tick)")
        self.root.title.text_font_size = "12px"
        self.root.outline_line_color = None

    @without_property_validation  # type: ignore[untyped-decorator]
    @log_errors  # type: ignore[untyped-decorator]
    def update(self) -> None:
        """Add what is new at the right."""
        # bokeh shows times as they are in Greenwich
        now = time.time() + time.localtime().tm_gmtoff
        clock = now - time.monotonic()
        bars = [bar for one in list(self._state.sets.values()) for bar in self._bars(one, clock)]
        if bars:
            values = np.array(bars, np.float64).T
            new = dict(zip(("x", "width", "up", "down"), values, strict=True))
            self.source.stream(new, rollover=_BARS)
            self._heights.extend(np.abs(values[2:]).max(axis=0).tolist())
            # the first reads of a loader are many at a time: they stick out
            most = max(1.3 * float(np.quantile(self._heights, 0.97)), 1.0)
            self.root.y_range.start, self.root.y_range.end = -most, most
        self.root.x_range.start, self.root.x_range.end = (now - HISTORY) * 1e3, now * 1e3

    def _bars(self, one: ResidentSet, clock: float) -> list[tuple[float, float, float, float]]:
        """Time and width in milliseconds, and both rates, of what has not been told."""
        history = list(one.ranks[0].history)  # ranks admit the same
        told = self._told.get(id(one), -math.inf)
        self._told[id(one)] = history[-1].time
        since = sum(sample.time > told for sample in history)
        return [
            (
                ((a.time + b.time) / 2 + clock) * 1e3,
                (b.time - a.time) * 1e3,
                (b.admitted - a.admitted) / (b.time - a.time),
                (a.evicted - b.evicted) / (b.time - a.time),
            )
            for a, b in itertools.pairwise(history[-since - 1 :])
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
                name = html.escape(one.ranks[0].key[1])
                parts.append(f'<div style="margin:6px 0 3px;color:{INK}">{name}</div>')
            parts.append(pieces.numbers(one))
        numbers = "".join(parts)
        if not sets and not self._state.runs:
            numbers = f'<div style="font-size:14px;color:{SOFT};padding:20px 4px">{_EMPTY}</div>'
        self.numbers.text = numbers
        now = time.monotonic()
        tables = [pieces.ranks(one, now) for one in sets]
        log = pieces.log(self._state, now)
        self.rest.text = "".join((*tables, pieces.runs(self._state), log))


class Page:
    """All of it, for one tab."""

    def __init__(self, state: LiveState) -> None:
        self.words = Words(state, sizing_mode="stretch_width")
        self.cells = Cells(state, sizing_mode="stretch_width")
        self.strip = Strip(state, sizing_mode="stretch_width")
        by = RadioButtonGroup(labels=["by slide", "by age"], active=0)
        by.on_change("active", lambda attr, old, new: setattr(self.cells, "by", new))
        legends = Div(text=legend(), sizing_mode="stretch_width")
        #: what is there for loaders only
        self._of_loaders = [row(legends, by, sizing_mode="stretch_width")]
        self._of_loaders += [self.cells.root, self.strip.root]
        self._state = state
        self.root = column(
            self.words.numbers,
            *self._of_loaders,
            self.words.rest,
            sizing_mode="stretch_width",
            margin=(8, 16, 8, 16),
        )

    def update(self) -> None:
        """Called every `UPDATE` milliseconds."""
        for part in self._of_loaders:
            part.visible = bool(self._state.sets)
        for part in (self.words, self.cells, self.strip):
            part.update()


def _document(make: Callable[[], Any], title: str, *, bar: bool) -> Callable[..., None]:
    """What bokeh calls for each tab."""

    def fill(scheduler: Any, extra: dict[str, Any], doc: Any) -> None:
        part = make()
        part.update()
        doc.title = title
        add_periodic_callback(doc, part, UPDATE)
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
