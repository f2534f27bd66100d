"""saliency measures how much a cost depends on each spatial filter.

Its loop over data and gradients, `sum_over_samples`, also serves `explainsteer` and the criteria of pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext._support.layout import as_pair, as_picture, same_padding
from explainfix_ext._support.models import eval_mode, spatial_convolutions
from explainfix_ext._support.progress import with_progress
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.fixed_conv2d_same import pads_like_tensorflow

Cost = Callable[[Any, Tensor], Tensor]  # (the model's output, y) -> a scalar
# (weight (O, I/g, K^2), its gradient for n samples (n, O, I/g, K^2), which may be overwritten) -> (n, O, I/g, ...)
Measure = Callable[[Tensor, Tensor], Tensor]
# (weight, what `Measure` gave, summed over samples) -> scores (O, I/g, ...)
Finish = Callable[[Tensor, Tensor], Tensor]

# Numbers of unfolded input and of weight gradients together. On a CPU more would not stay in its cache.
_FLOATS_ON_CPU, _FLOATS_ON_GPU = 2**21, 2**24


def saliency(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    cost: Cost | None = None,
    *,
    num_batches: int | None = None,
    compat: str | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Measures how much the cost depends on each spatial filter.

    The score is s[o, i] = mean over samples of sum_hw |W[o, i] * dc/dW[o, i]|. The model runs in eval mode; its modes,
    gradients and filters are not changed. The gradients of the weights never exist for a whole network: each layer's is
    made a few samples at a time, from the layer's input and its output's gradient. A layer that runs several times
    counts each time.

    Args:
        model: learned, fixed or both; its filters larger than 1x1 are scored.
        data: batches (x, y), such as a DataLoader.
        cost: (model output, y) -> a scalar, summed over the samples. Default: the true class's logit, for integer
            y (N,) and logits (N, classes); else sum(output * y).
        num_batches: how many batches to use, the first ones; None: all.
        compat: "paper" takes the absolute value of each batch's gradient, and sums over batches, as the authors' code
            does; the result depends on the batch size.
        progress: show a bar over the batches on stderr (needs rich).

    Returns:
        Name of each spatial layer -> (O, I/groups) float64 on the CPU.

    Raises:
        ValueError: data is empty, the model has no spatial layer, or the saliency is not finite or zero everywhere.
        ImportError: progress=True, and rich is not installed.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> data = [(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))]
        >>> saliency(model, data)["layer1.0.conv1"].shape
        torch.Size([64, 64])

        The equivalent PyTorch, for a learned layer and one sample:

        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
        >>> x, y = torch.randn(1, 3, 3, 3), torch.tensor([2])
        >>> net(x)[0, 2].backward()
        >>> by_hand = (net[0].weight * net[0].weight.grad).abs().sum((2, 3))
        >>> torch.allclose(saliency(net, [(x, y)])["0"], by_hand.double())
        True

    Source: ExplainFix 2023, section 3.3.
    """
    check_compat(compat)
    if progress:
        data = with_progress(data, "saliency", num_batches)

    scores = sum_over_samples(
        model,
        data,
        cost,
        gradient_size,
        lambda weight, sizes: (weight.abs() * sizes).sum(-1),  # |w| is the same for all samples
        num_batches=num_batches,
        whole_batch=compat == "paper",
    )
    check_scores(scores)
    return scores


def gradient_size(weight: Tensor, gradients: Tensor) -> Tensor:
    """Returns |dc/dW| of each sample, in the memory of the gradients."""
    return gradients.abs_()


def check_compat(compat: str | None) -> None:
    if compat not in (None, "paper"):
        raise ValueError(f'compat must be None or "paper", got {compat!r}')


def check_scores(scores: dict[str, Tensor]) -> None:
    """Raises ValueError if scores are not finite, or zero everywhere."""
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ValueError(f"saliency of {name} is not finite: is the cost, or a weight, NaN or infinite?")
    if not any(bool(score.any()) for score in scores.values()):
        raise ValueError("saliency is zero everywhere: the cost does not depend on the spatial filters")


def sum_over_samples(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    cost: Cost | None,
    measure: Measure,
    finish: Finish = lambda weight, total: total,
    *,
    num_batches: int | None = None,
    whole_batch: bool = False,
) -> dict[str, Tensor]:
    """Measures every spatial layer's weight and its gradient for each sample, and averages over samples.

    With `whole_batch` it measures the gradient of each batch instead, and sums over batches.

    Args:
        measure: is called with the weight and the gradients of some samples.
        finish: is called once a batch and layer, with the weight and the sum of what `measure` gave. What is the same
            for all samples belongs here: a large layer's time is that of reading and writing its gradients.

    Returns:
        Name of each spatial layer -> what `finish` returns, float64 on the CPU.

    Raises:
        ValueError: data is empty, or the model has no spatial layer.
    """
    layers = spatial_convolutions(model)
    if not layers:
        raise ValueError("model has no spatial convolution: nothing has a saliency")
    totals = {name: torch.zeros((), dtype=torch.float64) for name in layers}

    def measured(module: Any, x: Tensor, dy: Tensor) -> Tensor:
        weight = module.weight.detach().flatten(2)
        return finish(weight, _measured(module, weight, x, dy, measure, whole_batch)).double()

    like = next(iter(model.parameters()), torch.empty(0))
    samples = 0
    with eval_mode(model):
        for x, y in first_batches(data, num_batches):
            x, y = x.to(like.device), y.to(like.device)
            samples += len(x)
            with _watched(layers, totals, measured), torch.enable_grad():
                x = x.detach().clone().requires_grad_()
                value = (cost or default_cost)(model(x), y)
                if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                    got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise ValueError(f"cost must give a scalar that depends on the model's output, got {got}")
                torch.autograd.grad(value.sum(), x, allow_unused=True)
    if not samples:
        raise ValueError("data is empty: expected batches (x, y)")
    shapes = {name: (m.out_channels, m.in_channels // m.groups) for name, m in layers.items()}
    sums = {name: t.cpu() if t.ndim else torch.zeros(shapes[name], dtype=t.dtype) for name, t in totals.items()}
    return sums if whole_batch else {name: t / samples for name, t in sums.items()}


def default_cost(output: Any, y: Tensor) -> Tensor:
    """Returns the cost that is used if none is given: the sum of the true classes' logits, or sum(output * y).

    A y of NaN is a label that is not known, and adds nothing.
    """
    output = main_output(output)
    if output.shape == y.shape:
        return (output * y.nan_to_num()).sum()
    if output.ndim == y.ndim + 1 and not y.is_floating_point():
        return output.gather(1, y.unsqueeze(1).long()).sum()
    raise ValueError(
        f"y must be the model's output's shape {list(output.shape)}, or classes of shape "
        f"{[output.shape[0], *output.shape[2:]]}, got {list(y.shape)}: pass a cost"
    )


def main_output(output: Any) -> Any:
    """Returns what a model computes: of a dict or a sequence of outputs, the main one."""
    if isinstance(output, dict):
        return output["out"] if "out" in output else next(iter(output.values()))
    return output[0] if isinstance(output, (tuple, list)) else output


def first_batches(data: Iterable[Any], num_batches: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the first `num_batches` batches (None: all).

    Raises:
        ValueError: num_batches is below 1, or a batch is not a pair of tensors.
    """
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"num_batches must be at least 1, got {num_batches}")
    for k, batch in enumerate(data):
        if num_batches is not None and k >= num_batches:
            return
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            raise ValueError(f"data must give pairs of tensors (x, y), got {type(batch).__name__}")
        yield batch[0], batch[1]


@contextmanager
def _watched(
    layers: dict[str, Any], totals: dict[str, Tensor], measured: Callable[[Any, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Hooks the layers for a `with` block, in which every backward pass adds `measured` of a batch to `totals`."""

    def hook(name: str) -> Callable[[Any, Any, Any, Tensor], None]:
        def forward(module: Any, args: Any, kwargs: Any, y: Tensor) -> None:
            if not y.requires_grad:
                return
            x = (args[0] if args else kwargs["input"]).detach()
            # The network may overwrite a fixed layer's input. Of a learned layer autograd keeps it, and forbids that.
            x = x.clone() if isinstance(module, FixedConv) else x

            def backward(gradient: Tensor) -> None:
                if getattr(module, "pointwise", None) is not None:  # the gradient before the learned 1x1
                    gradient = torch.einsum("np...,pq->nq...", gradient, module.pointwise.detach().flatten(1))
                totals[name] = totals[name] + measured(module, x, gradient)

            y.register_hook(backward)

        return forward

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _measured(module: Any, weight: Tensor, x: Tensor, dy: Tensor, measure: Measure, whole_batch: bool) -> Tensor:
    """Sums `measure` of the weight gradients dW[n] = dy[n] times the unfolded x[n], made some samples at a time."""
    dy = as_picture(dy)
    floats = weight.numel() + module.in_channels * weight.shape[2] * dy[0, 0].numel()
    step = max(1, (_FLOATS_ON_CPU if x.device.type == "cpu" else _FLOATS_ON_GPU) // floats)
    total: Tensor | None = None
    for part, gradient in zip(x.split(step), dy.split(step), strict=True):
        columns = patches(module, part)
        columns = columns.reshape(len(part), module.groups, -1, columns.shape[-1])
        gradient = gradient.reshape(len(part), module.groups, -1, columns.shape[-1])
        found = (gradient @ columns.transpose(2, 3)).reshape(len(part), *weight.shape)
        if not whole_batch:
            found = measure(weight, found)
        found = found[0] if len(found) == 1 else found.sum(0)
        total = found if total is None else total.add_(found)
    assert total is not None
    return measure(weight, total[None])[0] if whole_batch else total


def patches(module: Any, x: Tensor) -> Tensor:
    """Returns what a layer's filters are multiplied with: (N, I K, places) of an input (N, I, ...), K taps a filter."""
    x, padding = padded(module, x)
    kernel, dilation, stride = (as_pair(n) for n in (module.kernel_size, module.dilation, module.stride))
    return F.unfold(as_picture(x), kernel, dilation, padding, stride)


def padded(module: Any, x: Tensor) -> tuple[Tensor, Any]:
    """Returns the layer's input with the padding that F.unfold cannot add, and the padding that F.unfold shall add."""
    if module.padding_mode != "zeros":
        return F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    if module.padding == "same" and not pads_like_tensorflow(module):
        return F.pad(x, module._reversed_padding_repeated_twice), 0
    if pads_like_tensorflow(module):
        return F.pad(x, same_padding(x.shape[2:], module.kernel_size, module.stride, module.dilation)), 0
    if module.padding == "valid":
        return x, 0
    return x, as_pair(module.padding, 0)
