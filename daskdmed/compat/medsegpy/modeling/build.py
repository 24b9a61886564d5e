"""`get_model`: a network for a configuration."""

from __future__ import annotations

from typing import Any

from daskdmed.compat.medsegpy.config import Config
from daskdmed.compat.medsegpy.data.build import get_sem_seg_dataset_dicts
from daskdmed.compat.medsegpy.data.catalog import DatasetCatalog
from daskdmed.compat.medsegpy.data.data_loader import DATA_LOADER_REGISTRY
from daskdmed.compat.medsegpy.data.scans import Classes, scans_of
from daskdmed.compat.medsegpy.modeling.model import Model
from daskdmed.compat.medsegpy.modeling.unet import UNet
from daskdmed.core.errors import UsageError

#: names of networks that are built here, by the number of their axes
_NETWORKS = {"UNet2D": 2, "unet_2d": 2, "UNet3D": 3, "unet_3d": 3}
#: filters at the finest resolution, and at most
_FIRST, _MOST = 32, 1024


def get_model(cfg: Config, device: Any = None) -> Model:
    """A U-Net for images of ``cfg.IMG_SIZE``, with an output for each class.

    Over planes for three numbers (rows, columns, channels), over volumes for four. Its activation
    is the second of ``cfg.LOSS``; ``cfg.DEPTH`` and ``cfg.NUM_FILTERS`` say how large it is.

    Parameters
    ----------
    cfg : Config
        Where ``cfg.CATEGORIES`` is empty, the files of ``cfg.TRAIN_DATASET`` say how many classes
        there are.
    device : str or torch.device, optional
        Where it computes. Default: "cuda" where there is one, else "cpu".

    Returns
    -------
    Model
        A network of one's own is wrapped so: ``Model(module, cfg)``.

    Raises
    ------
    UsageError
        Another network is wanted, or nobody says how many classes there are.
    """
    size = tuple(int(n) for n in cfg.IMG_SIZE)
    axes = _NETWORKS.get(cfg.MODEL_NAME)
    if axes is None:
        raise UsageError(
            f"cfg.MODEL_NAME={cfg.MODEL_NAME!r}: built here are {', '.join(sorted(_NETWORKS))}; "
            "any torch module of batch x channels x rows x columns is as good: Model(module, cfg)"
        )
    if len(size) != axes + 1:
        raise UsageError(
            f"cfg.IMG_SIZE={size} is not the extent and the channels of images of a "
            f"{cfg.MODEL_NAME}: {axes + 1} numbers"
        )
    depth = int(cfg.get("DEPTH", 6))
    filters = cfg.get("NUM_FILTERS") or [min(_FIRST * 2**i, _MOST) for i in range(depth)]
    if len(filters) != depth:
        raise UsageError(f"cfg.NUM_FILTERS has {len(filters)} numbers, cfg.DEPTH is {depth}")
    classes = cfg.get_num_classes() or _classes_of_files(cfg)
    network = UNet(size[-1], classes, [int(n) for n in filters], size[:-1], cfg.LOSS[1])
    model = Model(network, cfg, device=device)
    if cfg.INIT_WEIGHTS:
        model.load_weights(cfg.INIT_WEIGHTS)
    return model


def _classes_of_files(cfg: Config) -> int:
    """How many classes the masks of the training set make, when all are classes."""
    name = cfg.TRAIN_DATASET
    if not name or name not in DatasetCatalog.list():
        raise UsageError(
            "how many classes are there? Set cfg.CATEGORIES, or cfg.TRAIN_DATASET to a dataset "
            f"that is registered (it is {name!r})"
        )
    loader: Any = DATA_LOADER_REGISTRY.get(cfg.TAG) if cfg.TAG in DATA_LOADER_REGISTRY else None
    sliced = bool(getattr(loader, "sliced", True))
    first = scans_of(get_sem_seg_dataset_dicts(name)[:1], sliced=sliced)[0]
    assert first.masks is not None
    masks = first.masks.channel_shape or (1,)
    return Classes(cfg.CATEGORIES, cfg.INCLUDE_BACKGROUND).count(masks[0])
