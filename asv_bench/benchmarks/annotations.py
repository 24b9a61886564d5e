"""Painting annotations and reading them, beside what the libraries underneath do alone."""

from __future__ import annotations

import json
import time

import inputs
import numpy as np

from benchmarks import Once, requires

CORNERS = 40


def median_seconds(once, seconds: float) -> float:
    """Median time of a call, over some seconds."""
    times, until = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


class Paint(Once):
    """Regions of a slide with nuclei everywhere, on level 0."""

    params = ["224", "4096"]
    param_names = ["region"]

    def setup(self, region: str) -> None:
        requires("shapely")
        import shapely

        from daskdmed import Annotations
        from daskdmed.cohort.annotations import Annotation

        side = inputs.side()
        number = 10_000 if side > 20_000 else 500
        rng = np.random.default_rng(0)
        turn = np.linspace(0, 2 * np.pi, CORNERS)[:-1]
        centre, radius = rng.uniform(0, side, (number, 1, 2)), side / np.sqrt(number) / 3
        circles = centre + radius * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
        labels = np.where(rng.random(number) < 0.5, "a", "b").tolist()
        self.table = Annotations(
            Annotation(shape, label)
            for shape, label in zip(shapely.polygons(circles), labels, strict=True)
        )
        self.size = (min(int(region), side),) * 2
        # shapes become arrays of edges once per table
        self.paint()

    def paint(self) -> np.ndarray:
        return self.table.rasterize((0, 0), self.size, classes=["a", "b"])

    def track_megapixels(self, region: str) -> float:
        pixels = self.size[0] * self.size[1]
        return pixels / median_seconds(self.paint, inputs.seconds()) / 1e6

    def track_ratio_to_filling(self, region: str) -> float:
        """How much of the rate at which NumPy fills the same pixels row by row is reached."""
        rows = np.zeros(self.size, np.uint8)

        def fill() -> None:
            for row in rows:
                row[:] = 1

        limit = median_seconds(fill, inputs.seconds() / 2)
        return limit / median_seconds(self.paint, inputs.seconds() / 2)

    track_megapixels.unit = "Mpix/s"
    track_ratio_to_filling.unit = "ratio"


class Outlines(Once):
    """A mask as exact polygons."""

    def setup(self) -> None:
        requires("shapely")
        side = min(2000, inputs.side())
        y, x = np.mgrid[:side, :side] / 40
        self.mask = np.sin(x + np.cos(y)) * np.cos(y - np.sin(1.3 * x)) > 0.2

    def time_from_mask(self) -> None:
        from daskdmed import Annotations

        assert len(Annotations.from_mask(self.mask)) > 1


class Read(Once):
    """A document as QuPath writes it, of nuclei that it has found.

    50 000 in less than 2 s are 25 000 annotations/s.
    """

    timeout = 120

    def setup(self) -> None:
        requires("shapely")
        self.number = 50_000 if inputs.side() > 20_000 else 200
        rng = np.random.default_rng(0)
        turn = np.linspace(0, 2 * np.pi, CORNERS // 2)
        centre, radius = rng.uniform(99, 90_000, (self.number, 1, 2)), rng.uniform(4, 9, (1, 1, 1))
        circles = centre + radius * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
        circles[:, -1] = circles[:, 0]
        facts = {"objectType": "detection", "measurements": {"Area": 12.5, "Circularity": 0.9}}
        features = [
            {
                "type": "Feature",
                "id": f"{k:08d}",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "classification": {"name": "ab"[k % 2], "color": [9, 0, 0]},
                    **facts,
                },
            }
            for k, ring in enumerate(circles.round(2).tolist())
        ]
        self.text = json.dumps({"type": "FeatureCollection", "features": features})

    def read(self) -> int:
        from daskdmed import read_annotations

        return len(read_annotations(self.text))

    def track_annotations(self) -> float:
        return self.number / median_seconds(self.read, inputs.seconds())

    def track_ratio_to_json_and_shapely(self) -> float:
        """How much of the rate of Python's JSON and of shapely, each used once, is reached."""
        import shapely

        def limit() -> None:
            document = json.loads(self.text)
            rings = [f["geometry"]["coordinates"][0] for f in document["features"]]
            shapely.polygons(np.array(rings))

        alone = median_seconds(limit, inputs.seconds() / 2)
        return alone / median_seconds(self.read, inputs.seconds() / 2)

    track_annotations.unit = "annotations/s"
    track_ratio_to_json_and_shapely.unit = "ratio"
