"""Every window of every slide once: batches in order, masked, resumable.

python examples/sliding_windows.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from daskdmed import Dataset, Patient, SlidingWindowDL, samples

OUTPUT = Path("output/sliding_windows")


def tissue(patient: Patient) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """A mask over the whole slide, at any resolution: here where a thumbnail is not white."""
    thumbnail = np.asarray(patient.record().open().get_thumbnail((128, 128)))
    return thumbnail.mean(axis=2) < 220


def main() -> None:
    samples.make_cohort(OUTPUT / "slides", n=3, size=2048)
    dataset = Dataset.from_folder(OUTPUT / "slides", "*.tif")
    options = {"kernel_size": 224, "stride": 112, "batch_size": 64, "min_mask": 0.25}
    with SlidingWindowDL(dataset, mask=tissue, order="interleaved", **options) as loader:
        print(loader)
        bright: dict[str, list[float]] = {}
        for number, (x, patients, windows) in enumerate(loader):
            means = x.float().mean(dim=(1, 2, 3))
            for mean, patient in zip(means.tolist(), patients, strict=True):
                bright.setdefault(str(patient.id), []).append(mean)
            if number == 0:
                first = windows[0]
                print("first window", first.index, "at", first.location, "mpp", first.mpp)
            if number == 2:
                state = json.dumps(loader.state_dict())
        print({patient: round(float(np.mean(values)), 1) for patient, values in bright.items()})
        print(loader.stats())
    # an interrupted pass goes on at the very next window, on another machine too
    again = SlidingWindowDL(dataset, mask=tissue, order="interleaved", **options)
    again.load_state_dict(json.loads(state))
    with again:
        rest = sum(len(x) for x, _, _ in again)
    print(f"3 batches and {rest} windows: {3 * 64 + rest} of {again.windows}")


if __name__ == "__main__":
    main()
