"""AUROC of several tasks at once, where not every label is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

UNKNOWN = -1


class TaskAUROC(Metric):
    """Update with scores (N, tasks) and labels (N, tasks) 0, 1, or UNKNOWN, which does not count.

    `compute` gives {"auroc": the mean} and, if the tasks have names, {"auroc/NAME": its own}. A task whose known labels
    are all alike has no AUROC: it is left out, of the mean, too, which is NaN where no task has one.
    """

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.names = names
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        self.scores.append(scores)
        self.labels.append(labels)

    def compute(self) -> dict[str, Tensor]:
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        found: dict[int, Tensor] = {}
        for task in range(labels.shape[1]):
            known = labels[:, task] != UNKNOWN
            truth = labels[known, task]
            if 0 < int(truth.sum()) < len(truth):
                found[task] = binary_auroc(scores[known, task], truth)
        mean = torch.stack(list(found.values())).mean() if found else torch.tensor(torch.nan)
        return {"auroc": mean} | {f"auroc/{self.names[task]}": value for task, value in found.items() if self.names}
