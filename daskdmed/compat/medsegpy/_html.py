"""What MedSegPy's objects look like in a notebook.

Of scans the slice in the middle is read, where that costs next to nothing. Not covered: transforms
and registries of them, whose `repr` says it all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.html import (
    COLOURS,
    Html,
    below,
    beside,
    facts,
    in_a_word,
    join,
    page,
    soft,
    swatch,
    table,
    times,
    title,
)
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.composite import display
from daskdmed.images.shown import CHEAP, Plane, cost, flat, shrunk
from daskdmed.loading.pictured import mask_of, overlaid

if TYPE_CHECKING:
    from daskdmed.compat.medsegpy.config import Config
    from daskdmed.compat.medsegpy.data.base import DataLoader
    from daskdmed.compat.medsegpy.data.catalog import Metadata
    from daskdmed.compat.medsegpy.data.scans import Classes, Scan
    from daskdmed.compat.medsegpy.engine.trainer import DefaultTrainer
    from daskdmed.compat.medsegpy.evaluation.sem_seg_evaluation import SemSegEvaluator
    from daskdmed.compat.medsegpy.modeling.model import History, Model
    from daskdmed.core.view import ImageView

_log = logging.getLogger("daskdmed.compat")
#: scans, rows of metrics, parts of a network, and values that are shown
_SCANS, _ROWS, _PARTS, _VALUES = 4, 12, 24, 40
#: longer side of the picture of a scan, and bytes that it takes
_SIDE, _BYTES = 150, 12_000
#: (width, height) of a curve
_CURVE = 260, 90


# ------------------------------------------------------------------------- what was said
def config_html(cfg: Config, without_effect: Mapping[str, Any]) -> str:
    """The keys that are not as they were at first."""
    usual = type(cfg)().to_dict()
    changed = {k: v for k, v in cfg.to_dict().items() if v != usual[k]}
    rows = [
        (
            key,
            in_a_word(value, _VALUES),
            in_a_word(usual[key], _VALUES),
            "nothing here acts on it" if key in without_effect else "",
        )
        for key, value in changed.items()
    ]
    shown = table(("key", "value", "at first", ""), rows) if rows else ""
    left = f"{len(usual) - len(rows):,} keys as they were at first"
    return page(title(type(cfg).__name__), shown, soft(left))


def metadata_html(metadata: Metadata) -> str:
    """What is known of a dataset; classes in their colours, where these are said."""
    said = metadata.as_dict()
    name = said.pop("name", "")
    rows: list[tuple[Any, Any]] = [(k, in_a_word(v)) for k, v in said.items()]
    names: Any = said.get("categories")
    colours: Any = said.get("category_colors")
    if _alike(names, colours):
        drawn = [join([swatch(_css(c)), " ", n]) for n, c in zip(names, colours, strict=True)]
        rows = [(k, join(drawn, ", ") if k == "categories" else v) for k, v in rows]
        rows = [(k, v) for k, v in rows if k != "category_colors"]
    return page(title(f"Metadata of {name!r}"), facts(rows) if rows else soft("nothing is known"))


def _alike(names: Any, colours: Any) -> bool:
    lists = (list, tuple)
    return (
        isinstance(names, lists)
        and isinstance(colours, lists)
        and len(names) == len(colours)
        and all(len(c) == 3 and all(isinstance(n, (int, float)) for n in c) for c in colours)
    )


def _css(colour: Sequence[float]) -> str:
    """Of three numbers up to 1, or up to 255."""
    scale = 255 if max(colour) <= 1 and any(isinstance(n, float) for n in colour) else 1
    return f"rgb({','.join(str(round(n * scale)) for n in colour)})"


# ------------------------------------------------------------------------- scans
def loader_html(
    loader: DataLoader, scans: Sequence[Scan] = (), classes: Classes | None = None
) -> str:
    """How many batches there are of what, and the first scans with their classes."""
    shuffled = f"shuffled with SEED={loader.seed}, " * loader._shuffle
    said = f"{loader.num_scans():,} scans, {len(loader):,} batches of {loader._batch_size}"
    figures = [_figure(scan, classes) for scan in scans[:_SCANS]]
    left = len(scans) - len(figures)
    more = soft(f"and {left:,} more scans") if left > 0 else ""
    epoch = f"{shuffled}epoch {loader._epoch}"
    return page(title(type(loader).__name__, said, epoch), beside(*figures), more)


def _figure(scan: Scan, classes: Classes | None) -> Html:
    """A scan's middle slice, and what it is; words where its files are not as they should be."""
    try:
        said = [times(scan.view.spatial_shape), "" if scan.labelled else "no masks"]
        picture = _middle(scan, classes)
    except Exception as error:
        _log.debug("%r is not shown: %s", scan, error)
        said, picture = [in_a_word(str(error))], None
    shown = Html("")
    if picture is not None:
        plane = Plane(picture, (picture.shape[0], picture.shape[1]))
        shown = plane.html(_SIDE, scan.scan_id, most=_BYTES)
    caption = join([scan.scan_id, *(soft(line) for line in said if line)])
    return Html(
        f'<figure style="width:{_SIDE}px">{shown}<figcaption>{caption}</figcaption></figure>'
    )


def _middle(scan: Scan, classes: Classes | None) -> Array | None:
    """(rows, columns, 3) of the slice in the middle, with its classes over it."""
    values = _slice(scan.view, scan.sliced)
    if values is None:
        return None
    picture = display(shrunk(flat(values, 2), _SIDE))
    masks = None if scan.masks is None or classes is None else _slice(scan.masks, scan.sliced)
    if masks is None or classes is None:
        return picture
    found = classes.of(masks if masks.ndim == 3 else masks[..., None])
    mask = mask_of(found[..., int(classes.background) :], 2)
    return picture if mask is None else overlaid(picture, mask)


def _slice(view: ImageView, sliced: bool) -> Array | None:
    """(rows, columns[, c]) of the middle; None where reading that costs too much."""
    axis = 0 if sliced else 2
    shape = view.spatial_shape
    origin = tuple(n // 2 if a == axis else 0 for a, n in enumerate(shape))
    region = Region(origin, tuple(1 if a == axis else n for a, n in enumerate(shape)))
    return None if cost(view, region) > CHEAP else np.take(view.read(region), 0, axis)


# ------------------------------------------------------------------------- training
def history_html(history: History) -> str:
    """A curve for the loss and each metric, that of the validation beside it."""
    own = [name for name in history.history if not name.startswith("val_")]
    drawn = [_curves(name, history.history) for name in own or history.history]
    return page(title("History", f"{len(history.epoch):,} epochs"), beside(*drawn))


def _curves(name: str, values: Mapping[str, Sequence[float]]) -> Html:
    """One name and its ``val_``, in one frame."""
    both = {n: list(values[n]) for n in (name, f"val_{name}") if n in values}
    known = [v for each in both.values() for v in each if math.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    lines, said = [], []
    for (label, each), (colour, _) in zip(both.items(), (COLOURS[3], COLOURS[1]), strict=False):
        lines.append(_line(each, low, high, colour))
        last = f"{each[-1]:.4g}" if each else "none"
        said.append(join([swatch(colour), f" {label} {last}"]))
    width, height = _CURVE
    box = f"-3 -3 {width + 6} {height + 6}"
    svg = f'<svg width="{width + 6}" height="{height + 6}" viewBox="{box}">{join(lines)}</svg>'
    return below(Html(svg), join(said, "<br>"), soft(f"from {low:.4g} to {high:.4g}"))


def _line(values: Sequence[float], low: float, high: float, colour: str) -> Html:
    width, height = _CURVE
    step = width / max(len(values) - 1, 1)
    places = [
        (step * i, height * (1 - (v - low) / (high - low or 1.0)))
        for i, v in enumerate(values)
        if math.isfinite(v)
    ]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in places[-1:])
    line = f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    return Html(f'{line}<g fill="{colour}">{dots}</g>')


def model_html(model: Model) -> str:
    """The network by its parts, and how it is trained."""
    module = model.module
    count = sum(p.numel() for p in module.parameters())
    parts = [
        (name, type(part).__name__, sum(p.numel() for p in part.parameters()))
        for name, part in module.named_children()
    ]
    left = len(parts) - _PARTS
    more = soft(f"and {left:,} more parts") if left > 0 else ""
    optimizer = model.optimizer
    rate = "" if optimizer is None else f", learning rate {optimizer.param_groups[0]['lr']:.4g}"
    trained = [
        ("optimizer", None if optimizer is None else f"{type(optimizer).__name__}{rate}"),
        ("metrics", ", ".join(model._metrics) or None),
    ]
    shown = table(("part", "kind", "parameters"), parts[:_PARTS]) if parts else ""
    said = f"{count:,} parameters, on {model.device}"
    return page(title(f"Model: {type(module).__name__}", said), facts(trained), shown, more)


def trainer_html(trainer: DefaultTrainer) -> str:
    """What it trains, on what, and how that went."""
    loaders = {"trains on": trainer._train_loader, "validates on": trainer._val_loader}
    said = [(name, None if one is None else repr(one)) for name, one in loaders.items()]
    parts: list[Any] = [trainer._cfg, trainer._model, trainer.history]
    shown = [Html(one._repr_html_()) for one in parts if one is not None]
    return page(title(type(trainer).__name__), facts(said), *shown)


# ------------------------------------------------------------------------- evaluation
def evaluator_html(evaluator: SemSegEvaluator, means: Mapping[str, Mapping[Any, float]]) -> str:
    """The mean over scans of each metric of each class, and the metrics of the first scans."""
    rows, metrics = evaluator.rows, list(evaluator._metrics)
    scans = len({row["scan_id"] for row in rows})
    heading = title(type(evaluator).__name__, f"{scans:,} scans so far")
    if not rows:
        return page(heading, soft(f"measures {', '.join(metrics)}"))
    names = list(dict.fromkeys(row["class"] for row in rows))
    over = [("mean", str(name), *(f"{means[m][name]:.4g}" for m in metrics)) for name in names]
    first = [
        (row["scan_id"], str(row["class"]), *(f"{row[m]:.4g}" for m in metrics))
        for row in rows[:_ROWS]
    ]
    left = len(rows) - len(first)
    more = soft(f"and {left:,} more rows") if left else ""
    return page(heading, table(("scan", "class", *metrics), [*over, *first]), more)
