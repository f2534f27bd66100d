"""Defines the AUROC of each task (a finding of an image) of a data set, where not every label is known.

`metrics` imports this file only when it is used: it needs torchmetrics, which is optional.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

UNKNOWN = -1


class TaskAUROC(Metric):
    """Computes the AUROC of each task and their mean.

    `update` takes scores (N, tasks) and labels (N, tasks), which are 0, 1, or UNKNOWN: those do not count. `compute`
    returns {"auroc": mean} and, if the tasks have names, "auroc/NAME" of each. A task whose known labels are all alike
    has no AUROC and is left out, also of the mean; if no task has one, the mean is NaN.
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
