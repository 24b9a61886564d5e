"""Draws docs/overview.svg, the picture of how daskdmed works.

Plain strings, no dependencies: ``python docs/draw_overview.py`` rewrites the file, and
gives the same bytes every time.
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

WIDTH, HEIGHT = 1160, 612
INK, SOFT, PAPER, LINE = "#1f2933", "#52606d", "#ffffff", "#9aa5b1"
SLIDES = ("#b5739d", "#d79b00", "#5b8c5a")
TISSUE = ("#e8b4d0", "#f3cf8a", "#b4d6b0")
HEAT = ("#313695", "#74add1", "#fee090", "#f46d43", "#a50026")

Point = tuple[float, float]


class Canvas:
    """Collects SVG elements."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def add(self, element: str) -> None:
        self.parts.append(element)

    def rect(self, x: float, y: float, w: float, h: float, fill: str, **more: object) -> None:
        extra = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in more.items())
        self.add(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}"{extra}/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 14,
        fill: str = INK,
        bold: bool = False,
        mono: bool = False,
        anchor: str = "middle",
    ) -> None:
        family = (
            "ui-monospace, Menlo, Consolas, monospace" if mono else "Helvetica, Arial, sans-serif"
        )
        weight = ' font-weight="bold"' if bold else ""
        words = words.replace("&", "&amp;").replace("<", "&lt;")
        self.add(
            f'<text x="{x:g}" y="{y:g}" font-family="{family}" font-size="{size:g}" '
            f'fill="{fill}" text-anchor="{anchor}"{weight}>{words}</text>'
        )

    def arrow(self, *points: Point, color: str = SOFT, dashed: bool = False) -> None:
        path = "M" + " L".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.add(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2.2"{dash}/>')
        (x0, y0), (x1, y1) = points[-2:]
        angle = math.atan2(y1 - y0, x1 - x0)
        wings = [
            (x1 - 10 * math.cos(angle + s), y1 - 10 * math.sin(angle + s)) for s in (0.45, -0.45)
        ]
        shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x1, y1), *wings])
        self.add(f'<polygon points="{shape}" fill="{color}"/>')

    def blob(self, x: float, y: float, r: float, fill: str, rng: random.Random) -> None:
        """A tissue island."""
        corners = []
        for i in range(14):
            a = 2 * math.pi * i / 14
            radius = r * rng.uniform(0.72, 1.12)
            corners.append((x + 1.15 * radius * math.cos(a), y + radius * math.sin(a)))
        middles = [
            ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
            for a, b in zip(corners, corners[1:] + corners[:1], strict=True)
        ]
        path = f"M{middles[-1][0]:.1f},{middles[-1][1]:.1f}"
        for corner, middle in zip(corners, middles, strict=True):
            path += f" Q{corner[0]:.1f},{corner[1]:.1f} {middle[0]:.1f},{middle[1]:.1f}"
        self.add(f'<path d="{path}Z" fill="{fill}"/>')

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img" '
            'aria-label="Slides become lazy Dask arrays; rotating big chunks give batches; '
            'a sliding window gives a heatmap">\n' + "\n".join(self.parts) + "\n</svg>\n"
        )


def head(c: Canvas, x: float, y: float, title: str, code: str) -> None:
    """Title of a column, and the code that makes it."""
    c.text(x, y, title, size=16, bold=True)
    c.text(x, y + 20, code, size=12.5, fill=SOFT, mono=True)


def slides(c: Canvas) -> None:
    """Files: three slides, one behind the other."""
    head(c, 105, 62, "slides, volumes", "Dataset.from_folder(…)")
    rng = random.Random(4)
    for i in (2, 1, 0):
        x, y = 36 + 20 * i, 106 + 46 * i
        c.rect(x, y, 104, 128, "#fbfbfb", stroke=LINE, rx=5)
        c.rect(x, y, 104, 13, SLIDES[i], rx=4)
        c.blob(x + 50, y + 52, 26, TISSUE[i], rng)
        c.blob(x + 60, y + 100, 16, TISSUE[i], rng)
    c.text(105, 366, "SVS, TIFF, NDPI, MRXS,", size=12.5, fill=SOFT)
    c.text(105, 383, "OME-Zarr, any Dask array", size=12.5, fill=SOFT)


RESIDENT = {(1, 3), (2, 2), (3, 4), (4, 6)}


def arrays(c: Canvas) -> None:
    """Lazy arrays: a grid of blocks, some of which are in memory."""
    head(c, 330, 62, "lazy Dask arrays", "slide.to_dask()")
    x0, y0, step = 240, 106, 30
    c.rect(x0, y0, 6 * step, 8 * step, "#fbfbfb", stroke=LINE)
    rng = random.Random(4)
    c.blob(x0 + 88, y0 + 96, 60, TISSUE[0], rng)
    c.blob(x0 + 110, y0 + 192, 34, TISSUE[0], rng)
    for column, row in sorted(RESIDENT):
        c.rect(x0 + column * step, y0 + row * step, step, step, SLIDES[0], fill_opacity=0.72)
    for i in range(1, 6):
        c.rect(x0 + i * step - 0.4, y0, 0.8, 8 * step, LINE)
    for i in range(1, 8):
        c.rect(x0, y0 + i * step - 0.4, 6 * step, 0.8, LINE)
    c.text(330, 366, "a block is a big chunk, its edges on", size=12, fill=SOFT)
    c.text(330, 383, "the file's tiles; nothing is read yet", size=12, fill=SOFT)


def texture(c: Canvas, x: float, y: float, side: float, kind: int, opacity: float = 1) -> None:
    """A big chunk: tissue with nuclei."""
    rng = random.Random(int(x * 31 + y))
    c.add(f'<g opacity="{opacity:g}">')
    c.rect(x, y, side, side, TISSUE[kind], stroke=SLIDES[kind], stroke_width=2)
    for _ in range(22):
        cx, cy = x + rng.uniform(6, side - 6), y + rng.uniform(6, side - 6)
        c.add(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{rng.uniform(1.6, 3):.1f}" '
            f'fill="{SLIDES[kind]}"/>'
        )
    c.add("</g>")


def resident(c: Canvas) -> None:
    """Worker memory: the resident set, one visit coming and one leaving."""
    head(c, 590, 62, "big chunks in memory", 'resident="2 GiB"')
    x0, y0, side = 496, 128, 56
    c.rect(x0 - 14, y0 - 22, 216, 176, "#eef2f7", stroke=SOFT, stroke_width=1.5, rx=10)
    for i in range(6):
        x, y = x0 + (i % 3) * 66, y0 + (i // 3) * 72
        texture(c, x, y, side, (0, 1, 2, 1, 0, 2)[i], 0.35 if i == 2 else 1)
        left = (0.85, 0.6, 0.06, 0.4, 1, 0.2)[i]
        c.rect(x, y + side + 4, side, 5, PAPER, rx=2)
        c.rect(x, y + side + 4, max(3, side * left), 5, SOFT, rx=2)
    words = ("each stays for a number of draws", "(bars: draws left), then one leaves",
             "and the next, read ahead, enters:", "a pure function of the seed")  # fmt: skip
    for i, line in enumerate(words):
        c.text(590, 310 + 17 * i, line, size=12, fill=SOFT)


def batches(c: Canvas) -> None:
    """Small chunks, stacked to a batch."""
    head(c, 842, 62, "batches of small chunks", "for x, patients, smallchunks in loader:")
    rng = random.Random(9)
    kinds = [0, 1, 2, 1, 0, 2, 0, 1, 2, 2, 0, 1, 1, 0, 2, 0]
    for i, kind in enumerate(kinds):
        texture_small(c, 778 + (i % 4) * 33, 128 + (i // 4) * 33, kind, rng)
    c.text(842, 284, "x: uint8 [64, 3, 224, 224]", size=12.5, mono=True)
    c.text(842, 312, "cropped in memory, no file touched;", size=12, fill=SOFT)
    c.text(842, 329, "each knows its patient, location,", size=12, fill=SOFT)
    c.text(842, 346, "level and mpp", size=12, fill=SOFT)


def texture_small(c: Canvas, x: float, y: float, kind: int, rng: random.Random) -> None:
    c.rect(x, y, 28, 28, TISSUE[kind], stroke=SLIDES[kind])
    for _ in range(4):
        cx, cy = x + rng.uniform(5, 23), y + rng.uniform(5, 23)
        c.add(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.4" fill="{SLIDES[kind]}"/>')


def model(c: Canvas) -> None:
    """The user's network."""
    c.text(1072, 62, "your model", size=16, bold=True)
    layers = [[(1036, y) for y in (140, 176, 212, 248)], [(1072, y) for y in (158, 194, 230)]]
    layers.append([(1108, y) for y in (176, 212)])
    for a, b in itertools.pairwise(layers):
        for x0, y0 in a:
            for x1, y1 in b:
                c.add(f'<path d="M{x0},{y0} L{x1},{y1}" stroke="{LINE}" stroke-width="1"/>')
    for layer in layers:
        for x, y in layer:
            c.add(
                f'<circle cx="{x}" cy="{y}" r="8" fill="{PAPER}" stroke="{INK}" stroke-width="2"/>'
            )


def heat_color(value: float) -> str:
    return HEAT[min(len(HEAT) - 1, max(0, int(value * len(HEAT))))]


def windows(c: Canvas) -> None:
    """The second path: every window once, to a Zarr heatmap."""
    y0 = 430
    c.text(590, y0 + 6, "every pixel, exactly once", size=16, bold=True)
    c.text(590, y0 + 26, "heatmap(slide, model, out=…)", size=12.5, fill=SOFT, mono=True)
    x, y, step = 505, y0 + 42, 21
    for row in range(4):
        for column in range(8):
            c.rect(x + column * step, y + row * step, step, step, "#eef2f7", stroke=LINE)
    c.rect(x + 2 * step, y + step, 3 * step, 2 * step, SLIDES[0], fill_opacity=0.5)
    c.rect(
        x + 1.6 * step, y + 0.6 * step, 3.8 * step, 2.8 * step,
        "none", stroke=SLIDES[0], stroke_width=1.6, stroke_dasharray="4 3",
    )  # fmt: skip
    c.text(590, y + 4 * step + 20, "one task per block and its halo,", size=12.5, fill=SOFT)
    c.text(590, y + 4 * step + 37, "each storage tile decoded once", size=12.5, fill=SOFT)


def heat(c: Canvas) -> None:
    """The result."""
    y0 = 430
    c.text(842, y0 + 6, "heatmap", size=16, bold=True)
    c.text(842, y0 + 26, "OME-Zarr, a Dask array", size=12.5, fill=SOFT, mono=True)
    x, y, step = 758, y0 + 42, 12
    for row in range(7):
        for column in range(14):
            d1 = math.hypot(column - 4.2, 1.3 * (row - 2.6)) / 4.6
            d2 = math.hypot(column - 10.5, 1.2 * (row - 4.4)) / 3.4
            value = max(0.0, 1 - min(d1, d2))
            c.rect(x + column * step, y + row * step, step, step, heat_color(value))
    c.text(842, y + 7 * step + 20, "lies on its slide in napari and QuPath", size=12.5, fill=SOFT)


def draw() -> str:
    c = Canvas()
    c.rect(0.5, 0.5, WIDTH - 1, HEIGHT - 1, PAPER, stroke="#d5dbe1", rx=14)
    c.text(28, 30, "train", size=13, fill=SOFT, bold=True, anchor="start")
    slides(c)
    arrays(c)
    resident(c)
    batches(c)
    model(c)
    c.add(f'<path d="M28,402 H{WIDTH - 28}" stroke="#d5dbe1" stroke-width="1.5"/>')
    c.text(28, 424, "look", size=13, fill=SOFT, bold=True, anchor="start")
    windows(c)
    heat(c)
    c.arrow((188, 196), (232, 196))
    c.arrow((426, 186), (474, 186), color=SLIDES[2])
    c.text(450, 176, "read", size=12, fill=SLIDES[2])
    c.arrow((474, 268), (426, 268), color=LINE, dashed=True)
    c.text(450, 286, "leave", size=12, fill=SOFT)
    c.arrow((704, 194), (768, 194))
    c.text(736, 184, "crop", size=12, fill=SOFT)
    c.arrow((918, 194), (1018, 194))
    c.arrow((330, 394), (330, 514), (494, 514))
    c.arrow((682, 514), (748, 514))
    c.arrow((1072, 266), (1072, 514), (936, 514), color=SOFT, dashed=True)
    c.text(1062, 504, "trained model", size=12, fill=SOFT, anchor="end")
    return c.svg()


if __name__ == "__main__":
    Path(__file__).with_name("overview.svg").write_text(draw(), encoding="utf-8")
