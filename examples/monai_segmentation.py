"""MONAI's transforms, network, loss, inference and metric, on batches and volumes of daskdmed.

Scans are NIfTI files. MONAI augments patches that LightDL draws, by dictionary transforms that
repeat whatever the number of workers; its U-Net learns from them by its loss. The trained network
goes over whole scans twice, by `infer` in bounded memory and by MONAI's sliding_window_inference
in memory, to the same probabilities, and both libraries measure the same Dice.

    pip install monai
    python examples/monai_segmentation.py
"""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    RandFlipd,
    RandGaussianNoised,
    RandShiftIntensityd,
    ScaleIntensityRanged,
)

import daskdmed
from daskdmed import Dataset, LightDL, Quota, Region
from daskdmed.transforms import PerSample

OUTPUT = Path("output/monai_segmentation")
QUICK = bool(os.environ.get("DASKDMED_QUICK"))
STEPS = 24 if QUICK else 300
SIZE = 40 if QUICK else 96
PATCH = 16 if QUICK else 48
LESION = 1


def make_scans(n: int) -> Dataset:
    """`n` scans of noise with bright balls, the lesions, and dark ones, which are none."""
    images, labels = OUTPUT / "images", OUTPUT / "labels"
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    grid = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"))
    for number in range(n):
        rng = np.random.default_rng(number)
        image = rng.normal(0, 60, (SIZE,) * 3)
        label = np.zeros((SIZE,) * 3, np.uint8)
        for ball in range(6):
            centre = rng.uniform(8, SIZE - 8, (3, 1, 1, 1))
            inside = ((grid - centre) ** 2).sum(0) < rng.uniform(4, 7) ** 2
            image[inside] += -300 if ball % 2 else 300
            label[inside] = 0 if ball % 2 else LESION
        for folder, values in ((images, image.astype(np.int16)), (labels, label)):
            scan = nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 1.0, 1.0]))
            nibabel.save(scan, folder / f"case_{number}.nii.gz")
    return Dataset.from_bids_like(images, labels)


#: of MONAI; from Hounsfield-like numbers to [0, 1] first, as `scaled` does for whole scans
augment = Compose(
    [
        ScaleIntensityRanged("image", a_min=-500, a_max=500, b_min=0.0, b_max=1.0),
        *(RandFlipd(["image", "label"], prob=0.5, spatial_axis=axis) for axis in range(3)),
        RandShiftIntensityd("image", offsets=0.05, prob=0.5),
        RandGaussianNoised("image", std=0.02, prob=0.5),
    ]
)


def scaled(x: torch.Tensor) -> torch.Tensor:
    """What the network takes."""
    return (x.float() + 500) / 1000


def patches(dataset: Dataset) -> LightDL:
    """A quarter of each batch around lesions, the rest anywhere."""
    return LightDL(
        dataset,
        record="image",
        target="label",
        smallchunk_size=(PATCH,) * 3,
        batch_size=8,
        smallchunks_per_bigchunk=64,
        quotas=[Quota(0.25, labels=[LESION], of="label")],
        resident="64 MiB",
        epoch_length=STEPS,
        batch_tfms=PerSample(augment, keys=("image", "label")),
        seed=0,
    )


def train(dataset: Dataset, network: torch.nn.Module) -> None:
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    with patches(dataset) as loader:
        for step, (x, _, smallchunks) in enumerate(loader):
            # targets were moved as the images were
            wanted = torch.as_tensor(smallchunks.targets).long()[:, None]
            loss = loss_function(network(x), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % (STEPS // 4) == 0:
                print(f"step {step}: loss {loss.item():.3f}")


def main() -> None:
    dataset = make_scans(3)
    training, held_out = dataset[:-1], dataset[-1:]
    torch.manual_seed(0)
    network = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        channels=(8, 16),
        strides=(2,),
        norm="instance",
    )
    train(training, network)
    network.eval()

    # whole scans as daskdmed does it: streamed to stores, the size of a scan does not matter
    scans = daskdmed.infer(
        held_out,
        torch.nn.Sequential(network, torch.nn.Softmax(1)),
        record="image",
        target="label",
        kernel_size=(PATCH,) * 3,
        overlap=0.25,
        blend="gaussian",
        batch_tfms=scaled,
        out=OUTPUT / "probabilities",
        overwrite=True,
    )
    metric = DiceMetric(include_background=False)
    for inputs, outputs in scans:
        # and as MONAI does it: the scan and all sums in memory
        view = held_out[0].record("image").view()
        scan = view.read(Region.of(view.shape))
        with torch.inference_mode():
            theirs = sliding_window_inference(
                scaled(torch.from_numpy(scan)[None, None]),
                roi_size=(PATCH,) * 3,
                sw_batch_size=4,
                predictor=lambda windows: network(windows).softmax(1),
                overlap=0.25,
                mode="gaussian",
            )[0].numpy()
        ours, truth = (np.asarray(outputs[name]) for name in ("y_pred", "y_true"))
        assert ours.shape == theirs.shape
        difference = float(np.abs(ours - theirs).max())
        print(f"{inputs['scan_id']}: probabilities {ours.shape}; differ from MONAI's by less "
              f"than 1e-5: {difference < 1e-5}")  # fmt: skip

        # the metric, of both
        found = ours.argmax(0)
        metric(*(torch.from_numpy(np.stack([a == 0, a == LESION]))[None] for a in (found, truth)))
        report = daskdmed.evaluate(
            {"case": (found, truth)}, classes={"lesion": LESION}, spacing=outputs["spacing"]
        )
        dice = float(report.table["dice"][0])
        print(f"Dice of lesions {dice:.3f}; the same as MONAI's:",
              abs(dice - metric.aggregate().item()) < 1e-6)  # fmt: skip


if __name__ == "__main__":
    main()
