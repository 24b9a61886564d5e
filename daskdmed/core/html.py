"""How everything looks in a notebook: one style, escaped text, tables and bars.

Colours are the page's own, so that all is readable on light and on dark ones: text inherits its
colour, lines are a translucent grey. Not covered: pictures (`daskdmed.images.html`).
"""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

logger = logging.getLogger("daskdmed")

#: strong and light colour of things that are told apart, in order of appearance
COLOURS = (
    ("#b5739d", "#f0dbe7"), ("#d79b00", "#fae8bf"), ("#5b8c5a", "#d8ead6"), ("#4a7fb5", "#d6e5f3"),
    ("#c05a4b", "#f6dad5"), ("#7b68b0", "#e3def2"), ("#2e9a9a", "#cfebea"), ("#8d6e4f", "#eae0d5"),
    ("#7a8f2f", "#e6ecc9"), ("#a04f7d", "#ecd3e1"), ("#5f7486", "#dde4ea"), ("#cf7f3a", "#f8e2cf"),
)  # fmt: skip
#: of what a number fills of a bar
BLUE = "#4a7fb5"
#: twice the class: JupyterLab's own rules for tables and pictures weigh as much as one
_STYLE = """<style>
.dkm{font:13px/1.45 var(--jp-content-font-family,system-ui,"Segoe UI",Helvetica,Arial,sans-serif);
color:inherit;text-align:left}
.dkm .dkm-row{display:flex;gap:8px 16px;align-items:flex-start;flex-wrap:wrap}
.dkm .dkm-title{font-weight:600;overflow-wrap:anywhere}
.dkm .dkm-soft{opacity:.7;font-weight:400;overflow-wrap:anywhere}
.dkm.dkm table{border-collapse:collapse;border:0;margin:5px 0;width:auto;font-size:12px;
color:inherit}
.dkm.dkm tbody tr:nth-child(n){background:none;border:0}
.dkm.dkm th,.dkm.dkm td{text-align:left;vertical-align:top;padding:2px 14px 2px 0;border:0;
color:inherit;background:none;overflow-wrap:anywhere}
.dkm.dkm th{font-weight:400;opacity:.7}
.dkm.dkm thead th{border-bottom:1px solid rgba(128,128,128,.4)}
.dkm.dkm td.dkm-n{text-align:right;font-variant-numeric:tabular-nums}
.dkm .dkm-bar{display:inline-block;background:rgba(128,128,128,.22);border-radius:3px;height:9px}
.dkm .dkm-bar span{display:block;border-radius:3px;height:9px}
.dkm.dkm figure{margin:0;padding:0;width:min-content}
.dkm.dkm figcaption{font-size:11px;line-height:1.3;overflow-wrap:anywhere;text-align:left;
color:inherit;margin:3px 0 0;padding:0}
.dkm .dkm-pic{position:relative;line-height:0;border-radius:3px;overflow:hidden;
box-shadow:0 0 0 1px rgba(128,128,128,.35)}
.dkm.dkm img{max-width:none;margin:0;display:block}
.dkm svg{display:block;margin:0}
.dkm svg *{vector-effect:non-scaling-stroke}
</style>"""


class Html(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def safe(value: Any) -> Html:
    """Any value as HTML: escaped, unless it is some."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Values one after the other."""
    return Html(between.join(map(safe, parts)))


def page(*parts: Any) -> str:
    """What a ``_repr_html_`` gives: values one below the other, in the style of all."""
    return f'<div class="dkm">{_STYLE}{join(parts)}</div>'


def title(name: Any, *said: Any) -> Html:
    """A name, and what is said of it in a line each."""
    lines = [f'<div class="dkm-title">{safe(name)}</div>', *(soft(line) for line in said if line)]
    return Html("".join(lines))


def soft(value: Any) -> Html:
    """A line of less weight."""
    return Html(f'<div class="dkm-soft">{safe(value)}</div>')


def below(*parts: Any) -> Html:
    """Values one below the other, as one."""
    return Html(f"<div>{join(parts)}</div>")


def beside(*parts: Any) -> Html:
    """Values side by side, as far as there is room; empty ones are left out."""
    return Html(f'<div class="dkm-row">{join(part for part in parts if part)}</div>')


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """A table; numbers are aligned to the right, other cells to the left."""
    names = "".join(f"<th>{safe(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return Html(f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>")


def _cell(value: Any) -> str:
    kind = ' class="dkm-n"' if type(value) in (int, float) else ""
    return f"<td{kind}>{safe(f'{value:,}' if kind else value)}</td>"


def facts(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Names and values; those that are None are left out."""
    rows = "".join(
        f"<tr><th>{safe(name)}</th><td>{safe(value)}</td></tr>"
        for name, value in pairs
        if value is not None
    )
    return Html(f"<table><tbody>{rows}</tbody></table>")


def bar(share: float, colour: str = BLUE, width: int = 120) -> Html:
    """A bar that is filled by a share of it."""
    filled = 100 * min(max(share, 0.0), 1.0)
    return Html(
        f'<span class="dkm-bar" style="width:{width}px">'
        f'<span style="width:{filled:.1f}%;background:{colour}"></span></span>'
    )


def swatch(colour: str) -> Html:
    """A square of a colour."""
    return Html(f'<span style="color:{safe(colour)}">&#9632;</span>')


def times(extent: Iterable[Any]) -> str:
    """Extents as people write them: 3 x 4."""
    return " x ".join(map(str, extent))


def in_a_word(value: Any, most: int = 120) -> str:
    """An array by what it is, anything else shortened."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {times(value.shape)}, {value.dtype}"
    told = value if isinstance(value, str) else repr(value)
    return told if len(told) <= most else told[:most] + "..."


def whole_or(whole: Callable[[], str], less: Callable[[], str]) -> str:
    """A page, or less of it where a picture fails: that hides no facts, for what objects hold is
    the user's, whatever it is."""
    try:
        return whole()
    except Exception as error:
        logger.debug("no picture: %s", error, exc_info=True)
        return less()


def file_name(uri: str | None) -> Html:
    """The last part of a place; all of it where the mouse rests."""
    whole = "" if uri is None else str(uri)
    last = os.path.basename(whole.rstrip("/")) or whole
    return Html(f'<span title="{html.escape(whole)}">{html.escape(last)}</span>')
