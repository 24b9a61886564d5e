"""A heatmap as a Dask array: look at a corner before the whole slide is computed.

`compute=False` gives the blocks of the heatmap, nothing is read and nothing is written. Slice
it, reduce it, persist it, or store it, on threads or on a cluster; what is not asked for is not
computed. Events tell what goes on meanwhile, whoever computes.

    python examples/lazy_heatmap.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import daskdmed
from daskdmed import events, samples

OUTPUT = Path("output/lazy_heatmap")


def haematoxylin(windows: np.ndarray) -> np.ndarray:
    """How blue a window is; (n, y, x, c) -> (n,)."""
    return (255.0 - windows[..., 0]).mean(axis=(1, 2))


def main() -> None:
    size = 2048 if os.environ.get("DASKDMED_QUICK") else 16384
    slide = daskdmed.open_slide(samples.make_slide(OUTPUT / "slide.tif", size, seed=3).path)

    # lazily: a Dask array of one value per window
    heat = daskdmed.heatmap(slide, haematoxylin, kernel_size=64, block_windows=8, compute=False)
    print(f"{heat.shape} in {heat.npartitions} blocks, nothing read yet")
    corner = heat[:8, :8].compute()
    print(f"the first block alone: mean {corner.mean():.1f}")
    print(f"the bluest row: {int(heat.mean(axis=1).argmax().compute())}")

    # written, block by block, while somebody listens
    done: list[tuple[int, ...]] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.BlockDone):
            done.append(event.index)

    stop_listening = events.subscribe(listen)
    written = daskdmed.heatmap(
        slide, haematoxylin, kernel_size=64, block_windows=8, out=OUTPUT / "heat.zarr",
        overwrite=True,
    )  # fmt: skip
    stop_listening()
    same = np.array_equal(written.compute(), heat.compute())
    print(f"written in {len(done)} blocks, equal: {same}")


if __name__ == "__main__":
    main()
