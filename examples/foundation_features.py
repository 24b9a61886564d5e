"""Features of slides by a pretrained network from a folder on this machine: timm or HuggingFace.

Foundation models of pathology come as a folder: weights, an architecture, and what the network
wants to see (size, interpolation, mean, standard deviation). Both libraries load it without a
network; `model_input` reads the rest and makes the transform of the windows. Here a tiny network
with random weights is saved as such a folder first, by whichever library there is.

    pip install transformers        # or: pip install timm, with a torchvision that fits torch
    python examples/foundation_features.py [FOLDER [SLIDE ...]]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import daskdmed
from daskdmed import Region, samples
from daskdmed.tables import features, read_windows
from daskdmed.transforms import model_input

os.environ.setdefault("HF_HUB_OFFLINE", "1")
OUTPUT = Path("output/foundation_features").absolute()
QUICK = bool(os.environ.get("DASKDMED_QUICK"))
#: of a model of pathology, for the tiny ones
MEAN, STD = (0.707, 0.579, 0.704), (0.212, 0.230, 0.178)


def save_tiny_dino(folder: Path) -> None:
    """As ``AutoModel.from_pretrained(...).save_pretrained(folder)`` leaves one."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_mean=MEAN,
        image_std=STD,
        resample=3,
    ).save_pretrained(folder)


def save_tiny_vit(folder: Path) -> None:
    """As `timm.models.save_for_hf` leaves one."""
    import timm

    sizes = {"img_size": 56, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    cfg = {"input_size": (3, 56, 56), "interpolation": "bicubic", "crop_pct": 1.0,
           "mean": MEAN, "std": STD, "num_classes": 0}  # fmt: skip
    model = timm.create_model("vit_small_patch14_dinov2", pretrained_cfg_overlay=cfg, **sizes)
    timm.models.save_for_hf(model, folder, model_args=sizes)


class ClassToken(torch.nn.Module):
    """Models of transformers give an object; one vector a window is wanted."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=x).last_hidden_state[:, 0]


def load(folder: Path) -> torch.nn.Module:
    """The network of a folder, by the library that it was made with."""
    if "architecture" in json.loads((folder / "config.json").read_text()):
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    from transformers import AutoModel

    return ClassToken(AutoModel.from_pretrained(folder, local_files_only=True)).eval()


def seen_by_its_own_library(folder: Path, window: np.ndarray) -> Any:
    """What the library that made the network would show it of an image, (3, height, width)."""
    from PIL import Image

    picture = Image.fromarray(window)
    if "architecture" in json.loads((folder / "config.json").read_text()):
        import timm

        model = timm.create_model(f"local-dir:{folder}", num_classes=0)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        return transform(picture).numpy()
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return processor(picture, return_tensors="np")["pixel_values"][0]


def tiny_folders() -> list[Path]:
    """One for each library that can be imported."""
    torch.manual_seed(0)
    made = []
    for name, save in (("transformers", save_tiny_dino), ("timm", save_tiny_vit)):
        folder = OUTPUT / "models" / name
        try:
            __import__(name)
        # timm imports torchvision, which raises a RuntimeError beside a torch of another build
        except (ImportError, RuntimeError) as error:
            print(f"left out: {name} ({error})")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        save(folder)
        made.append(folder)
    return made


def main() -> None:
    folders = [Path(sys.argv[1])] if len(sys.argv) > 1 else tiny_folders()
    slides: list[Path] = [Path(name) for name in sys.argv[2:]]
    if not slides:
        slides = [samples.make_slide(OUTPUT / "slide.tif", 1024 if QUICK else 4096).path]

    for folder in folders:
        model, transform = load(folder), model_input(folder)
        print(f"{folder.name}: {transform}")
        tables = features(
            slides,
            model,
            kernel_size=128,
            mpp=1.0,
            batch_tfms=transform,
            mask=lambda patient: daskdmed.tissue_mask(patient.record()),
            mask_fraction=0.5,
            batch_size=16,
            out=OUTPUT / "features" / folder.name,
            overwrite=True,
        )
        for patient, path in tables.items():
            rows = read_windows(path)
            print(f"{patient}: {path.relative_to(OUTPUT)}, {rows.values.shape}")

        # the last window by hand: as the network's own library shows it to the network
        origin = rows.columns["origin_y"][-1], rows.columns["origin_x"][-1]
        view = daskdmed.open_slide(slides[-1]).view(mpp=1.0)
        pixels = view.read(Region(tuple(map(int, origin)), (128, 128)))
        ours = transform(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        theirs = seen_by_its_own_library(folder, pixels)
        off = np.abs(ours[0].numpy() - theirs).max() * 255 * min(STD)
        print("as its own library shows it, within 3 of 255 grey levels:", off < 3)
        with torch.inference_mode():
            again = model(ours)[0].numpy()
        print("the same features by hand:", np.allclose(rows.values[-1], again, atol=1e-4))


if __name__ == "__main__":
    main()
