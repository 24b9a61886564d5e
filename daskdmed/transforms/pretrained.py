"""`model_input`: what a pretrained network wants to see, read from where it is written down.

A folder of a model, as timm and HuggingFace save it, says the size, the interpolation, the mean
and the standard deviation of what the network was trained on. Nothing is imported or downloaded
for that. Not covered: making the network (`timm.create_model`, ``AutoModel.from_pretrained``).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from daskdmed.core.errors import UsageError
from daskdmed.core.types import PathLike
from daskdmed.transforms.compose import Compose
from daskdmed.transforms.convert import Normalize
from daskdmed.transforms.resize import INTERPOLATIONS, Resize

#: of a folder, in the order in which they are asked
_FILES = ("preprocessor_config.json", "config.json")
_MAX_BYTES = 2**20
#: Pillow's numbers, which HuggingFace writes
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


class _Wanted(NamedTuple):
    """Sizes are (height, width) or None."""

    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def model_input(source: PathLike | Mapping[str, Any] | Any, *, crop: bool = False) -> Compose:
    """The transform of windows into what a pretrained network wants to see.

    For ``batch_tfms=`` of `LightDL`, `daskdmed.heatmap`, `daskdmed.tables.features`...

    Parameters
    ----------
    source : path, mapping or torch.nn.Module
        The folder of a model on this machine, with ``preprocessor_config.json`` (HuggingFace)
        or ``config.json`` (timm), or one of these files; what is in them, or the
        ``pretrained_cfg`` of a model of timm; or such a model itself.
    crop : bool, default False
        False: the whole of each window is resized to the network's input. True: as the model
        was evaluated, where it was with a larger image and the middle of that (timm's
        ``crop_pct``, HuggingFace's ``do_center_crop``): the border of each window is left out,
        and what lies between two windows is seen by none.

    Returns
    -------
    Compose
        Of `Resize`, left out where none is asked for, and `Normalize`; for uint8.

    Raises
    ------
    UsageError
        There is no such file, it does not say what a network wants to see, or says what is not
        done here (an interpolation other than nearest, bilinear and bicubic).

    Notes
    -----
    Windows are taken for squares, as networks want them: others are squeezed.

    Examples
    --------
    >>> model = timm.create_model("local-dir:models/uni", num_classes=0)  # doctest: +SKIP
    >>> features(
    ...     slides, model, batch_tfms=model_input("models/uni"), kernel_size=256, mpp=0.5,
    ...     out="features",
    ... )  # doctest: +SKIP
    """
    told, where = _told(source)
    try:
        wanted = _of_timm(told) if _is_of_timm(told) else _of_huggingface(told)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(
            f"{where} does not say what the network wants to see: {type(error).__name__}: {error}; "
            "compose Resize and Normalize of daskdmed.transforms by hand"
        ) from error
    size = wanted.size if crop or wanted.crop is None else wanted.crop
    normalize = Normalize(wanted.mean, wanted.std)
    if size is None:
        return Compose([normalize])
    if wanted.interpolation not in INTERPOLATIONS:
        raise UsageError(
            f"{where} asks for the interpolation {wanted.interpolation!r}; here are "
            f"{', '.join(INTERPOLATIONS)}: choose one, Compose([Resize({size}, 'bicubic'), "
            f"Normalize({wanted.mean}, {wanted.std})])"
        )
    resize = Resize(size, wanted.interpolation, crop=wanted.crop if crop else None)  # type: ignore[arg-type]
    return Compose([resize, normalize])


def _told(source: Any) -> tuple[Mapping[str, Any], str]:
    """What is written, and where."""
    if isinstance(source, Mapping):
        return source, "the mapping"
    if isinstance(source, (str, os.PathLike)):
        return _read(Path(source))
    found = getattr(source, "pretrained_cfg", None)
    if isinstance(found, Mapping):
        return found, f"the pretrained_cfg of {type(source).__name__}"
    raise UsageError(
        "model_input takes the folder of a model, what is in its preprocessor_config.json, or a "
        f"model of timm; {type(source).__name__} has no pretrained_cfg"
    )


def _read(path: Path) -> tuple[Mapping[str, Any], str]:
    names = [path / name for name in _FILES] if path.is_dir() else [path]
    file = next((name for name in names if name.is_file()), None)
    if file is None:
        what = "holds neither " + " nor ".join(_FILES) if path.is_dir() else "is not there"
        raise UsageError(
            f"{path} {what}; models are read from a folder on this machine, as save_pretrained "
            "of HuggingFace or save_for_hf of timm write it: nothing is downloaded here"
        )
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        told = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(told, dict):
        raise UsageError(f"{file} holds {type(told).__name__}, not an object of JSON")
    return told, str(file)


def _is_of_timm(told: Mapping[str, Any]) -> bool:
    return "pretrained_cfg" in told or "input_size" in told


def _of_timm(told: Mapping[str, Any]) -> _Wanted:
    """As `timm.data.resolve_data_config` and `create_transform` have it for evaluation."""
    told = told.get("pretrained_cfg", told)
    _, height, width = told["input_size"]
    crop = _size((height, width))
    share = float(told.get("crop_pct") or 0.875)
    size = _size(tuple(math.floor(n / share) for n in crop))
    if told.get("crop_mode", "center") not in ("center", "squash") and size != crop:
        raise ValueError(f"crop_mode is {told['crop_mode']!r}, not 'center' or 'squash'")
    interpolation = str(told.get("interpolation", "bilinear"))
    return _Wanted(
        size, crop, interpolation, _numbers(told["mean"]), _numbers(told["std"], positive=True)
    )


def _of_huggingface(told: Mapping[str, Any]) -> _Wanted:
    """As the image processors of transformers have it; for samples from 0 to 255."""
    size = crop = None
    if told.get("do_resize", True):
        size = _size(told["size"])
    if told.get("do_center_crop", False):
        crop = _size(told.get("crop_size", told["size"]))
        size = size or crop
    if crop is None and size is not None and "crop_pct" in told:  # ConvNeXt
        share = float(told["crop_pct"] or 1.0)
        if max(size) < 384:
            size, crop = _size(tuple(int(n / share) for n in size)), size
    named = told.get("resample", 2)
    interpolation = _PILLOW.get(named, str(named)) if isinstance(named, int) else str(named)
    # what Normalize takes for white is 255 times the factor here
    factor = float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0
    white = 255 * factor
    if not (math.isfinite(white) and white > 0):
        raise ValueError(f"rescale_factor is {factor!r}")
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if told.get("do_normalize", True):
        mean = _numbers(told["image_mean"])
        std = _numbers(told["image_std"], positive=True)
    return _Wanted(
        size, crop, interpolation, tuple(m / white for m in mean), tuple(s / white for s in std)
    )


def _size(value: Any) -> tuple[int, int]:
    """(height, width) of any of the ways in which it is written."""
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        value = (edge, edge) if edge is not None else (value["height"], value["width"])
    elif isinstance(value, int):
        value = (value, value)
    height, width = value
    if not all(isinstance(n, int) and 0 < n < 2**16 for n in (height, width)):
        raise ValueError(f"{value!r} is no size in pixels")
    return height, width


def _numbers(values: Any, *, positive: bool = False) -> tuple[float, ...]:
    found = tuple(float(v) for v in ([values] if isinstance(values, (int, float)) else values))
    if not found or not all(math.isfinite(v) and (v > 0 or not positive) for v in found):
        raise ValueError(f"{values!r} are no {'positive ' if positive else ''}numbers")
    return found
