"""The resident set as a picture for notebooks: once, or live.

SVG and HTML alone, so that it is there where the notebook is shown again. Not covered: the page on
the dashboard (`daskdmed.monitor.page`), of which this is a part.
"""

from __future__ import annotations

import html
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from daskdmed.core.errors import UsageError
from daskdmed.core.html import COLOURS
from daskdmed.core.live import READY, WAITED, Watched
from daskdmed.monitor import pieces
from daskdmed.monitor.local import Local
from daskdmed.monitor.pieces import ORANGE, Palette
from daskdmed.monitor.state import Cell, LiveState, ResidentSet

logger = logging.getLogger("daskdmed.monitor")

WIDTH = 760
#: cells are at most as large, and as small as this
_LARGEST, _SMALLEST = 44, 7
_HEIGHT = 230
#: colours of what `pieces` draws as the notebook's own, light or dark
_STYLE = (
    "font-family:Helvetica,Arial,sans-serif;padding:2px 0;--dkm-ink:currentColor;"
    "--dkm-soft:color-mix(in srgb,currentColor 68%,transparent);"
    "--dkm-line:rgba(128,128,128,.35);--dkm-paper:transparent"
)


def picture_of(loader: Watched) -> str:
    """The picture of one loader at this moment, as HTML."""
    state = Local().look([loader])
    return draw(state, time.monotonic())


def draw(state: LiveState, now: float, palette: Palette | None = None) -> str:
    """All sets of a state, one below the other."""
    palette = palette or Palette()
    parts = []
    for one in list(state.sets.values()):
        title = html.escape(pieces.title(one, now))
        parts.append(f'<div style="font-size:13px;margin:8px 0 5px">{title}</div>')
        parts += [pieces.numbers(one), cells(one, now, palette), pieces.ranks(one, now)]
    parts += [pieces.runs(state), pieces.log(state, now)]
    return f'<div style="{_STYLE};max-width:{WIDTH + 20}px">{"".join(parts)}</div>'


def grid(slots: int, width: float, height: float, largest: float = _LARGEST) -> tuple[float, int]:
    """Side of a cell and cells in a row: as large as so many can be in a box, within limits."""
    least = max(int(width // largest), 1)
    for columns in range(least, max(int(width // _SMALLEST), least) + 1):
        side = min(width / columns, largest)
        if -(-slots // columns) * side <= height:
            return side, columns
    return side, columns


def cells(one: ResidentSet, now: float, palette: Palette) -> str:
    """One cell per big chunk: its slide's colour as high as draws are left."""
    known = list(one.cells.values())
    slots = 1 + max((cell.slot for cell in known), default=0)
    side, columns = grid(slots, WIDTH, _HEIGHT)
    rows = -(-slots // columns)
    drawn = "".join(_cell(cell, side, columns, now, palette) for cell in known)
    height = f"{rows * side + 2:g}"
    style = "display:block;margin:8px 0 2px;max-width:100%;height:auto"  # in a narrow page smaller
    box = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" style="{style}"'
    return f"<svg {box}>{drawn}</svg>{legend()}"


def _cell(cell: Cell, side: float, columns: int, now: float, palette: Palette) -> str:
    strong, _ = palette(cell.patient, cell.record)
    x, y = cell.slot % columns * side + 1, cell.slot // columns * side + 1
    inner = side - 2
    stroke = f'stroke="{strong}"'
    if cell.state == WAITED:
        stroke = f'stroke="{ORANGE}" stroke-width="2.5"'
    elif cell.state != READY:
        stroke = f'stroke="{strong}" stroke-dasharray="2.5 2"'
    fill = f'fill="{strong}" fill-opacity=".25"' if cell.state == READY else 'fill="none"'
    level = inner * cell.share if cell.state == READY else 0.0
    return (
        f"<g><title>{html.escape(describe(cell, now))}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{inner:.1f}" height="{inner:.1f}" rx="2" '
        f"{fill} {stroke}/>"
        f'<rect x="{x:.1f}" y="{y + inner - level:.1f}" width="{inner:.1f}" '
        f'height="{level:.1f}" rx="2" fill="{strong}"/></g>'
    )


def describe(cell: Cell, now: float) -> str:
    """A big chunk in words."""
    states = {READY: "in memory", WAITED: "is being read, and waited for"}
    left = "all" if cell.left < 0 else f"{cell.left:,} of {cell.whole:,}"
    return (
        f"{cell.patient} / {cell.record}\nat {place_of(cell)}\n{left} draws left\n"
        f"{states.get(cell.state, 'is being read')}, asked for {now - cell.seen:.0f} s ago"
    )


def place_of(cell: Cell) -> str:
    """Origin and shape in words."""
    return f"({', '.join(map(str, cell.origin))}), {' x '.join(map(str, cell.shape))}"


def legend() -> str:
    """What the cells say."""
    full = COLOURS[3][0]

    def sample(border: str, fill: str, words: str) -> str:
        box = "display:inline-block;width:11px;height:11px;border-radius:2px;vertical-align:-1px"
        return (
            f'<span style="margin-right:14px"><span style="{box};border:{border};'
            f'background:{fill}"></span> {words}</span>'
        )

    level = f"linear-gradient(to top,{full} 45%,{full}40 45%)"
    samples = (
        sample(f"1px solid {full}", level, "in memory, filled as far as draws are left"),
        sample(f"1px dashed {full}", "none", "being read"),
        sample(f"2px solid {ORANGE}", "none", "waited for"),
        '<span style="opacity:.7">a colour is a slide</span>',
    )
    return (
        '<div style="font:11.5px Helvetica,Arial,sans-serif;padding-bottom:5px">'
        f"{''.join(samples)}</div>"
    )


# -- live in a notebook ---------------------------------------------------------------
_watching: weakref.WeakKeyDictionary[Any, threading.Event] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def watch(loader: Watched, interval: float) -> None:
    """Show a loader until it is closed, see `daskdmed.loading.loader.Loader.watch`."""
    if not (math.isfinite(interval) and interval > 0):
        raise UsageError(f"interval must be seconds > 0, got {interval!r}")
    shown = _display()
    over = threading.Event()
    with _lock:
        before, _watching[loader] = _watching.get(loader), over
    if before is not None:
        before.set()
    look, palette = Local(), Palette()

    def once() -> bool:
        state = look.look([loader])
        if not state.loaders:
            return False
        shown(draw(state, time.monotonic(), palette))
        return True

    def go_on() -> None:
        while not over.wait(interval):
            try:
                if not once():
                    return
            except Exception as error:  # a front end that is gone
                logger.debug("%s is no longer shown: %s", loader.name, error)
                return

    once()
    threading.Thread(target=go_on, name=f"daskdmed-watch-{loader.name}", daemon=True).start()


def _display() -> Callable[[str], None]:
    """What shows HTML at the place of the cell that runs, and later in place of that."""
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import HTML, display
    except ImportError:
        get_ipython = lambda: None  # noqa: E731
    shell = get_ipython()
    if getattr(shell, "kernel", None) is None:
        raise UsageError(
            "watch() shows a picture in a notebook, and this is none: print(loader.stats()), or "
            "open loader.dashboard_link in a browser"
        )
    html_of: Callable[[str], Any] = HTML
    handle: Any = display(html_of(""), display_id=True)  # type: ignore[no-untyped-call]

    def show(picture: str) -> None:
        handle.update(html_of(picture))

    return show
