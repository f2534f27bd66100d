"""fit_saab makes filters from data, layer by layer, without labels and gradients; `convert` takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext._support.layout import as_pair
from explainfix_ext._support.models import check_is_module, globs, left_out, on_a_copy, spatial_convolutions
from explainfix_ext._support.progress import with_progress
from explainfix_ext.explain.features import batches
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.random_streams import derive_seed
from explainfix_ext.filters.registry import Layer
from explainfix_ext.filters.saab import joint_bank, spatial_bank
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.replaceable import obstacle

from .moments import Moments

MODES = ("spatial", "joint")
PATCHES = 200_000  # of a layer, at most: their covariance is known to a percent by then
LARGEST = 2048  # numbers of a patch of mode "joint", whose covariance takes the square of it


def fit_saab(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    mode: str = "spatial",
    *,
    energy: float = 1.0,
    num_batches: int = 10,
    seed: int = 0,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    progress: bool = False,
) -> dict[str, FilterBank]:
    """Makes filters for each spatial layer from the principal axes of its own input patches (Saab).

    A patch is what a filter sees, padding apart. Its mean is one function, the constant; the principal axes of patches
    without their means are the others. Layers are fitted in the order in which they run, on a copy of the model: each
    sees what the fitted layers before it make of the data, with BatchNorm by each batch. The model is not changed, and
    labels are not used.

    Args:
        model: any network, with FixedConv2d layers or before `convert`.
        data: batches (x, y), such as a DataLoader; y is not used.
        mode: "spatial": a layer's functions are of single channels, K x K, mostly close to the DCT, and its filters are
            normal mixes of them, which vary as the patches do. Or "joint", for small networks without 1x1 layers: an
            output is one function of all channels: the mean, then +f1, -f1, +f2, -f2, ... of norm 1, then normal mixes
            of these; layers of several groups are as in mode "spatial".
        energy: share of the patches' variance that the functions of mode "spatial" must have, in (0, 1]. Fewer
            functions make filters of low rank, hence fast.
        num_batches: how many batches to use, the first ones; of each layer 200,000 patches at most.
        seed: of the mixes and of the choice of patches; each layer's own is derived from this and its name.
        include, exclude: globs of names of layers to fit, or not to fit.
        progress: show a bar over the layers on stderr (needs rich).

    Returns:
        Name -> FilterBank of every layer that runs and that `convert` could fix. `convert` takes them as
        `lambda name, conv: banks.get(name)`, a FixedConv2d as `layer.bank = banks[name]`. They have no recipe, so a
        checkpoint stores them whole.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: an argument is out of range, there is no layer to fit, data is empty, or a layer's input does not
            vary, is not finite, or has patches of more than 2,048 numbers in mode "joint".
        ImportError: progress=True, and rich is not installed.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
        >>> banks = fit_saab(model, [(torch.rand(20, 1, 12, 12), torch.zeros(20))])
        >>> len(convert(model, lambda name, conv: banks.get(name)).converted)
        2

        The equivalent PyTorch, for the strongest function of a first layer after the constant one, up to its sign:

        >>> x = torch.rand(20, 1, 12, 12, dtype=torch.float64)
        >>> function = fit_saab(model[0:1].double(), [(x, x)], "joint")["0"].weight(x.dtype)[1].flatten()
        >>> patches = F.unfold(x, 3).mT.flatten(0, 1)
        >>> patches = patches - patches.mean(1, keepdim=True)
        >>> axis = torch.linalg.svd(patches - patches.mean(0), full_matrices=False).Vh[0]
        >>> torch.allclose((function @ axis).abs(), torch.ones_like(axis[0]))
        True

    Source: Kuo et al., Interpretable Convolutional Neural Networks via Feedforward Design (2019), but for their bias,
    which keeps ReLU idle; axes of single channels: Chen et al., PixelHop++ (2020).
    """
    _check(model, mode, energy)
    given = [x for x, _ in batches(model, data, num_batches, "")]
    if not given:
        raise ValueError("data is empty: expected batches (x, y)")
    banks: dict[str, FilterBank] = {}
    with on_a_copy(model) as copied, torch.no_grad():
        _normalise_by_batch(copied)
        layers = _in_order(copied, _chosen(copied, include, exclude), given[0])
        for name in with_progress(list(layers), "fit saab", None) if progress else layers:
            layer_seed = derive_seed(seed, name)
            try:
                banks[name] = _fit(copied, layers[name], given, mode, energy, layer_seed)
            except ValueError as e:
                raise ValueError(f"{name}: {e}") from None
            _set_filters(layers[name], banks[name])
    return banks


def _check(model: nn.Module, mode: str, energy: float) -> None:
    check_is_module(model)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy}")


def _normalise_by_batch(model: nn.Module) -> None:
    """Puts BatchNorm layers, whose statistics are of other filters, into training mode, and all else into eval mode."""
    for module in model.eval().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()


def _chosen(model: nn.Module, include: Any, exclude: Any) -> dict[str, Any]:
    """Returns the layers to fit, by name: those that are fixed, or that `convert` could fix."""
    include, exclude = globs(include) or ["*"], globs(exclude)
    convs = spatial_convolutions(model)
    able = {name: conv for name, conv in convs.items() if isinstance(conv, FixedConv) or not obstacle(conv)}
    if not able:
        raise ValueError("model has no spatial Conv2d to fit")
    chosen = {name: conv for name, conv in able.items() if not left_out(name, include, exclude)}
    if not chosen:
        raise ValueError(f"include and exclude must leave a spatial convolution, such as {next(iter(able))}")
    return chosen


def _in_order(model: nn.Module, layers: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """Returns those layers that run, in the order of their first calls."""
    calls: list[str] = []
    handles = [
        conv.register_forward_pre_hook(lambda _, __, name=name: calls.append(name)) for name, conv in layers.items()
    ]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: layers[name] for name in calls}


class _Reached(Exception):
    """Ends a run of the model where the input of a layer is there."""


def _inputs_of(model: nn.Module, conv: Any, given: list[Tensor]) -> Iterator[Tensor]:
    """Yields what the layer gets at its first call, for each batch; what runs after it does not run."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        seen.append(arguments[0] if arguments else named["input"])
        raise _Reached

    handle = conv.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for x in given:
            try:
                model(x)
            except _Reached:
                yield seen.pop()
    finally:
        handle.remove()


def _fit(model: nn.Module, conv: Any, given: list[Tensor], mode: str, energy: float, layer_seed: int) -> FilterBank:
    """Makes the bank of one layer."""
    joint = mode == "joint" and conv.groups == 1
    size = math.prod(conv.kernel_size) * (conv.in_channels if joint else 1)
    if size > LARGEST:
        raise ValueError(f'mode "joint" takes patches of {LARGEST} numbers at most, got {size}: exclude it')
    generator = torch.Generator().manual_seed(layer_seed % 2**32)
    moments = Moments(size)
    for x in _inputs_of(model, conv, given):
        moments.add(_patches(x, conv, joint, PATCHES // len(given), generator))
    covariance = moments.covariance
    variance = float(covariance.diagonal().mean())
    if not 0 < variance < math.inf:
        raise ValueError(f"its input must be finite and vary over the data, got a mean variance of {variance:g}")
    shape = (conv.out_channels, conv.in_channels // conv.groups, as_pair(conv.kernel_size))
    layer = Layer(*shape, layer_seed, conv.groups)
    return joint_bank(layer, covariance) if joint else spatial_bank(layer, covariance, energy)


def _patches(x: Tensor, conv: Any, joint: bool, most: int, generator: torch.Generator) -> Tensor:
    """Returns patches of x (..., C, H, W), of all channels (n, C kh kw) or of single ones (n, kh kw); `most` random
    ones if there are more. They lie within x, unless x is smaller than the kernel."""
    dilation, kernel = as_pair(conv.dilation), as_pair(conv.kernel_size)
    height, width = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    x = x.unsqueeze(-2) if isinstance(conv, nn.Conv1d) else x
    lacking = [max(0, width - x.shape[-1]), max(0, height - x.shape[-2])]
    x = F.pad(x, [part for n in lacking for part in (n // 2, n - n // 2)])
    windows = x.unfold(-2, height, 1).unfold(-2, width, 1)[..., :: dilation[0], :: dilation[1]]
    windows = windows.movedim(-5, -3) if joint else windows
    places = windows.shape[: -3 if joint else -2]
    count = math.prod(places)
    if count <= most:
        return windows.reshape(count, -1)
    chosen = torch.randint(count, (most,), generator=generator).to(x.device)
    return windows[torch.unravel_index(chosen, places)].flatten(1)


def _set_filters(conv: Any, bank: FilterBank) -> None:
    if isinstance(conv, FixedConv):
        conv.bank = bank
    else:
        conv.weight.data = bank.weight(conv.weight.dtype, conv.weight.device).reshape(conv.weight.shape)
