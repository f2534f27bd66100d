"""This module collects a layer's features, the mean of each channel over its positions, and the classes of images.

`class_purity`, `class_features`, `patterns` and `prca` call it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import check_is_module, eval_mode, globs, left_out
from explainfix_ext._support.progress import with_progress
from explainfix_ext._support.text import shown, unknown_name

from .saliency import first_batches, main_output

Data = Iterable[tuple[Tensor, Tensor]]

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish, nn.Tanh, nn.Hardtanh),
)

_GATE = re.compile("SqueezeExcit|SEModule")  # in names of classes of torchvision, timm, and this package


def chosen_layers(model: nn.Module, layers: str | Iterable[str] | None) -> dict[str, nn.Module]:
    """Returns the modules whose names match the patterns of `layers`; None: all activations after convolutions.

    Before its activation, the mean of a channel over positions says next to nothing: a filter whose sum is zero, as all
    DCT functions but the constant are, has a mean of zero on any image, but for the border. If no activation is a
    module, blocks with a convolution of their own stand for them, as their last step mostly is one.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: no module matches, or the model has no such layer.
    """
    check_is_module(model)
    if layers is None:
        names = _activations(model) or _blocks(model)
        if not names:
            raise ValueError("layers must be given: the model has no activation after a convolution")
    else:
        patterns = globs(layers)
        names = [name for name, _ in model.named_modules() if name and not left_out(name, patterns, [])]
        if not names:
            raise unknown_name("layer", ", ".join(patterns), [name for name, _ in model.named_modules() if name])
    return {name: model.get_submodule(name) for name in names}


def _activations(model: nn.Module) -> list[str]:
    """Returns the names of activations after convolutions.

    One after a Linear has no channels, or has them last; in squeeze-and-excitation it sees the mean of the image alone.
    """
    left: set[nn.Module] = set()
    for parent in model.modules():
        children = [*parent.children()]
        left.update(children if _GATE.search(type(parent).__name__) else [])
        left.update(b for a, b in pairwise(children) if isinstance(a, nn.Linear))
    return [n for n, m in model.named_modules() if isinstance(m, _ACTIVATIONS) and m not in left]


def _blocks(model: nn.Module) -> list[str]:
    """Returns the names of modules, other than sequences, with a convolution among their children."""
    blocks = [(n, m) for n, m in model.named_modules() if n and not isinstance(m, nn.Sequential)]
    return [name for name, block in blocks if any(isinstance(child, nn.Conv2d) for child in block.children())]


def one_layer(model: nn.Module, layer: str) -> nn.Module:
    """Returns the module of this name.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: it has no module of this name.
    """
    check_is_module(model)
    modules = dict(model.named_modules())
    if not isinstance(layer, str) or layer not in modules:
        raise unknown_name("layer", layer, filter(None, modules))
    return modules[layer]


@contextmanager
def hooked(modules: dict[str, nn.Module], see: Callable[[str, Any, Any], Any]) -> Iterator[None]:
    """Calls `see(name, arguments, output)` after each call of a module, for a `with` block.

    What it returns, unless it is None, replaces the output.
    """
    handles = [m.register_forward_hook(lambda _m, args, y, name=n: see(name, args, y)) for n, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_features(
    model: nn.Module,
    data: Data,
    modules: dict[str, nn.Module],
    num_batches: int | None,
    progress: str = "",
    *,
    skip: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """Runs the model in eval mode and averages each channel of each module's output over positions.

    Of a module that runs several times the last output counts: that is the end of a residual block.

    Args:
        modules: name -> module of `model`, with an output of (N, K) or (N, K, H, W).
        progress: what the bar over the batches says; "" shows none.
        skip: leave out modules that do not run in eval mode, such as those of auxiliary outputs.

    Returns:
        Name -> (N, K) float64 on the CPU, and all targets, on the CPU.

    Raises:
        ValueError: data is empty, an output has another shape, a mean is not finite, or a module does not run.
    """
    latest: dict[str, Tensor] = {}
    means: dict[str, list[Tensor]] = {name: [] for name in modules}
    targets = []

    def see(name: str, arguments: Any, output: Any) -> None:
        check_features(name, output)
        latest[name] = output.detach().flatten(2).double().mean(2) if output.ndim == 4 else output.detach().double()

    with eval_mode(model), torch.no_grad(), hooked(modules, see):
        for x, y in batches(model, data, num_batches, progress):
            latest.clear()
            model(x)
            for name, mean in latest.items():
                means[name].append(mean.cpu())
            targets.append(y.cpu())
    if not targets:
        raise ValueError("data is empty: expected batches (x, y)")
    for name, parts in means.items():
        if len(parts) < len(targets) and not (skip and not parts):
            raise ValueError(f"layer {name} did not run")
    features = {name: torch.cat(parts) for name, parts in means.items() if parts}
    for name, mean in features.items():
        if not bool(torch.isfinite(mean).all()):
            raise ValueError(f"outputs of layer {name} must be finite, got NaN or infinity")
    return features, torch.cat(targets)


def check_features(name: str, output: Any) -> None:
    """Raises ValueError unless the output of layer `name` is a tensor (N, K) or (N, K, H, W)."""
    if not isinstance(output, Tensor) or output.ndim not in (2, 4):
        got = list(output.shape) if isinstance(output, Tensor) else shown(output)
        raise ValueError(f"layer {name} must give (N, K) or (N, K, H, W), got {got}")


def batches(model: nn.Module, data: Data, num_batches: int | None, progress: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the first batches on the model's device, with a bar of the name `progress` unless it is ""."""
    device = next(iter(model.parameters()), torch.empty(0)).device
    for x, y in first_batches(with_progress(data, progress, num_batches) if progress else data, num_batches):
        yield x.to(device), y.to(device)


def indicators(y: Tensor) -> Tensor:
    """Returns whether each image is of each class, (N, classes) float64: 1, 0, or NaN where it is not known.

    Args:
        y: classes (N,), integers; or 0, 1 or NaN (N, labels), any number of which may be 1. One label makes two
            classes: without it, and with it.

    Raises:
        ValueError: y has another shape, or other values.
    """
    if y.ndim == 1 and not y.is_floating_point() and bool((y >= 0).all()):
        return nn.functional.one_hot(y.long()).double()
    if y.ndim == 2 and bool(((y == 0) | (y == 1) | y.isnan()).all()):
        given = y.double()
        return torch.cat([1 - given, given], 1) if y.shape[1] == 1 else given
    raise ValueError(f"y must be classes (N,) from 0, or 0, 1 or NaN (N, labels), got {y.dtype} of {list(y.shape)}")


def one_class_each(y: Tensor) -> Tensor:
    """Returns the class (N,) of each image, for targets of which every image has exactly one.

    Raises:
        ValueError: y is anything else.
    """
    given = indicators(y)
    if not bool((given.sum(1) == 1).all()):
        raise ValueError("y must say one class for each image, got images with several labels, none, or unknown ones")
    return given.argmax(1)


def class_logits(output: Any) -> Tensor:
    """Returns logits (N, classes) of the main output; one logit z for two classes becomes (-z, z).

    Raises:
        ValueError: the output is no tensor (N, outputs).
    """
    output = main_output(output)
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = list(output.shape) if isinstance(output, Tensor) else shown(output)
        raise ValueError(f"model must give logits (N, classes), got {got}")
    return torch.cat([-output, output], 1) if output.shape[1] == 1 else output


def last_linear(model: nn.Module) -> nn.Linear:
    """Returns the last nn.Linear of a model.

    Raises:
        ValueError: there is none.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("model must have an nn.Linear as its last layer, got none")
    return linear[-1]


def head_batches(
    model: nn.Module, head: nn.Linear, data: Data, num_batches: int | None, progress: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Runs the model in eval mode, and yields of each batch the head's inputs (N, K) and classes (N,).

    Inputs are float64, classes int64, both on the CPU.

    Raises:
        ValueError: data is empty, the model's output is not the head's, or y does not say one of its classes for each
            image.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    empty = True
    with eval_mode(model), torch.no_grad(), hooked({"": head}, lambda _, x, y: seen.append((x[0], y.clone()))):
        for x, y in batches(model, data, num_batches, progress):
            seen.clear()
            logits = class_logits(model(x))
            if not seen or not torch.equal(class_logits(seen[-1][1]), logits):
                raise ValueError("model must give the output of its last nn.Linear, got another")
            classes = one_class_each(y)
            if int(classes.max()) >= logits.shape[1]:
                raise ValueError(f"y must be below the model's {logits.shape[1]} classes, got {int(classes.max())}")
            empty = False
            yield seen[-1][0].cpu().double(), classes.cpu()
    if empty:
        raise ValueError("data is empty: expected batches (x, y)")
