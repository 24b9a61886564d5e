"""``:::{shown} name``: what a notebook shows of an object, made when the site is built.

The objects are of two made slides with their ground truth, so that no picture has to be kept in the
repository, and none is older than the code.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


@functools.lru_cache(maxsize=1)
def pages() -> dict[str, str]:
    """HTML by name."""
    # relative paths: where the site was built is nobody's business
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return _pages()


def _pages() -> dict[str, str]:
    from daskdmed import Dataset, LightDL, Patient, Record, heatmap, samples
    from daskdmed.store import open_heatmap

    made = samples.make_cohort("slides", 2, 2048, tile=128, seed=1)
    slides = Dataset.from_folder("slides", "*.tif", labels="slides/labels.csv", name="slides")
    patients = []
    for patient, slide in zip(slides, made, strict=True):
        records = {"wsi": patient.record(), "truth": Record(array=slide.mask(1))}
        patients.append(Patient(patient.id, records, patient.labels))
    dataset = Dataset("slides", patients)
    how: dict[str, Any] = {"smallchunk_size": 224, "bigchunk_size": 512, "batch_size": 12}
    with LightDL(dataset, record="wsi", target="truth", resident="64 MiB", **how) as loader:
        _, _, smallchunks = next(loader)
    image = dataset[0].record("wsi").open()
    heatmap(image, _darkness, kernel_size=64, stride=32, out="heatmap.zarr")
    shown: dict[str, Any] = {
        "dataset": dataset,
        "patient": dataset[0],
        "smallchunks": smallchunks,
        "smallchunk": smallchunks[0],
        "heatmap": open_heatmap("heatmap.zarr"),
    }
    here = str(Path.cwd())
    return {name: one._repr_html_().replace(f"{here}/", "") for name, one in shown.items()}


def _darkness(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(255 - windows.mean(axis=(1, 2, 3)))


class Shown(SphinxDirective):
    """One object."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        found = pages().get(self.arguments[0])
        if found is None:
            raise self.error(f"there is {sorted(pages())}, not {self.arguments[0]!r}")
        return [nodes.raw("", f'<div class="shown">{found}</div>', format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("shown", Shown)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
