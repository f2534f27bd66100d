"""relevance says where in an image, and by which channels, a network found its answer.

It is layer-wise relevance propagation by the rules of zennit, an optional library, on a plain copy of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import spatial_convolutions
from explainfix_ext._support.text import shown, table_lines, unknown_name

from .calls import calls_of, gradients
from .canonical import ProportionalRules, fold_norms
from .explained_output import Target, explained_part, images_on
from .plain import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GRADIENT = "gradient"
_WITHOUT_RULE = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.InstanceNorm2d, nn.MultiheadAttention)


@dataclass(frozen=True, eq=False)
class Relevance:
    """Relevance says how much each pixel, and each channel of layers, adds to an output; `relevance` makes it.

    `print(relevance)` shows a table; `relevance.plot()` draws the heat maps.

    Attributes:
        heat: (N, H, W), the relevance of each pixel, summed over the image's channels; positive speaks for the target.
        by_layer: name of a spatial convolution -> (N, O), the relevance of each of its output channels.
        explained: (N,), the explained output: the target's logit. Without biases, and by rules that conserve relevance,
            `heat.sum((1, 2))` is this.
        image: (N, H, W), the images, averaged over their channels.
        composite: the rules' name.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        >>> found = relevance(net, torch.rand(2, 3, 8, 8), 1, composite="gradient")
        >>> found.heat.shape, found.by_layer["0"].shape
        (torch.Size([2, 8, 8]), torch.Size([2, 8]))
    """

    heat: Tensor
    by_layer: dict[str, Tensor]
    explained: Tensor
    image: Tensor
    composite: str

    def __str__(self) -> str:
        rows = [("layer", "channels", "strongest, by mean relevance")]
        for name, found in self.by_layer.items():
            mean = found.mean(0)
            best = mean.topk(min(3, len(mean))).indices.tolist()
            rows.append((name or "(model)", str(len(mean)), ", ".join(f"{k} ({mean[k]:.3g})" for k in best)))
        whole, out = float(self.heat.sum()), float(self.explained.sum())
        last = f"{self.composite}: the heat maps add up to {whole:.4g}, the explained outputs to {out:.4g}"
        return "\n".join([*table_lines(rows), last])

    def plot(self) -> Figure:
        """Draws each image beside its heat map, red where it speaks for the target; this needs matplotlib."""
        from .plot_maps import plot_maps  # here, because matplotlib is optional

        return plot_maps(self.image, {self.composite: self.heat})


def relevance(
    model: nn.Module,
    x: Tensor,
    target: Target,
    composite: Any = "epsilon_plus_flat",
    *,
    layer: str | None = None,
    channels: Sequence[int] | None = None,
) -> Relevance:
    """Computes how much each pixel of images speaks for the target, by layer-wise relevance propagation (LRP).

    zennit's rules run on `plain(model)`, in which a BatchNorm is folded into the layer before it, and sums, means and
    products that are no modules follow zennit's rule Norm: the same as its canonizers for ResNet do, for any model.
    There are no rules for attention and for norms of each image, such as LayerNorm: a warning names them. `print`
    compares the sum of the heat maps with the output.

    Args:
        model: learned, frozen, fixed or any mix. It is not changed.
        x: (N, C, H, W) floating.
        target: classes (N,), or one class for all images; (N, H, W) for segmentation; or floating, of the output's
            shape, for sum(output * target).
        composite: the name of a composite of zennit, such as "epsilon_plus", or an instance of one; "gradient" for x *
            dc/dx, which needs no zennit.
        layer: name of a module whose channels are asked for; with `channels`.
        channels: the heat is that part of the relevance that passes through these outputs of `layer`. Parts of disjoint
            channels add up: those of all channels to the whole, if no path leads around the layer; with a skip
            connection, to what passes through the layer's branch.

    Returns:
        Relevance, in x's dtype, on the model's device. `by_layer` is that of the whole, also with channels.

    Raises:
        TypeError, ValueError: an argument does not fit; the message says what was expected and what came.
        ImportError: zennit is not installed, and the composite is not "gradient".

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, "dct2", seed=0)
        >>> x = torch.rand(2, 3, 64, 64)
        >>> found = relevance(model, x, torch.tensor([0, 1]), "gradient", layer="layer3", channels=range(128))
        >>> found.heat.shape, found.by_layer["layer1.0.conv1"].shape
        (torch.Size([2, 64, 64]), torch.Size([2, 64]))

        The equivalent PyTorch, for composite="gradient":

        >>> layers = FixedConv2d(3, 8, 3, seed=0), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        >>> net, x = nn.Sequential(*layers), torch.rand(2, 3, 8, 8, requires_grad=True)
        >>> net(x)[:, 3].sum().backward()
        >>> torch.allclose(relevance(net, x, 3, "gradient").heat, (x * x.grad).sum(1), atol=1e-6)
        True

    Source: LRP: Bach et al. 2015; zennit: Anders et al. 2021; channels as concepts (CRP): Achtibat et al. 2023.
    """
    rules = None if isinstance(composite, str) and composite == _GRADIENT else _composite(composite)
    copied = plain(model).requires_grad_(False)
    images = images_on(copied, x)
    asked = _asked_for(copied, layer, channels)
    layers = spatial_convolutions(copied)
    if rules is not None:
        _warn_of(copied)
        fold_norms(copied, images)
    with nullcontext() if rules is None else rules.context(copied), torch.enable_grad():
        with calls_of(layers | asked) as calls, nullcontext() if rules is None else ProportionalRules():
            given = copied(images)
        output, counts = explained_part(given, target)
        values = [images, *(call.output for call in calls)]
        flows = gradients([output], [counts if rules is None else counts * output.detach()], values)
        if channels is not None:
            at = [i for i, call in enumerate(calls, 1) if call.name == layer]
            masked = [flows[i] * _mask(values[i], layer, channels) for i in at]
            flows[0] = gradients([values[i] for i in at], masked, [images])[0]
    if rules is None:
        flows = [value.detach() * gradient for value, gradient in zip(values, flows, strict=True)]
    by_layer: dict[str, Tensor] = {}
    for call, flow in zip(calls, flows[1:], strict=True):
        if call.name in layers:
            by_layer[call.name] = by_layer.get(call.name, torch.zeros((), dtype=x.dtype)) + flow.flatten(2).sum(2)
    explained = (counts * output.detach()).flatten(1).sum(1)
    name = composite if isinstance(composite, str) else type(composite).__name__
    return Relevance(flows[0].sum(1), by_layer, explained, images.detach().mean(1), name)


def _composite(composite: Any) -> Any:
    """Returns zennit's composite of a name, or the one given.

    Raises:
        ImportError: zennit is not installed.
        ValueError: there is no composite of that name, or it needs arguments.
        TypeError: it is something else.
    """
    try:
        from zennit.composites import COMPOSITES
        from zennit.core import Composite
    except ImportError:
        raise ImportError('relevance needs zennit: pip install "explainfix_ext[explain]"') from None
    if isinstance(composite, Composite):
        return composite
    if not isinstance(composite, str):
        raise TypeError(f'composite must be a name, a composite of zennit or "{_GRADIENT}", got {shown(composite)}')
    if composite not in COMPOSITES:
        raise unknown_name("composite", composite, [*COMPOSITES, _GRADIENT])
    try:
        return COMPOSITES[composite]()
    except TypeError:
        kind = COMPOSITES[composite]
        raise ValueError(
            f"composite {composite!r} needs arguments: pass {kind.__module__}.{kind.__name__}(...)"
        ) from None


def _warn_of(model: nn.Module) -> None:
    """Warns of modules through which relevance is not conserved."""
    kinds = sorted({type(m).__name__ for m in model.modules() if isinstance(m, _WITHOUT_RULE)})
    if kinds:
        warnings.warn(f"no rule divides relevance at {', '.join(kinds)}: what passes is no relevance", stacklevel=3)


def _asked_for(model: nn.Module, layer: str | None, channels: Sequence[int] | None) -> dict[str, nn.Module]:
    """Returns the layer whose channels are asked for, by its name; none if none are."""
    if (layer is None) != (channels is None):
        raise ValueError(f"layer and channels must be given together, got layer={layer!r}, channels={shown(channels)}")
    if layer is None:
        return {}
    modules = dict(model.named_modules())
    if layer not in modules:
        raise unknown_name("layer", layer, modules)
    return {layer: modules[layer]}


def _mask(y: Tensor, layer: str | None, channels: Sequence[int]) -> Tensor:
    """Returns ones at the channels of a layer's output y (N, O, ...), and zeros at the others: (O, 1, ...)."""
    count, chosen = y.shape[1], list(channels)
    if any(not isinstance(k, int) or not 0 <= k < count for k in chosen):
        raise ValueError(f"channels of {layer} must be integers from 0 to {count - 1}, got {shown(chosen)}")
    mask = y.new_zeros(count, *[1] * (y.dim() - 2))
    mask[chosen] = 1
    return mask
