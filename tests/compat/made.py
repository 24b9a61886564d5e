"""Made scans in MedSegPy's files: what each test of its names reads."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from daskdmed.compat.medsegpy.config import UNetConfig

#: rows, columns, slices, masks
SHAPE = (16, 12, 7)
MASKS = 6
CATEGORIES = (0, (1, 2), 3, (4, 5))


class Made:
    """Scans by their ids: images (rows, columns, slices), masks with theirs behind."""

    def __init__(self, folder: Path, count: int = 3, shape: tuple[int, ...] = SHAPE) -> None:
        self.slices, self.volumes, self.single = folder / "2d", folder / "3d", folder / "all.h5"
        for place in (self.slices, self.volumes):
            place.mkdir(parents=True)
        rng = np.random.default_rng(0)
        self.images, self.masks = {}, {}
        for number in range(count):
            scan = f"{9000000 + number:07d}_V00"
            # a class is where the image is bright, so that it can be learnt
            image = rng.normal(size=shape).astype(np.float32)
            borders = np.linspace(0.3, 1.2, MASKS)
            masks = (image[..., None] > borders).astype(np.uint8)
            self.images[scan], self.masks[scan] = image, masks
            for z in range(shape[2]):
                name = f"{scan}-Aug00_{z + 1:03d}"
                write(self.slices / f"{name}.im", data=image[:, :, z : z + 1])
                write(self.slices / f"{name}.seg", data=masks[:, :, z : z + 1])
            write(self.volumes / f"{scan}.h5", volume=image, seg=masks)
            write(self.single, "a", **{f"{scan}/volume": image, f"{scan}/seg": masks})

    def classes(self, scan: str) -> np.ndarray:
        """Masks of `CATEGORIES`, by hand."""
        masks = self.masks[scan]
        groups = ([0], [1, 2], [3], [4, 5])
        return np.stack([masks[..., g].max(-1) for g in groups], -1)

    def of(self, inputs: dict) -> str:
        """Which scan `inference` speaks of."""
        return str(inputs["scan_id"]).removesuffix("-Aug00")


def write(path: Path, mode: str = "w", **arrays: np.ndarray) -> None:
    with h5py.File(path, mode) as file:
        for name, values in arrays.items():
            file[name] = values


def config(**values) -> UNetConfig:
    usual = {"CATEGORIES": CATEGORIES, "SEED": 0, "IMG_SIZE": (*SHAPE[:2], 1)}
    return UNetConfig(**{**usual, "DEPTH": 2, "NUM_FILTERS": [4, 4], **values})
