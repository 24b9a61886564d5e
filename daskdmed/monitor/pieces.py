"""Parts of a picture as HTML: numbers with sparklines, ranks side by side, runs, the log.

Pure: strings from a `LiveState`. The page on the dashboard and the picture in notebooks are made
of the same. Not covered: the resident set itself, which either draws in its own way.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Sequence

from dask.utils import format_bytes

from daskdmed.core.html import COLOURS
from daskdmed.monitor.state import LiveState, LoaderState, ResidentSet, RunState, Sample

INK, SOFT, LINE, PAPER = "#1f2933", "#616e7c", "#e4e7eb", "#ffffff"
BLUE, GREEN, ORANGE, RED = "#2f6f9f", "#4c8c4a", "#e07b00", "#c62828"
#: the same where the page around says which, as notebooks do that may be dark
_INK, _SOFT = f"var(--dkm-ink,{INK})", f"var(--dkm-soft,{SOFT})"
_LINE, _PAPER = f"var(--dkm-line,{LINE})", f"var(--dkm-paper,{PAPER})"
_FONT = "font-family:Helvetica,Arial,sans-serif"
#: a sparkline shows so many points
_POINTS = 48


class Palette:
    """A colour for each slide: the same as long as it is known."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def __call__(self, patient: str, record: str) -> tuple[str, str]:
        """Strong and light."""
        number = self._numbers.setdefault((patient, record), len(self._numbers))
        return COLOURS[number % len(COLOURS)]


def numbers(one: ResidentSet) -> str:
    """What a set's loaders do, as tiles."""
    ranks = one.ranks
    speed = sum(lo.rate("delivered") for lo in ranks)
    waits = max((min(1.0, lo.rate("waited")) for lo in ranks), default=0.0)
    # ranks hold the same: counted once
    held = max((lo.counters["resident_bytes"] for lo in ranks), default=0)
    budget = max((lo.counters["budget_bytes"] for lo in ranks), default=0)
    late = sum(lo.counters.get("late_draws", 0) for lo in ranks)
    failed = max((lo.counters["failed"] for lo in ranks), default=0)
    spark = ranks[0].history
    per_second = [_rates(lo.history, "delivered") for lo in ranks]
    together = [sum(values) for values in zip(*per_second, strict=False)]
    tiles = [
        _tile(f"{ranks[0].unit} per second", f"{speed:,.0f}", _spark(together, BLUE)),
        _tile(
            "waiting for data",
            f"{waits:.0%}",
            _spark([min(1.0, r) for r in _rates(spark, "waited")], ORANGE, most=1.0),
            alarm=waits > 0.2,
        ),
        _tile(
            "decoded",
            f"{one.pixels_per_second / 1e6:,.1f} <small>Mpix/s</small>",
            _spark(_rates(spark, "pixels"), GREEN),
        ),
        _tile("pixels drawn per pixel read", f"{one.reuse:.2f}", ""),
        _tile(
            f"of {format_bytes(budget)}",
            format_bytes(held),
            _bar(held / budget if budget else 0.0, BLUE),
        ),
        _tile("late draws", f"{late:,}", "", alarm=late > 0),
        _tile("left out", f"{failed:,}", "", alarm=failed > 0),
    ]
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px;{_FONT}">{"".join(tiles)}</div>'


def _rates(history: Iterable[Sample], name: str) -> list[float]:
    samples = list(history)[-_POINTS - 1 :]
    return [
        (getattr(b, name) - getattr(a, name)) / (b.time - a.time)
        for a, b in itertools.pairwise(samples)
        if b.time > a.time
    ]


def _tile(title: str, value: str, below: str, *, alarm: bool = False) -> str:
    colour = RED if alarm else _INK
    return (
        f'<div style="background:{_PAPER};border:1px solid {_LINE};border-radius:8px;'
        f'padding:7px 12px 6px;min-width:108px">'
        f'<div style="font-size:21px;font-weight:600;color:{colour}">{value}</div>'
        f'<div style="font-size:11.5px;color:{_SOFT};margin-bottom:2px">{title}</div>{below}</div>'
    )


def _spark(values: Sequence[float], colour: str, *, most: float = 0.0) -> str:
    """A sparkline of 108 x 22."""
    if len(values) < 2:
        return '<svg width="108" height="22"></svg>'
    most = max(most, *values) or 1.0
    step = 108 / (_POINTS - 1)
    first = 108 - step * (len(values) - 1)
    points = [(first + i * step, 21 - 20 * max(v, 0.0) / most) for i, v in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    area = f"{points[0][0]:.1f},22 {line} 108,22"
    return (
        f'<svg width="108" height="22" style="display:block"><polygon points="{area}" '
        f'fill="{colour}" fill-opacity="0.15"/><polyline points="{line}" fill="none" '
        f'stroke="{colour}" stroke-width="1.5"/></svg>'
    )


def _bar(share: float, colour: str, width: int = 108) -> str:
    filled = max(0.0, min(1.0, share)) * 100
    return (
        f'<div style="width:{width}px;height:8px;background:{_LINE};border-radius:4px;'
        f'margin:7px 0"><div style="width:{filled:.1f}%;height:8px;background:{colour};'
        f'border-radius:4px"></div></div>'
    )


def title(one: ResidentSet, time: float) -> str:
    """What a set is, in one line."""
    ranks = one.ranks
    first = ranks[0]
    slides = len({(cell.patient, cell.record) for cell in one.cells.values()})
    words = [f"{len(one.cells):,} big chunks of {slides:,} image{'s' if slides != 1 else ''}"]
    if len(ranks) > 1 or first.now.get("world_size", 1) > 1:
        words.append(f"{len(ranks)} of {first.now['world_size']} ranks")
    if first.now.get("epoch"):
        words.append(f"epoch {first.now['epoch']}")
    if first.now.get("paused"):
        words.append("paused")
    if len(ranks) == 1 and (silent := first.silent(time)):
        words.append(f"not heard of for {_time(silent)}")
    return f"{first.key[1]}: {', '.join(words)}"


def ranks(one: ResidentSet, time: float) -> str:
    """Ranks side by side: how fast each is, and who waits for whom."""
    members = one.ranks
    if len(members) < 2:
        return ""
    fastest = max(lo.rate("delivered") for lo in members) or 1.0
    rows = "".join(_rank_row(lo, fastest, time) for lo in members)
    heads = ("rank", f"{members[0].unit} per second", "", "waits", "batches", "turn", "")
    style = "text-align:left;font-weight:400;padding:0 14px 0 0"
    head = "".join(f'<th style="{style}">{name}</th>' for name in heads)
    return _table("Ranks", f'<tr style="color:{_SOFT}">{head}</tr>{rows}')


def _rank_row(loader: LoaderState, fastest: float, time: float) -> str:
    speed, waits = loader.rate("delivered"), min(1.0, loader.rate("waited"))
    known = loader.ranks
    state = f'<span style="color:{_SOFT}">on {html.escape(loader.process)}</span>'
    if known.get("waits_for"):
        named = ", ".join(map(str, known["waits_for"]))
        state = f'<b style="color:{ORANGE}">waits for rank {named}</b>'
    if silent := loader.silent(time):
        state = f'<b style="color:{RED}">not heard of for {_time(silent)}</b>'
    values = (
        f"<b>{loader.rank}</b>",
        f"{speed:,.0f}",
        _bar(speed / fastest, BLUE),
        f"{waits:.0%}",
        f"{loader.counters['batches']:,}",
        f"{known.get('turn', '-')}",
        state,
    )
    cells = "".join(f'<td style="padding:0 14px 0 0">{value}</td>' for value in values)
    return f"<tr>{cells}</tr>"


def runs(state: LiveState) -> str:
    """Heatmaps, predictions, conversions: how far each is."""
    rows = "".join(_run_row(run) for run in reversed(state.runs.copy().values()))
    return _table("Runs", rows) if rows else ""


def _run_row(run: RunState) -> str:
    share = run.done / run.total if run.total else 0.0
    colour = BLUE
    if run.ended == "done":
        told, colour = f"done in {_time(run.now['seconds'])}", GREEN
    elif run.ended:
        told, colour = f'<b style="color:{RED}">{html.escape(run.ended)}</b>', RED
    else:
        left = run.seconds_left
        told = f"{run.rate('delivered'):,.1f} per second"
        told += "" if left is None else f", {_time(left)} left"
    image = html.escape(str(run.now.get("image", "")).rsplit("/", 1)[-1])
    values = (
        f"<b>{html.escape(str(run.now['of']))}</b>",
        f'<span title="{html.escape(str(run.now.get("image", "")))}">{image}</span>',
        _bar(share, colour, 220),
        f"{run.done:,} of {run.total:,} blocks",
        _spark(_rates(run.history, "delivered"), colour),
        told,
    )
    cells = "".join(f'<td style="padding:2px 12px 2px 0">{value}</td>' for value in values)
    return f"<tr>{cells}</tr>"


def log(state: LiveState, time: float, most: int = 8) -> str:
    """What went wrong, the newest first."""
    lines = [
        (when, loader.key[1], text)
        for loader in state.loaders.copy().values()
        for when, text in loader.log.copy()
    ]
    lines.sort(reverse=True)
    rows = "".join(
        f'<tr><td style="padding:1px 12px 1px 0;color:{_SOFT};white-space:nowrap">'
        f"{_time(max(time - when, 0.0))} ago</td>"
        f'<td style="padding:1px 12px 1px 0">{html.escape(name)}</td>'
        f"<td>{html.escape(text)}</td></tr>"
        for when, name, text in lines[:most]
    )
    return _table("Late draws, failures, waits", rows) if rows else ""


def _time(seconds: float) -> str:
    """As exact as people want it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(name: str, rows: str) -> str:
    return (
        f'<div style="{_FONT};margin-top:10px"><div style="font-size:13px;font-weight:600;'
        f'color:{_INK};margin-bottom:3px">{name}</div>'
        f'<table style="font-size:12.5px;color:{_INK};border-collapse:collapse">{rows}'
        "</table></div>"
    )
