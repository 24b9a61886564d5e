"""Losses by name, and the pairs (loss, activation) that ``cfg.LOSS`` holds.

A loss is called with the truth and the prediction, in this order, as keras calls it: tensors batch
x ... x classes, predictions in [0, 1]. They are written with torch operators; importing this module
needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from daskdmed.core.errors import UsageError, listing, meant

if TYPE_CHECKING:
    import torch

LossName: TypeAlias = tuple[str, str]
#: (truth, prediction) -> a number, as a tensor
Loss: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"

DICE_LOSS: LossName = ("dice", "sigmoid")
MULTI_CLASS_DICE_LOSS: LossName = ("multi_class_dice", "sigmoid")
AVG_DICE_LOSS: LossName = ("avg_dice", "sigmoid")
AVG_DICE_LOSS_SOFTMAX: LossName = ("avg_dice", "softmax")
BINARY_CROSS_ENTROPY_LOSS: LossName = ("binary_crossentropy", "softmax")
BINARY_CROSS_ENTROPY_SIG_LOSS: LossName = ("binary_crossentropy", "sigmoid")
WEIGHTED_CROSS_ENTROPY_LOSS: LossName = ("weighted_cross_entropy", "softmax")
WEIGHTED_CROSS_ENTROPY_SIGMOID_LOSS: LossName = ("weighted_cross_entropy_sigmoid", "sigmoid")
FOCAL_LOSS: LossName = ("focal_loss", "sigmoid")
L2_LOSS: LossName = ("l2", "")
FOCAL_LOSS_GAMMA = 3.0

_TINY = 1e-7


def dice_loss(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    """1 - Dice of all voxels and classes together."""
    both, sizes = (y_true * y_pred).sum(), y_true.sum() + y_pred.sum()
    return 1 - (2 * both + 1) / (sizes + 1)


def avg_dice_loss(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    """1 - Dice, the mean over classes and images."""
    axes = tuple(range(1, y_true.ndim - 1))
    both = (y_true * y_pred).sum(axes)
    sizes = y_true.sum(axes) + y_pred.sum(axes)
    return (1 - (2 * both + 1) / (sizes + 1)).mean()


def binary_crossentropy(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    """Of each voxel and class, the mean."""
    return -_logs(y_true, y_pred).mean()


def focal_loss(
    y_true: torch.Tensor, y_pred: torch.Tensor, gamma: float = FOCAL_LOSS_GAMMA
) -> torch.Tensor:
    """Cross entropy in which voxels count the less the better they are known (Lin et al. 2017)."""
    right = y_pred * y_true + (1 - y_pred) * (1 - y_true)
    unsure: torch.Tensor = (1 - right) ** gamma
    return -(unsure * _logs(y_true, y_pred)).mean()


def weighted_cross_entropy(weights: Sequence[float] | None = None) -> Loss:
    """Categorical cross entropy, with a weight for each class."""

    def loss(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        each = y_true * y_pred.clamp(_TINY, 1).log()
        return -(each * _row(weights, y_pred)).sum(-1).mean()

    return loss


def weighted_binary_crossentropy(weights: Sequence[float] | None = None) -> Loss:
    """Binary cross entropy of each class, with a weight for each."""

    def loss(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return -(_logs(y_true, y_pred) * _row(weights, y_pred)).mean()

    return loss


def l2_loss(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    """Mean squared difference."""
    return ((y_true - y_pred) ** 2).mean()


def dice_coefficient(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    """Dice of the labels, the mean over images and classes that occur in them."""
    found = y_pred > 0.5
    axes = tuple(range(1, y_true.ndim - 1))
    sizes = y_true.sum(axes) + found.sum(axes)
    occurs = sizes > 0
    both = (y_true * found).sum(axes)
    return (2 * both[occurs] / sizes[occurs]).mean() if occurs.any() else sizes.new_tensor(1.0)


def accuracy(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    """Share of voxels and classes that are right."""
    return ((y_pred > 0.5) == (y_true > 0.5)).float().mean()


def _logs(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    inside = y_pred.clamp(_TINY, 1 - _TINY)
    return y_true * inside.log() + (1 - y_true) * (1 - inside).log()


def _row(weights: Sequence[float] | None, like: torch.Tensor) -> torch.Tensor:
    if weights is None:
        return like.new_tensor(1.0)
    if len(weights) != like.shape[-1]:
        raise UsageError(
            f"cfg.CLASS_WEIGHTS has {len(weights)} numbers for {like.shape[-1]} classes"
        )
    return like.new_tensor([float(w) for w in weights])


#: by name; those that need weights are made with them
LOSSES: Mapping[str, Callable[[Any], Loss]] = {
    "dice": lambda weights: dice_loss,
    "avg_dice": lambda weights: avg_dice_loss,
    "multi_class_dice": lambda weights: avg_dice_loss,
    "binary_crossentropy": lambda weights: binary_crossentropy,
    "categorical_crossentropy": lambda weights: weighted_cross_entropy(),
    "weighted_cross_entropy": weighted_cross_entropy,
    "weighted_cross_entropy_sigmoid": weighted_binary_crossentropy,
    "focal_loss": lambda weights: focal_loss,
    "l2": lambda weights: l2_loss,
    "mse": lambda weights: l2_loss,
}
METRICS: Mapping[str, Loss] = {"dice": dice_coefficient, "accuracy": accuracy}


def get_training_loss(loss: Any, weights: Sequence[float] | None = None) -> Any:
    """The function of a loss: of a name, of a pair (name, activation), or itself.

    Raises
    ------
    UsageError
        No such loss.
    """
    name = loss[0] if isinstance(loss, (tuple, list)) else loss
    if callable(name):
        return name
    if name not in LOSSES:
        raise UsageError(
            f"no loss {name!r}{meant(str(name), LOSSES)}; there are {listing(list(LOSSES))}, or "
            "give a function of (y_true, y_pred), or a torch module of (prediction, truth)"
        )
    return LOSSES[name](weights)
