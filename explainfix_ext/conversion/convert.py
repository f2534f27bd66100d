"""convert: every spatial Conv2d of a model becomes a FixedConv2d. revert: back to plain Conv2d."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from explainfix_ext._support.models import globs, is_spatial, left_out
from explainfix_ext._support.text import times
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.make_bank import find_initializer
from explainfix_ext.filters.random_streams import derive_seed
from explainfix_ext.filters.steering import STEERED, Steering
from explainfix_ext.nn import fixed_conv2d_same  # noqa: F401  registers itself in REPLACEMENTS
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.nn.replaceable import obstacle
from explainfix_ext.nn.swap import _unique
from explainfix_ext.nn.swap import swap as swap

from .report import ConversionReport, ConvertedLayer

Init = str | dict[str, str] | Callable[[str, nn.Conv2d], "str | FilterBank | None"]

_SPATIAL_BUT_LEARNED = (
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def convert(
    model: nn.Module,
    init: Init = "dct2",
    *,
    seed: int = 0,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    steering: Steering | None = None,
    pointwise: bool = False,
    learn_coeff: bool = False,
    plan: str = "auto",
    memory: str = "off",
    dry_run: bool = False,
    **options: Any,
) -> ConversionReport:
    """Replace every spatial Conv2d (a kernel larger than 1x1) of `model` by a FixedConv2d, in place, all or nothing.

    Bias Parameters, the keys of everything else in the state_dict, devices, dtypes, modes and hooks stay. Make the
    optimizer afterwards: the weights that it held are gone.

    Args:
        model: any module; if it is itself a Conv2d, use `FixedConv2d.from_conv2d`.
        init: a name of `initializers()`; or {glob: name}, where the first glob that matches a layer's qualified name
            wins, and a layer that none matches stays; or a callable (name, conv) -> name, FilterBank, or None to
            leave it.
        seed: each layer's own seed is derived from this and the layer's name; so convert before a wrapper such as DDP
            changes the names.
        include, exclude: globs of layer names to convert, or not to.
        steering: what `fit_steering` found, for init "guided_steer" or "svd_steer": each layer draws from the fitted
            layer that `steering.match(model)` names.
        pointwise: add a learned 1x1 after each fixed convolution that has one group: for networks without 1x1 layers.
        learn_coeff: fix the basis only, learn the coefficients.
        plan: the kernel of every layer, as FixedConv2d takes it.
        memory: a mode of `save_memory`, which is then called on the model.
        dry_run: report, and change nothing.
        **options: of `make_bank`: density, gain, shared_basis, and those of the init.

    Returns:
        What was converted and what was left, with the reason.

    Raises:
        ValueError, TypeError: unknown init or option, a bank that does not fit, a layer for which `steering` has no
            filters of its size, nothing to convert. The model is unchanged then.

    Example:
        >>> model = torchvision.models.resnet18()
        >>> len(convert(model, "dct2", density=0.1, seed=0).converted)
        17

    Source: ExplainFix 2023, section 3; pointwise: Gavrikov and Keuper 2023.
    """
    if isinstance(model, nn.Conv2d):
        raise TypeError("model must hold its convolutions, and is one itself: use FixedConv2d.from_conv2d(conv)")
    from explainfix_ext.memory.save import check_mode, save_memory  # here: that package reports on converted models

    check_mode(memory)
    choose = _chooser(init, globs(include) or ["*"], globs(exclude))
    draw = _drawer(model, steering)
    owners = Counter(id(p) for m in _unique(model) for p in m._parameters.values() if p is not None)
    report = ConversionReport()
    replacements: dict[nn.Module, FixedConv2d] = {}
    for name, module in model.named_modules():
        report.pointwise_learned += _is_learned_pointwise(module)
        if isinstance(module, FixedConv2d) or not is_spatial(module, (nn.Conv2d, *_SPATIAL_BUT_LEARNED)):
            continue
        kind = _describe(module)
        reason = obstacle(module)
        if not reason and owners[id(module.weight)] > 1:
            reason = "its weight is shared with another layer"
        chosen = None
        if not reason:
            chosen, reason = choose(name, module)
        if chosen is None:
            report.skipped.append(ConvertedLayer(name, kind, reason=reason))
            continue
        layer_seed = derive_seed(seed, name)
        mix = pointwise and module.groups == 1
        try:
            given, label = draw(name, chosen)
            replacements[module] = FixedConv2d.from_conv2d(
                module, chosen, seed=layer_seed, learn_coeff=learn_coeff, pointwise=mix, plan=plan, **given, **options
            )
        except (ValueError, TypeError) as e:
            raise type(e)(f"{name}: {e}") from e
        report.converted.append(ConvertedLayer(name, kind, label, layer_seed))
    _check_found(model, report, include, steering)
    if not dry_run:
        _warn_if_little_is_learned(report, replacements.values())
        if options.get("density", 1.0) < 1:
            _warn_if_channels_are_silent(replacements.values())
        swap(model, replacements)
        if memory != "off":
            save_memory(model, memory)
    return report


def _chooser(init: Init, include: list[str], exclude: list[str]) -> Callable[[str, nn.Module], tuple[Any, str]]:
    """(name, conv) -> (init or bank, ""), or (None, why it is left)."""
    if not isinstance(init, (str, dict)) and not callable(init):
        raise TypeError(f"init must be a name, a dict of globs to names, or a callable, got {type(init).__name__}")
    for name in init.values() if isinstance(init, dict) else [init] if isinstance(init, str) else []:
        find_initializer(name)

    def choose(name: str, conv: nn.Module) -> tuple[Any, str]:
        if reason := left_out(name, include, exclude):
            return None, reason
        if isinstance(init, str):
            return init, ""
        if isinstance(init, dict):
            return next(
                (value for glob, value in init.items() if fnmatchcase(name, glob)), None
            ), "no glob of init matches"
        return init(name, cast(nn.Conv2d, conv)), "init returned None"

    return choose


def _drawer(model: nn.Module, steering: Steering | None) -> Callable[[str, Any], tuple[dict[str, Any], str]]:
    """(name, init or bank) -> what `make_bank` needs to draw the layer's filters from `steering`, and a label."""
    if steering is not None and not isinstance(steering, Steering):
        raise TypeError(f"steering must be a Steering (fit_steering makes one), got {type(steering).__name__}")
    sources = {} if steering is None else steering.match(model)

    def draw(name: str, init: Any) -> tuple[dict[str, Any], str]:
        if not isinstance(init, str):
            return {}, "given bank"
        if steering is None or init not in STEERED:
            return {}, init
        if init != f"{steering.method}_steer":
            raise ValueError(f"init must be {steering.method}_steer, as the steering was fitted, got {init!r}")
        source = sources[name]
        if source is None:
            raise ValueError(
                f"steering has no filters of its kernel size: exclude the layer, or give it another init, "
                f'such as {{"{name}": "dct2", "*": "{init}"}}'
            )
        return {"steering": steering.layers[source]}, init if source == name else f"{init} of {source}"

    return draw


def _check_found(model: nn.Module, report: ConversionReport, include: Any, steering: Steering | None) -> None:
    """An empty conversion is most likely a mistake, unless every layer has its reason in the report. So is a steering
    that no layer draws from."""
    if not report.converted and any(isinstance(module, FixedConv2d) for module in _unique(model)):
        raise ValueError("model has no spatial Conv2d to convert: they are fixed already (revert makes them plain)")
    if not report.converted and not report.skipped:
        raise ValueError("model has no spatial Conv2d to convert")
    if not report.converted and all(layer.reason == "not included" for layer in report.skipped):
        raise ValueError(f"include must match a spatial convolution, such as {report.skipped[0].name}, got {include!r}")
    steered = any(layer.init.startswith(STEERED) for layer in report.converted)
    if steering is not None and report.converted and not steered:
        raise ValueError(f"steering is for init {' or '.join(STEERED)}, and no layer has one")


def _is_learned_pointwise(module: nn.Module) -> bool:
    pointwise = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and not is_spatial(module))
    return pointwise and bool(module.weight.requires_grad)


def _describe(module: Any) -> str:
    size = times(module.kernel_size)
    stride = f"/{module.stride[0]}" if max(module.stride) > 1 else ""
    groups = f", {module.groups} groups" if module.groups > 1 else ""
    return f"{type(module).__name__} {module.in_channels}->{module.out_channels} {size}{stride}{groups}"


def _warn_if_little_is_learned(report: ConversionReport, layers: Iterable[FixedConv2d]) -> None:
    """Fixed filters need something learned between them: depthwise and bottleneck networks have 1x1 layers."""
    full = [layer for layer in layers if layer.groups == 1 and layer.pointwise is None and layer.coeff is None]
    if len(full) > 2 * max(report.pointwise_learned - 1, 0):  # less the head
        warnings.warn(
            f"{len(full)} convolutions are now fixed with only {report.pointwise_learned} learned 1x1 or linear layers "
            f"in the network: little is left to learn. convert(..., pointwise=True) adds a learned 1x1 after each, "
            f"learn_coeff=True learns the mix of the basis functions.",
            stacklevel=3,
        )


def _warn_if_channels_are_silent(layers: Iterable[FixedConv2d]) -> None:
    """A depthwise layer has one filter a channel: where that is zero, the channel is. A network may be cut through."""
    silent = [layer for layer in layers if layer.groups == layer.in_channels > 1 and not bool(layer.bank.nonzero.all())]
    if silent:
        warnings.warn(
            f"{len(silent)} depthwise layers have zero filters, and such a channel is silent; together they may leave "
            f"no path through the network. Convert depthwise layers first, by include=, with density=1.",
            stacklevel=3,
        )
