"""Losses: they are what their formulas say, pixel by pixel and target by target; each is refused for other tasks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')

from explainfix_ext.training import metrics
from explainfix_ext.training.losses import focal_loss, loss_for


def test_loss_is_the_mean_over_known_targets_and_moves_no_other_logit() -> None:
    logits = torch.randn(6, 5, requires_grad=True)
    targets = torch.randint(2, (6, 5)).float()
    loss = loss_for("multilabel", "auto", targets)
    torch.testing.assert_close(loss(logits, targets), F.binary_cross_entropy_with_logits(logits, targets))
    targets[torch.rand(6, 5) < 0.4] = math.nan
    known = ~targets.isnan()
    value = loss(logits, targets)
    torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(logits[known], targets[known]))
    value.backward()
    assert torch.equal(logits.grad != 0, known)
    assert metrics.known(targets) == known.sum()
    logits.grad = None
    nothing = loss(logits, torch.full((6, 5), math.nan))
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()


def focal_by_its_formula(logits: Tensor, targets: Tensor, trained: Tensor, gamma: float = 1.0) -> float:
    """sum over tasks of inter_t [a+ (1-p)^g y log p + a- p^g (1-y) log(1-p)], by floats."""
    tasks = range(trained.shape[1])
    counts = [[sum(float(v) == c for v in trained[:, t]) for c in (0.0, 1.0)] for t in tasks]
    inter = [1 / sum(count) if min(count) else 0.0 for count in counts]
    total = 0.0
    for i in range(len(logits)):
        for t in tasks:
            y = float(targets[i, t])
            if math.isnan(y) or not min(counts[t]):
                continue
            p = min(max(1 / (1 + math.exp(-float(logits[i, t]))), 5e-6), 1 - 5e-6)
            inverse = [1 / count for count in counts[t]]
            a_minus, a_plus = (value / sum(inverse) for value in inverse)
            likely = a_plus * (1 - p) ** gamma * y * math.log(p) + a_minus * p**gamma * (1 - y) * math.log(1 - p)
            total -= inter[t] / sum(inter) * likely
    return total / len(logits)


def test_focal_loss_is_that_of_chexpert() -> None:
    trained = (torch.rand(60, 4) < torch.tensor([0.1, 0.5, 0.8, 0.3])).float()
    trained[torch.rand(60, 4) < 0.3] = math.nan
    trained[:, 3] = trained[:, 3] * 0  # one class only: it has no weight
    loss = loss_for("multilabel", "focal", trained)
    logits, targets = torch.randn(8, 4, dtype=torch.float64).requires_grad_(), trained[:8]
    value = loss(logits, targets)
    assert float(value.detach()) == pytest.approx(focal_by_its_formula(logits.detach(), targets, trained), rel=1e-4)
    value.backward()
    assert torch.equal(logits.grad != 0, ~targets.isnan() & (torch.arange(4) < 3))
    confident = torch.full((2, 1), 80.0)
    assert float(focal_loss(torch.tensor([[0.0], [1.0]]))(-confident, torch.ones(2, 1))) == pytest.approx(
        -0.5 * (1 - 5e-6) * math.log(5e-6), rel=1e-3
    )
    with pytest.raises(ValueError, match="needs a task with positive and negative targets"):
        focal_loss(torch.ones(5, 2))


def dice_by_its_formula(share: Tensor, mask: Tensor) -> tuple[float, float]:
    """Of one image: the mean Dice of foreground and background, and the generalised one."""
    sides = []
    for p, r in ((share, mask), (1 - share, 1 - mask)):
        sides.append((float((p * r).sum()), float((p + r).sum()), 1 / max(float(r.sum()), 1.0) ** 2))
    mean = sum(2 * overlap / size for overlap, size, _ in sides) / 2
    return mean, 2 * sum(w * o for o, _, w in sides) / sum(w * size for _, size, w in sides)


def test_dice_losses_are_means_over_images() -> None:
    logits = torch.randn(3, 1, 6, 5, dtype=torch.float64)
    masks = (torch.rand(3, 1, 6, 5) < torch.tensor([0.5, 0.03, 0.0]).view(3, 1, 1, 1)).double()
    found = [dice_by_its_formula(one.sigmoid(), mask) for one, mask in zip(logits, masks, strict=True)]
    for place, name in enumerate(("dice", "generalized_dice")):
        loss = loss_for("segmentation", name, masks)
        assert float(loss(logits, masks)) == pytest.approx(1 - sum(pair[place] for pair in found) / 3, rel=1e-6)
        assert float(loss(40 * (2 * masks - 1), masks)) == pytest.approx(0, abs=0.2 if name == "dice" else 1e-3)


def test_each_loss_is_for_its_tasks() -> None:
    for task, name, message in (
        ("multiclass", "focal", "loss focal is for binary and multilabel data, got multiclass: take auto"),
        ("binary", "dice", "loss dice is for segmentation data, got binary: take auto or focal"),
        ("segmentation", "focal", "got segmentation: take auto or dice or generalized_dice"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_for(task, name, torch.zeros(3, 1))  # type: ignore[arg-type]
    assert loss_for("multiclass", "auto", torch.zeros(3)) is F.cross_entropy
