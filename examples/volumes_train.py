"""Scans in a folder of NIfTI files: train on patches, predict whole scans, write NIfTI, measure.

Images and labels lie in different orientations and spacings, as they do in life; a small 3-D
U-Net learns grey and white matter from half as many patches of each as of anything else. The
anatomy is the MNI152 template that nilearn ships, under noise and a bias field.

    pip install nilearn
    python examples/volumes_train.py
"""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import nilearn
import numpy as np
import torch
from torch import nn

from daskdmed import (
    Dataset,
    LightDL,
    Quota,
    Region,
    evaluate,
    export_volume,
    open_volume,
    predict,
)

OUTPUT = Path("output/volumes_train")
QUICK = bool(os.environ.get("DASKDMED_QUICK"))
STEPS = 60 if QUICK else 300
#: how all scans are read: millimeters per voxel, and the directions of the axes
COMMON = {"spacing": 4.0 if QUICK else 2.0, "orientation": "RAS"}
PATCH = 16 if QUICK else 32
CLASSES = ("other", "grey matter", "white matter")


def make_scans(n: int) -> tuple[Path, Path]:
    """`n` scans of one anatomy, each saved in another orientation, with labels beside them."""
    maps = Path(nilearn.__file__).parent / "datasets" / "data"
    t1, grey, white = (
        nibabel.load(maps / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
        for name in ("t1", "gm", "wm")
    )
    anatomy = np.asarray(t1.dataobj, np.float32)
    likely = np.stack([np.asarray(m.dataobj, np.float32) for m in (grey, white)])
    labels = np.where(likely.max(0) > 100, likely.argmax(0) + 1, 0).astype(np.uint8)
    images, targets = OUTPUT / "images", OUTPUT / "labels"
    for folder in (images, targets):
        folder.mkdir(parents=True, exist_ok=True)
    for i, axcodes in zip(range(n), ("RAS", "LPS", "PIR", "LAS"), strict=False):
        rng = np.random.default_rng(i)
        field = 1 + 0.3 * np.linspace(-1, 1, anatomy.shape[0])[:, None, None] * rng.normal()
        image = anatomy * field * 4 + rng.normal(0, 25, anatomy.shape)
        for folder, values, codes in (
            (images, image.astype(np.int16), axcodes),
            (targets, labels, "RAS"),  # the labels were drawn by somebody else
        ):
            turn = nibabel.orientations.ornt_transform(
                nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
            )
            scan = nibabel.Nifti1Image(values, t1.affine).as_reoriented(turn)
            nibabel.save(scan, folder / f"case_{i}.nii.gz")
    return images, targets


class UNet(nn.Module):
    """Two levels are enough for a template."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()

        def block(before: int, behind: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv3d(before, behind, 3, padding=1), nn.InstanceNorm3d(behind), nn.ReLU()
            )

        self.fine, self.down = block(1, width), nn.MaxPool3d(2)
        self.coarse, self.up = block(width, 2 * width), nn.Upsample(scale_factor=2)
        self.end = nn.Sequential(block(3 * width, width), nn.Conv3d(width, len(CLASSES), 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        return self.end(torch.cat([fine, self.up(self.coarse(self.down(fine)))], 1))


def scaled(x: torch.Tensor) -> torch.Tensor:
    """The same for training and for prediction: nothing is scaled behind one's back."""
    return x.float() / 1000


def train(dataset: Dataset, network: UNet) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    with LightDL(
        dataset,
        record="image",
        target="label",
        **COMMON,
        smallchunk_size=(PATCH,) * 3,
        batch_size=8,
        smallchunks_per_bigchunk=64,
        quotas=[Quota(0.25, labels=[1], of="label"), Quota(0.25, labels=[2], of="label")],
        resident="256 MiB",
        epoch_length=STEPS,
        seed=0,
    ) as loader:
        for step, (x, _, smallchunks) in enumerate(loader):
            wanted = torch.as_tensor(smallchunks.targets).long()
            loss = nn.functional.cross_entropy(network(scaled(x)), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % (STEPS // 4) == 0:
                print(f"step {step}: loss {loss.item():.3f}")


def draw(path: Path, image: np.ndarray, truth: np.ndarray, found: np.ndarray) -> None:
    """Three planes through the middle, with the truth and what was found."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 3, figsize=(9, 9), layout="constrained")
    for row, axis in zip(axes, range(3), strict=True):
        planes = [np.take(a, a.shape[axis] // 2, axis)[::-1] for a in (image, truth, found)]
        for ax, plane, title in zip(row, planes, ("scan", "truth", "found"), strict=True):
            ax.imshow(planes[0], cmap="gray")
            if title != "scan":
                shown = np.ma.masked_equal(plane, 0)
                ax.imshow(shown, cmap="cool", alpha=0.6, vmin=1, vmax=2, interpolation="nearest")
            ax.set_title(title)
            ax.set_axis_off()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    images, labels = make_scans(3 if QUICK else 4)
    dataset = Dataset.from_bids_like(images, labels)
    train_set, test_set = dataset[:-1], dataset[-1:]
    torch.manual_seed(0)
    network = UNet()
    train(train_set, network)

    found = {}
    for patient in test_set:
        labelled = predict(
            patient,
            network,
            record="image",
            **COMMON,
            kernel_size=(PATCH * 2,) * 3,
            overlap=0.25,
            batch_tfms=scaled,
            post="argmax",
            out=OUTPUT / f"{patient.key}.zarr",
            overwrite=True,
        )
        # back in the space of the file: its orientation, its voxels
        path = OUTPUT / f"{patient.key}_found.nii.gz"
        export_volume(labelled, path, like=patient.record("image"), overwrite=True)
        found[patient.key] = (path, patient.record("label").uri)
    one, truth = (open_volume(path) for path in found[test_set[0].key])
    print("written in", one.space.orientation, "- the label lies in", truth.space.orientation)

    pairs = {
        key: tuple(open_volume(path).to_dask(orientation="RAS") for path in pair)
        for key, pair in found.items()
    }
    report = evaluate(
        pairs, classes={CLASSES[1]: 1, CLASSES[2]: 2}, metrics=("dice", "assd"), spacing=1.0
    )
    print(report.table.to_string(index=False))
    print(f"mean Dice {report.table['dice'].mean():.3f}")

    image = test_set[0].record("image").view(orientation="RAS")
    whole = image.read(Region.of(image.shape))
    draw(OUTPUT / "slices.png", whole, *(pairs[test_set[0].key][i].compute() for i in (1, 0)))


if __name__ == "__main__":
    main()
