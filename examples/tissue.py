"""Where the tissue is: find it once per slide, keep it, and ask it about places.

python examples/tissue.py [SLIDE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import daskdmed
from daskdmed import Dataset, Record, Region, samples

OUTPUT = Path("output/tissue")


def purple(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A method of one's own: thumbnail (h, w, 3) uint8 -> mask (h, w)."""
    hue = rgb.astype(np.int16)
    return (hue[..., 2] - hue[..., 1] > 20) & (hue[..., 0] < 190)


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    slides = [Path(a) for a in sys.argv[1:]]
    truth: dict[str, float] = {}
    if not slides:
        for share in (0.0, 0.1, 0.5):
            made = samples.make_slide(OUTPUT / f"{share}.svs", 2048, tissue=share, seed=1)
            slides.append(made.path)
            truth[made.path.stem] = made.tissue_fraction

    # one Dask task per slide; with client= on a cluster
    dataset = Dataset("slides", [daskdmed.Patient(p.stem, {"wsi": Record(p)}) for p in slides])
    for key, mask in daskdmed.tissue_masks(dataset).items():
        said = f", truth {truth[key]:.1%}" if truth else ""
        print(f"{key}: tissue {mask.fraction:.1%}{said}, empty {mask.empty}")

    slide = daskdmed.open_slide(slides[-1])
    mask = daskdmed.tissue_mask(slide)  # made above: read from the cache
    print(mask)
    for method in ("entropy", "hed", purple):
        print(daskdmed.tissue_mask(slide, method=method))

    # shares of places, level-0 pixels in array order: one, or many of a size at once
    middle = Region(tuple(n // 2 for n in mask.shape0), (224, 224))
    print(f"all tissue lies in {mask.bounds}; of the middle {mask.fraction_of(middle):.0%} is")
    width, height = slide.dimensions
    rows, columns = np.mgrid[0 : height - 224 : 224, 0 : width - 224 : 224]
    shares = mask.fractions(np.stack([rows.ravel(), columns.ravel()], axis=1), (224, 224))
    print(f"{(shares > 0.5).sum()} of {len(shares)} windows are more than half tissue")

    # masks of other programs: PNG, TIFF, .npy or Zarr at any scale; and own files
    np.save(OUTPUT / "mask.npy", mask.data)
    same = daskdmed.tissue_mask(slide, method=OUTPUT / "mask.npy")
    mask.save(OUTPUT / "mask.npz")
    print("read again:", same == mask == daskdmed.TissueMask.load(OUTPUT / "mask.npz"))
    (OUTPUT / "slide.html").write_text(slide._repr_html_() + mask._repr_html_())


if __name__ == "__main__":
    main()
