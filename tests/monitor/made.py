"""Small loaders and runs, real and made up."""

from __future__ import annotations

import numpy as np

from daskdmed import Dataset, Patient, Record


def dataset(n=3):
    """Patients with images of 64 x 64."""
    pixels = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    return Dataset("d", [Patient(f"p{i}", {"wsi": Record(array=pixels + i)}) for i in range(n)])


def small(**more):
    """A `LightDL` of a few kilobytes."""
    return {
        "smallchunk_size": 16,
        "bigchunk_size": 32,
        "resident": 16 * 3072,
        "smallchunks_per_bigchunk": 24,
        "batch_size": 8,
        **more,
    }


class FakeLoader:
    """Says what a test has it say."""

    def __init__(self, name="l", *, cells=(), rank=0, plan="", waits_for=()):
        self.name = name
        self.rows = dict(cells)
        self.places = {}
        ranks = {"plan": plan, "turn": 3, "waits_for": list(waits_for), "left_behind": []}
        self.now_is = {
            "kind": "loader",
            "of": "LightDL",
            "rank": rank,
            "world_size": 2 if plan else 1,
            "unit": "patches",
            "epoch": 0,
            "failures": [],
            "ranks": ranks if plan else {},
            "counters": {},
        }
        self.count(patches=0)

    def count(self, **counters):
        names = (
            "batches", "patches", "seconds", "wait_seconds", "pixels_read", "pixels_drawn",
            "visits_admitted", "visits_evicted", "resident_visits", "resident_bytes",
            "budget_bytes", "late_draws", "failed",
        )  # fmt: skip
        self.now_is["counters"] = {**dict.fromkeys(names, 0), **counters}

    def now(self):
        return dict(self.now_is)

    def cells(self):
        return [(visit, *row) for visit, row in self.rows.items()]

    def place(self, visit):
        return self.places.get(visit, f"p{visit % 5}"), "wsi", (0, visit), (32, 32), 0.0


class FakeRun(FakeLoader):
    """A heatmap."""

    def __init__(self, name="heatmap-1", ended=""):
        super().__init__(name)
        facts = {"total": 1, "before": 0, "done": 0, "seconds": 0.0, "ended": ended}
        self.now_is = {"kind": "run", "of": "heatmap", "image": "/slides/a.svs", **facts}
