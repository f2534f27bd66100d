"""Defines the losses of training: one for each task, and those that `--loss` names. `Trainer` computes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from explainfix_ext.training.sources.readers import Task

Loss = Callable[[Tensor, Tensor], Tensor]

# Name of `--loss` -> the tasks that it is for; "auto" is for all.
LOSSES: dict[str, tuple[Task, ...]] = {
    "focal": ("binary", "multilabel"),
    "dice": ("segmentation",),
    "generalized_dice": ("segmentation",),
}
_GAMMA = 1  # of the focal loss, as in the paper's results on CheXpert
_SURE = 5e-6  # the focal loss takes probabilities to be that far from 0 and 1
_EMPTY = 1e-7  # added to both sides of a Dice fraction, so that a class which an image lacks divides no zero


def loss_for(task: Task, name: str, targets: Tensor) -> Loss:
    """Returns a loss of a task, a function (logits, targets as `Dataset` has them) -> mean loss, a scalar.

    Args:
        name: "auto" is, for multiclass, cross-entropy; for binary, binary cross-entropy; for multilabel, binary
            cross-entropy over the known targets, those that are not NaN; for segmentation, binary cross-entropy + soft
            Dice loss over the batch. "focal" is `focal_loss`, "dice" `dice_loss`, "generalized_dice"
            `generalized_dice_loss`.
        targets: of the training images; the focal loss counts them.

    Raises:
        ValueError: the loss is for another task.
    """
    if name != "auto" and task not in LOSSES[name]:
        fits = " or ".join(["auto", *(other for other, tasks in LOSSES.items() if task in tasks)])
        raise ValueError(f"loss {name} is for {' and '.join(LOSSES[name])} data, got {task}: take {fits}")
    if name == "focal":
        return focal_loss(targets)
    named: dict[str, Loss] = {"dice": dice_loss, "generalized_dice": generalized_dice_loss}
    automatic: dict[Task, Loss] = {
        "multiclass": F.cross_entropy,
        "binary": F.binary_cross_entropy_with_logits,
        "multilabel": _known_bce,
        "segmentation": _bce_and_dice,
    }
    return automatic[task] if name == "auto" else named[name]


def _known_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns binary cross-entropy over the targets that are not NaN, 0 if there are none; both are (N, classes)."""
    known = (~targets.isnan()).to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), weight=known, reduction="sum")
    return total / known.sum().clamp(min=1)


def _bce_and_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns binary cross-entropy + soft Dice loss; both are (N, 1, H, W).

    Dice is over the whole batch: taken per image, nearly empty images would weigh too much.
    """
    share = logits.sigmoid()
    dice = (2 * (share * masks).sum() + 1) / (share.sum() + masks.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + 1 - dice


def focal_loss(targets: Tensor) -> Loss:
    """Returns the focal loss of CheXpert, which balances the targets of each task, and the tasks.

    It is - sum_t w_t [a_t (1 - p) y log p + (1 - a_t) p (1 - y) log(1 - p)], the mean over images. p are probabilities,
    kept from 0 and 1. a_t is the share of negative targets in task t, so that positive ones weigh as much in all; w_t
    is 1 over the number of known targets of task t, normalised over tasks. A target that is NaN does not count, and
    a task of one class only has w_t = 0.

    Args:
        targets: (N, tasks) of the training images: 0, 1 or NaN.

    Raises:
        ValueError: no task has both classes.

    Source: ExplainFix 2023 and its code, the loss `chexpert_focal:1`; Lin et al. 2017, Focal loss.
    """
    positive, known = targets.nan_to_num().sum(0, dtype=torch.float64), (~targets.isnan()).sum(0)
    both = (positive > 0) & (positive < known)
    if not bool(both.any()):
        raise ValueError("loss focal needs a task with positive and negative targets: got one class only")
    weights = torch.where(both, 1 / known.double(), 0)
    weights = (weights / weights.sum()).float()
    negative = (1 - positive / known.clamp(min=1)).float()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        w, a = weights.to(logits.device), negative.to(logits.device)
        p = logits.sigmoid() * (1 - 2 * _SURE) + _SURE
        y = targets.nan_to_num()
        likely = a * (1 - p) ** _GAMMA * y * p.log() + (1 - a) * p**_GAMMA * (1 - y) * (1 - p).log()
        return -(w * likely * ~targets.isnan()).sum(1).mean()

    return loss


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns 1 - the mean soft Dice of foreground and background of each image; both are (N, 1, H, W).

    Source: the loss `smooth_dice` in the authors' code of ExplainFix 2023.
    """
    overlap, size = _by_class(logits, masks)
    return 1 - ((2 * overlap + _EMPTY) / (size + _EMPTY)).mean()


def generalized_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns the generalised Dice loss, the mean over images; both are (N, 1, H, W).

    In an image's Dice, foreground and background weigh 1 over the square of their pixels, so that few count as much as
    many; one without pixels weighs as if it had one.

    Source: Sudre et al. 2017, Generalised Dice overlap as a deep learning loss function.
    """
    overlap, size = _by_class(logits, masks)
    pixels = torch.stack([masks, 1 - masks], 1).flatten(2).sum(2)
    weights = pixels.clamp(min=1) ** -2
    return 1 - (2 * (weights * overlap).sum(1) / (weights * size).sum(1)).mean()


def _by_class(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the overlap of shares with masks, and the sum of both, (N, 2): of the foreground, of the background."""
    share = logits.sigmoid()
    shares, truth = (torch.stack([part, 1 - part], 1).flatten(2) for part in (share, masks))
    return (shares * truth).sum(2), (shares + truth).sum(2)
