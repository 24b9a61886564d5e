"""What small chunks look like in a notebook: the chunks, and where each came from on its image.

At most `SHOWN` of them, in at most 300 kB. Not covered: what an image looks like
(`daskdmed.cohort.html`), what is in memory (`daskdmed.monitor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.cohort.html import Look, Onlooker, labels_text
from daskdmed.core.html import (
    COLOURS,
    Html,
    below,
    beside,
    facts,
    in_a_word,
    join,
    page,
    safe,
    soft,
    times,
    title,
    whole_or,
)
from daskdmed.core.types import Array
from daskdmed.images.shown import Plane, upright
from daskdmed.loading.pictured import mask_of, overlaid, pictures, target_picture

if TYPE_CHECKING:
    from daskdmed.cohort.patient import Patient
    from daskdmed.images.protocols import SlideInfo
    from daskdmed.loading.chunks import BigChunk, SmallChunk, SmallChunks

#: small chunks that are shown, and images that they came from
SHOWN, _IMAGES = 32, 8
#: longer side of a small chunk, of one alone, and of the image that it came from
_SIDE, _ALONE, _SLIDE = 84, 256, 128
#: colours of images: those first that tissue has not
_ORDER = (3, 1, 2, 6, 4, 7, 8, 5, 10, 11, 0, 9)
#: bytes that the picture of one takes at most
_BYTES, _SLIDE_BYTES = 4200, 6000


# ------------------------------------------------------------------------- where from
@dataclass
class Source:
    """An image of which some of the small chunks are, with their numbers, and its colour."""

    patient: Patient
    record: str
    colour: str
    look: Look | None
    numbers: list[int]

    @property
    def name(self) -> str:
        return f"{self.patient.id} / {self.record}"

    @property
    def channels(self) -> int | None:
        """Of one of its pixels: of records that are stacked those of all."""
        own = None if self.look is None else self.look.channels
        return None if own is None else own * (1 + self.record.count("+"))

    @property
    def info(self) -> SlideInfo | None:
        return None if self.look is None else self.look.info


def sources_of(chunks: Sequence[SmallChunk], eye: Onlooker) -> dict[tuple[str, str], Source]:
    """Images in order of appearance; the first of them are looked at."""
    found: dict[tuple[str, str], Source] = {}
    for number, chunk in enumerate(chunks):
        key = (chunk.patient.key, chunk.record)
        if key not in found:
            look = _look(chunk, eye) if len(found) < _IMAGES else None
            colour = COLOURS[_ORDER[len(found) % len(_ORDER)]][0]
            found[key] = Source(chunk.patient, chunk.record, colour, look, [])
        found[key].numbers.append(number)
    return found


def _look(chunk: SmallChunk, eye: Onlooker) -> Look | None:
    """At the image of a small chunk, in its orientation."""
    records = chunk.patient.records
    # of several records that are stacked the first, on which the others lie
    record = records.get(chunk.record) or records.get(chunk.record.partition("+")[0])
    space = chunk.bigchunk.space
    codes = None if space is None else space.axcodes[::-1]
    return None if record is None else eye.look(record, codes)


def _box(chunk: SmallChunk, shape: Sequence[int]) -> tuple[float, float, float, float]:
    """Where a small chunk lies, (x, y, width, height) in level-0 pixels."""
    down = chunk.bigchunk.downsample
    height, width = (n * d for n, d in zip(shape[-2:], down[-2:], strict=True))
    return chunk.location[0], chunk.location[1], width, height


def source_html(source: Source, chunks: Sequence[SmallChunk], axes: int) -> Html:
    """The image, with a box for each small chunk of it; `axes` are those of space of their data."""
    boxes = [_box(chunks[n], _extent(chunks[n], axes)) for n in source.numbers]
    plane = source.look.plane if source.look is not None else None
    known = plane is not None
    if plane is None:  # nobody knows how large it is: as far as its big chunks tell
        big = [_box_of(chunks[n].bigchunk) for n in source.numbers]
        plane = Plane(None, (max(b[1] for b in big), max(b[0] for b in big)))
    least = 0.03 * max(plane.extent)  # what is smaller would not be seen
    rects = []
    for number, (x, y, width, height) in zip(source.numbers, boxes, strict=True):
        w, h = max(width, least), max(height, least)
        place = (x + (width - w) / 2, y + (height - h) / 2, w, h)
        named = zip(("x", "y", "width", "height"), place, strict=True)
        at = " ".join(f'{name}="{value:.6g}"' for name, value in named)
        rects.append(f"<rect {at}><title>{_hint(number, chunks[number])}</title></rect>")
    style = f'fill="{source.colour}" fill-opacity=".25" stroke="{source.colour}" stroke-width="2"'
    drawn = f"<g {style}>{''.join(rects)}</g>"
    said = () if source.look is None else source.look.said
    unknown = () if known else ("its size is not known here",)
    lines = [*said[:1], *unknown, *([plane.words] if plane.words else [])]
    caption = join(
        [Html(f'<span style="color:{source.colour}">&#9632;</span> '), source.name,
         *(soft(line) for line in lines)]
    )  # fmt: skip
    picture = plane.html(_SLIDE, source.name, drawn, _SLIDE_BYTES)
    style = f"width:{max(plane.size(_SLIDE)[0], 96)}px"
    return Html(f'<figure style="{style}">{picture}<figcaption>{caption}</figcaption></figure>')


def _box_of(big: BigChunk) -> tuple[float, float]:
    """Where a big chunk ends, (x, y) in level-0 pixels."""
    ends = [(o + n) * d for o, n, d in zip(big.origin, big.shape, big.downsample, strict=True)]
    return ends[-1], ends[-2]


def _hint(number: int, chunk: SmallChunk) -> Html:
    """What the mouse tells of a small chunk."""
    at = ", ".join(map(str, chunk.location))
    seen = f"level {chunk.level}" if chunk.level is not None else _mpp(chunk)
    visit = f"visit {chunk.bigchunk.visit}, draw {chunk.draw}"
    return safe(f"{number}: {chunk.patient.id} / {chunk.record} at ({at}), {seen}, {visit}")


def _mpp(chunk: SmallChunk | BigChunk) -> str:
    return "" if chunk.mpp is None else f"{chunk.mpp[0]:.4g} \u00b5m/px"


# ------------------------------------------------------------------------- in a notebook
def smallchunks_html(chunks: SmallChunks) -> str:
    """The first small chunks of a batch, and the images that they came from."""
    heading = title(_title(chunks))
    return whole_or(lambda: page(heading, *_sheet(chunks)), lambda: page(heading))


def _title(chunks: SmallChunks) -> str:
    names = len({p.key for p in chunks.patients})
    kind = "objects" if is_object(chunks.made) else times(chunks.made.shape[1:])
    people = f"{names:,} patient{'s' if names != 1 else ''}"
    return f"{len(chunks):,} small chunks, {kind}, of {people}"


def _sheet(chunks: SmallChunks) -> list[Html]:
    shown, axes = chunks[:SHOWN], 0 if is_object(chunks.made) else chunks.spatial_ndim
    sources = sources_of(shown, Onlooker(_SLIDE))
    found = [sources[c.patient.key, c.record] for c in shown]
    left = len(chunks) - len(shown)
    more = soft(f"and {left:,} more") if left else ""
    images = [source_html(s, shown, axes) for s in list(sources.values())[:_IMAGES]]
    elsewhere = len(sources) - len(images)
    also = soft(f"and {elsewhere:,} more images") if elsewhere > 0 else ""
    grid = "display:flex;flex-wrap:wrap;gap:8px;margin-top:6px;align-items:flex-start"
    sheet = f'<div style="{grid}">{join(_cells(chunks, shown, found))}</div>'
    apart = '<div style="margin:10px 0 4px" class="dkm-soft">where they came from</div>'
    return [Html(sheet), safe(more), Html(apart), beside(*images), safe(also)]


def _extent(chunk: SmallChunk, axes: int) -> tuple[int, ...]:
    """Extent along all axes of space of data with so many of them; of objects, which have none,
    that of the big chunk. Leading axes of one pixel may have been dropped."""
    shape = getattr(chunk.data, "shape", ())
    if not axes or is_object(chunk.data) or len(shape) < axes:
        return chunk.bigchunk.shape
    return (*(1 for _ in range(len(chunk.origin) - axes)), *shape[:axes])


def is_object(data: Any) -> bool:
    """Whether it is no array of numbers, and no tensor."""
    return not hasattr(data, "detach") and getattr(getattr(data, "dtype", None), "kind", "O") == "O"


def _cells(
    chunks: SmallChunks, shown: Sequence[SmallChunk], sources: Sequence[Source]
) -> list[Html]:
    """One picture with a caption for each; of objects, what they are."""
    together = list(enumerate(zip(shown, sources, strict=True)))
    if is_object(chunks.made):
        return [_object(number, chunk, source) for number, (chunk, source) in together]
    axes, infos = chunks.spatial_ndim, [source.info for source in sources]
    data = [_middle(chunk, source, axes) for _, (chunk, source) in together]
    made = pictures(data, axes, _SIDE, infos)
    cells = []
    for number, (chunk, source) in together:
        said = [labels_text(chunk.patient), _number(chunk.target)]
        most = _BYTES if chunk.target is None else _BYTES // 2
        shown_parts = [
            _plane(chunk, pixels).html(_SIDE, str(number), most=most, hint=_hint(number, chunk))
            for pixels in _with_target(chunk.target, made[number], axes, chunks.moved)
        ]
        width = max(_plane(chunk, made[number]).size(_SIDE)[0], 48)
        cells.append(_captioned(source, join(shown_parts), ", ".join(filter(None, said)), width))
    return cells


def _middle(chunk: SmallChunk, source: Source, axes: int) -> Array:
    """Its pixels; where the slices around it are channels (``context=``), those of the middle."""
    data, own = chunk.data, source.channels
    if len(chunk.origin) < 3 or not own or data.ndim != axes + 1:
        return data
    slices, rest = divmod(data.shape[-1], own)
    if rest or slices % 2 == 0:
        return data
    return data[..., slices // 2 * own : (slices // 2 + 1) * own]


def _number(target: Any) -> str:
    """A target that is one value."""
    if target is None or np.ndim(target):
        return ""
    value = target.item() if hasattr(target, "item") else target
    told = f"{value:.4g}" if isinstance(value, (int, float)) else str(value)[:40]
    return f"target {told}"


def _with_target(target: Any, picture: Array, axes: int, moved: bool) -> list[Array]:
    """The picture, with a target that is a mask over it; below it one that is not, or that was
    moved and does not lie on it."""
    if target is None or not np.ndim(target):
        return [picture]
    mask = None if moved else mask_of(target, axes)
    if mask is not None:
        return [overlaid(picture, mask)]
    beneath = target_picture(target, axes, _SIDE)
    return [picture] if beneath is None else [picture, beneath]


def _plane(chunk: SmallChunk | BigChunk, pixels: Array) -> Plane:
    """The picture as people look at it: of volumes as `upright` has it."""
    big: Any = getattr(chunk, "bigchunk", chunk)
    extent = float(pixels.shape[0]), float(pixels.shape[1])
    return replace(upright(big.space, extent), pixels=pixels)


def _captioned(source: Source, shown: Html, said: str, width: int) -> Html:
    mark = f"border-top:3px solid {source.colour};padding-top:2px;width:{width}px"
    caption = join([source.patient.id, soft(said) if said else ""])
    return Html(f'<figure style="{mark}">{shown}<figcaption>{caption}</figcaption></figure>')


def _object(number: int, chunk: SmallChunk, source: Source) -> Html:
    told = Html(
        f'<div style="font:11px monospace;overflow-wrap:anywhere" title="{_hint(number, chunk)}">'
        f"{safe(in_a_word(chunk.data))}</div>"
    )
    return _captioned(source, told, labels_text(chunk.patient), 2 * _SIDE)


def smallchunk_html(chunk: SmallChunk) -> str:
    """One small chunk: its picture, where it came from and what is known of it."""
    heading, told = title("Small chunk"), _facts(chunk)
    return whole_or(lambda: page(heading, beside(*_one(chunk), told)), lambda: page(heading, told))


def _one(chunk: SmallChunk) -> list[Html]:
    axes = _axes_of(chunk)
    (source,) = sources_of([chunk], Onlooker(_SLIDE)).values()
    where = source_html(source, [chunk], axes)
    if is_object(chunk.data) or chunk.data.ndim < 2:
        return [Html(f"<code>{safe(in_a_word(chunk.data, 400))}</code>"), where]
    data = _middle(chunk, source, axes)
    (picture,) = pictures([data], axes, _ALONE, [source.info])
    mask = None if chunk.target is None else mask_of(chunk.target, axes)
    shown = [picture] if mask is None else [overlaid(picture, mask)]
    planes = [_plane(chunk, p).html(_ALONE, "small chunk", most=10 * _BYTES) for p in shown]
    return [*planes, where]


def _axes_of(chunk: SmallChunk) -> int:
    """Axes of space of one small chunk: those of its origin, less those of one pixel that its
    batch was squeezed of; one axis more is of channels."""
    axes = len(chunk.origin)
    shape: tuple[int, ...] = getattr(chunk.data, "shape", ())
    squeezed = len(shape) < axes or (axes == 3 == len(shape) and shape[2] <= 4)
    return 2 if squeezed else axes


def _facts(chunk: SmallChunk) -> Html:
    labels = labels_text(chunk.patient, 6)
    data = chunk.data
    kind = f"{times(data.shape)}, {data.dtype}" if hasattr(data, "dtype") else type(data).__name__
    return facts(
        [
            ("patient", chunk.patient.id),
            ("labels", labels or None),
            ("record", chunk.record),
            ("location", ", ".join(map(str, chunk.location))),
            ("level", chunk.level),
            ("\u00b5m per pixel", _mpp(chunk) or None),
            ("data", kind),
            ("target", None if chunk.target is None else _brief_target(chunk.target)),
            ("big chunk", f"visit {chunk.bigchunk.visit}, draw {chunk.draw}"),
        ]
    )


def _brief_target(target: Any) -> str:
    shape = tuple(getattr(target, "shape", ()))
    return f"{times(shape)}, {target.dtype}" if shape else in_a_word(target, 60)


def bigchunk_html(chunk: BigChunk) -> str:
    """One big chunk: what it is, and its pixels where they are there."""
    said = facts(
        [
            ("patient", chunk.patient),
            ("record", chunk.record),
            ("origin", ", ".join(map(str, chunk.origin))),
            ("shape", times(chunk.shape)),
            ("level", chunk.level),
            ("\u00b5m per pixel", _mpp(chunk) or None),
            ("visit", chunk.visit),
            ("pixels", "not kept" if chunk.data is None else in_a_word(chunk.data)),
        ]
    )
    heading = title("Big chunk")
    return whole_or(
        lambda: page(heading, beside(_big_picture(chunk), said)), lambda: page(heading, said)
    )


def _big_picture(chunk: BigChunk) -> Html:
    data, axes = chunk.data, len(chunk.shape)
    if not isinstance(data, np.ndarray) or is_object(data) or data.ndim < axes:
        return Html("")
    (picture,) = pictures([data], axes, _ALONE, [None])
    mask = None if chunk.target is None else mask_of(chunk.target, axes)
    plane = _plane(chunk, picture if mask is None else overlaid(picture, mask))
    return below(plane.html(_ALONE, "big chunk", most=10 * _BYTES), soft(plane.words))
