"""fit_head trains the last layer of a network in closed form, by ridge regression: without gradients or epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import check_is_module
from explainfix_ext.explain.features import head_batches, last_linear

from .moments import Moments


def fit_head(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    ridge: float = 1e-3,
    *,
    num_batches: int | None = None,
    progress: bool = False,
) -> nn.Linear:
    """Sets weight and bias of the model's last nn.Linear to those of a ridge regression, in one pass over the data.

    With inputs a (N, K) of that layer and targets t (N, C), 1 for an image's class and 0 for others, they minimise
    mean |W a + b - t|^2 + ridge * v * |W|^2, where v is the mean variance of the inputs; b is not penalised. Nothing
    else of the model changes, and it runs in eval mode. So where its normalisation has seen no data yet, run
    `torch.optim.swa_utils.update_bn(data, model)` before. After `convert(model, include_pointwise=True)` this is all
    the training there is.

    Args:
        model: a classifier whose last nn.Linear, with a bias, gives its output.
        data: batches (x, y), such as a DataLoader; y are classes (N,), integers, or 0 and 1 (N, labels) with one 1 in
            each row, or (N, 1) for two classes. For one logit the target is -1/2 or 1/2.
        ridge: strength of the penalty, above 0.
        num_batches: how many batches to use, the first ones; None: all.
        progress: show a bar over the batches on stderr (needs rich).

    Returns:
        The layer that was fitted.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: ridge is not above 0; the model has no nn.Linear, or the last one does not give its output, has no
            bias, or has inputs that are not finite or do not vary; data is empty; y does not say one class for each
            image.
        ImportError: progress=True, and rich is not installed.

    Examples:
        >>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.randn(60, 1, 2, 2)
        >>> y = torch.arange(60) % 3
        >>> head = fit_head(model, [(x, y)])

        The equivalent PyTorch:

        >>> a = x.flatten(1) - x.flatten(1).mean(0)
        >>> penalty = 1e-3 * a.square().mean() * torch.eye(4)
        >>> weight = torch.linalg.solve(a.T @ a / 60 + penalty, a.T @ F.one_hot(y).float() / 60).T
        >>> torch.allclose(head.weight, weight, atol=1e-5)
        True

    Source: Hoerl and Kennard, Ridge Regression (1970); as the last step of a network that is trained without gradients:
    Kuo et al., Interpretable Convolutional Neural Networks via Feedforward Design (2019).
    """
    check_is_module(model)
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 < ridge < math.inf:
        raise ValueError(f"ridge must be a number above 0, got {ridge!r}")
    head = last_linear(model)
    if head.bias is None:
        raise ValueError("the model's last nn.Linear must have a bias, got one without")
    classes = max(head.out_features, 2)
    moments = Moments(head.in_features + classes)
    for inputs, y in head_batches(model, head, data, num_batches, "fit head" if progress else ""):
        moments.add(torch.cat([inputs, nn.functional.one_hot(y, classes)], 1))
    weight, bias = _regression(moments, head.in_features, ridge)
    if head.out_features == 1:  # the logits of two classes are -z and z
        weight, bias = (weight[1:] - weight[:1]) / 2, (bias[1:] - bias[:1]) / 2
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def _regression(moments: Moments, inputs: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Returns weight (C, K) and bias (C,) by the moments of K inputs and C targets."""
    covariance, mean = moments.covariance, moments.mean
    variance = float(covariance.diagonal()[:inputs].mean())
    if not 0 < variance < math.inf:
        raise ValueError(f"inputs of the last nn.Linear must be finite and vary, got a mean variance of {variance:g}")
    penalised = covariance[:inputs, :inputs] + ridge * variance * torch.eye(inputs, dtype=torch.float64)
    weight = torch.linalg.solve(penalised, covariance[:inputs, inputs:]).T
    return weight, mean[inputs:] - weight @ mean[:inputs]
