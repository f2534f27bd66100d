"""convert makes every spatial Conv1d and Conv2d of a model a fixed layer. (`revert`, in nn/swap.py, undoes it.)"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from explainfix_ext._support.models import attributes_with_parameters, check_is_module, globs, is_spatial, left_out
from explainfix_ext._support.text import times, unknown_name
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.choose_init import AUTO, check_init
from explainfix_ext.filters.make_bank import option_names
from explainfix_ext.filters.random_streams import derive_seed
from explainfix_ext.filters.steering import STEERED, Steering
from explainfix_ext.memory.save import check_mode, save_memory
from explainfix_ext.nn import fixed_conv2d_same  # noqa: F401  (this import lets FixedConv2d replace timm's Conv2dSame)
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.fixed_conv1d import FixedConv1d
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.nn.replaceable import CAN_BE_FIXED, REPLACEABLE, obstacle
from explainfix_ext.nn.swap import become

from .report import ConversionReport, ConvertedLayer

Init = str | dict[str, str] | Callable[[str, Any], "str | FilterBank | None"]

# These start from a layer's own weight, of any size. Of a 1x1 others' functions of space would be one number.
_FROM_WEIGHT = ("unchanged", "fill_zero")

_ENOUGH_INPUTS = 4  # of an output: from here on it may lose filters; stems have one or three, depthwise layers one
# Convolutions that cannot be fixed: the report lists them as left.
_NOT_FIXABLE = (nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def convert(
    model: nn.Module,
    init: Init = AUTO,
    *,
    seed: int = 0,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    steering: Steering | None = None,
    pointwise: bool = False,
    include_pointwise: bool = False,
    learn_coeff: bool = False,
    plan: str = "auto",
    memory: str = "off",
    dry_run: bool = False,
    **options: Any,
) -> ConversionReport:
    """Makes every spatial Conv2d (a kernel larger than 1x1) of `model` a FixedConv2d, and such a Conv1d a FixedConv1d,
    in place, all or nothing.

    A layer stays the same object, so that a list, closure or variable that has it has the fixed layer. Bias Parameters,
    the keys of everything else in the state_dict, devices, dtypes, modes and hooks stay. Make the optimizer afterwards,
    because the weights are no longer part of the model. As torch does, this overlooks modules that are not registered.

    Args:
        model: any module; if it is itself a convolution, use `FixedConv2d.from_conv2d`, or `from_conv1d`.
        init: "auto", which picks each layer's as FixedConv2d does, and the report says which; or a name of
            `initializers()`; or {glob: name}, where the first glob that matches a layer's qualified name
            counts, and a layer that matches none is left; or a callable (name, conv) that returns a name, a FilterBank,
            or None to leave the layer.
        seed: each layer's own seed is derived from this and the layer's name. Convert before a wrapper such as DDP
            changes the names.
        include, exclude: globs of names of layers to convert, or not to convert.
        steering: what `fit_steering` found, for init "guided_steer", "svd_steer" or "dct_steer": each layer draws from
            the fitted layer that `steering.match(model)` names.
        pointwise: add a learned 1x1 after each fixed convolution that has one group; for networks without 1x1 layers.
        include_pointwise: fix 1x1 convolutions, too, so that no convolution learns and `fit_head` is all the training.
            They take none of the options. If `init` is a name, theirs is "auto", mostly "hadamard", an orthogonal mix
            in O(log C); or it is "unchanged" or "fill_zero", and theirs as well. Exclude a head that is a 1x1.
        learn_coeff: fix only the basis, and learn the coefficients.
        plan: the kernel of every layer, as FixedConv2d takes it.
        memory: a mode of `save_memory`, which is then called on the model.
        dry_run: return the report, and change nothing.
        **options: of `make_bank`: density, gain, shared_basis, and those of the init. Density is that of layers of at
            least 4 inputs a group. Stems and depthwise layers keep all their filters: their channels have one or a few,
            and would be silent.

    Returns:
        A report of what was converted, and what was left and why.

    Raises:
        ValueError, TypeError: `model` is no nn.Module, an init or option is unknown, a bank does not fit, `steering`
            has no filters of a layer's kernel size, there is nothing to convert, or 1x1 layers are to be fixed and
            learned at once. The model is then unchanged.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> len(convert(model, "dct2", density=0.1, seed=0).converted)
        17

        The equivalent PyTorch, which computes the same and keeps every weight and input:

        >>> plain = torchvision.models.resnet18()
        >>> for name, conv in model.named_modules():
        ...     if isinstance(conv, FixedConv):
        ...         plain.get_submodule(name).weight = nn.Parameter(conv.weight, requires_grad=False)
        >>> _ = plain.load_state_dict(model.state_dict(), strict=False)
        >>> x = torch.randn(2, 3, 64, 64)
        >>> bool((model(x) - plain(x)).norm() < 1e-4 * plain(x).norm())
        True

    Source: ExplainFix 2023, section 3; pointwise: Gavrikov and Keuper 2023; 1x1 that are fixed: Jeon and Kim 2019.
    """
    check_is_module(model)
    if isinstance(model, REPLACEABLE):
        method = "FixedConv1d.from_conv1d" if isinstance(model, nn.Conv1d) else "FixedConv2d.from_conv2d"
        raise TypeError(f"model must hold its convolutions, and is one itself: use {method}(conv)")
    check_mode(memory)
    _check_names(options)
    if include_pointwise and (pointwise or learn_coeff):
        raise ValueError(
            "include_pointwise fixes the 1x1 layers: leave out pointwise and learn_coeff, which learn some"
        )
    choose = _chooser(model, init, globs(include) or ["*"], globs(exclude))
    draw = _drawer(model, steering)
    report = ConversionReport()
    replacements: dict[nn.Module, FixedConv] = {}
    for name, module in model.named_modules():
        spatial = is_spatial(module, (*REPLACEABLE, *_NOT_FIXABLE))
        fixable = spatial or (include_pointwise and isinstance(module, REPLACEABLE) and max(module.kernel_size) == 1)
        if isinstance(module, FixedConv) or not fixable:
            report.pointwise_learned += _is_learned_pointwise(module)
            continue
        kind = _describe(module)
        chosen, reason = choose(name, module)
        if chosen is None:
            report.skipped.append(ConvertedLayer(name, kind, reason=reason))
            report.pointwise_learned += _is_learned_pointwise(module)
            continue
        fixed_class = FixedConv1d if isinstance(module, nn.Conv1d) else FixedConv2d
        layer_seed, mix = derive_seed(seed, name), pointwise and module.groups == 1
        try:
            source, label = draw(name, chosen)
            source |= _of_layer(options, module) if spatial else {}
            replacements[module] = fixed = fixed_class._from_conv(
                module, chosen, seed=layer_seed, learn_coeff=learn_coeff, pointwise=mix, plan=plan, **source
            )
        except (ValueError, TypeError) as e:
            raise type(e)(f"{name}: {e}") from e
        if label == AUTO and (recipe := fixed._held.bank.recipe) is not None:
            label = recipe.init
        report.converted.append(ConvertedLayer(name, kind, label, layer_seed))
        report.pointwise_learned += mix
        report.pointwise_fixed += not spatial
        if spatial and module.stride == module.kernel_size:
            report.patches += (name,)
    _check_found(model, report, include, steering)
    if dry_run:
        return report
    if not include_pointwise:
        _warn_if_little_is_learned(report, replacements.values())
    _warn_if_density_does_nothing(options, replacements.values())
    become(replacements)
    if memory != "off":
        save_memory(model, memory)
    return report


def _check_names(options: dict[str, Any]) -> None:
    """Raises ValueError for an option that neither convert nor any init takes: most likely it is misspelt."""
    own = [name for name in inspect.signature(convert).parameters if name not in ("model", "options")]
    known = [*own, *option_names()]
    for name in options:
        if name not in known:
            raise unknown_name("option of convert", name, known)


def _chooser(
    model: nn.Module, init: Init, include: list[str], exclude: list[str]
) -> Callable[[str, nn.Module], tuple[Any, str]]:
    """Makes a function that chooses for a layer (name, module) its init or bank; or None, and why it is left."""
    if not isinstance(init, (str, dict)) and not callable(init):
        raise TypeError(f"init must be a name, a dict of globs to names, or a callable, got {type(init).__name__}")
    for name in init.values() if isinstance(init, dict) else [init] if isinstance(init, str) else []:
        check_init(name)
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    held = attributes_with_parameters(model)

    def choose(name: str, module: Any) -> tuple[Any, str]:
        if reason := obstacle(module):
            return None, reason
        if owners[id(module.weight)] > 1:
            return None, "its weight is shared with another layer"
        if attribute := held.get(module.weight):
            return None, f"its weight is also in {attribute}, which would go on using it"
        if reason := left_out(name, include, exclude):
            return None, reason
        if isinstance(init, str):
            return init if is_spatial(module) or init in _FROM_WEIGHT else AUTO, ""
        if isinstance(init, dict):
            names = (value for glob, value in init.items() if fnmatchcase(name, glob))
            return next(names, None), "no glob of init matches"
        return init(name, module), "init returned None"

    return choose


def _drawer(model: nn.Module, steering: Steering | None) -> Callable[[str, Any], tuple[dict[str, Any], str]]:
    """Makes a function (name, init or bank) that returns options of `make_bank`, and a label for the report.

    The options hold the statistics to draw the layer's filters from, if its init draws from `steering`; else none.
    """
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
    """Raises ValueError if nothing is converted and the report does not say why, or if no layer draws from `steering`.

    Either is most likely a mistake of the caller.
    """
    if not report.converted and any(isinstance(module, FixedConv) for module in model.modules()):
        raise ValueError(
            f"model has no spatial {CAN_BE_FIXED} to convert: they are fixed already (revert makes them plain)"
        )
    if not report.converted and not report.skipped:
        raise ValueError(f"model has no spatial {CAN_BE_FIXED} to convert")
    if not report.converted and all(layer.reason == "not included" for layer in report.skipped):
        raise ValueError(f"include must match a spatial convolution, such as {report.skipped[0].name}, got {include!r}")
    drawn = any(layer.init.startswith(STEERED) for layer in report.converted)
    if steering is not None and report.converted and not drawn:
        raise ValueError(f"steering is for init {' or '.join(STEERED)}, and no layer has one")


def _is_learned_pointwise(module: nn.Module) -> bool:
    pointwise = isinstance(module, nn.Linear) or (isinstance(module, REPLACEABLE) and not is_spatial(module))
    return pointwise and bool(module.weight.requires_grad)


def _describe(module: Any) -> str:
    size = times(module.kernel_size)
    stride = f"/{module.stride[0]}" if max(module.stride) > 1 else ""
    groups = f", {module.groups} groups" if module.groups > 1 else ""
    return f"{type(module).__name__} {module.in_channels}->{module.out_channels} {size}{stride}{groups}"


def _warn_if_little_is_learned(report: ConversionReport, layers: Iterable[FixedConv]) -> None:
    """Warns if there is little that learns between fixed filters, unlike in depthwise and bottleneck networks."""
    full = [layer for layer in layers if layer.groups == 1 and layer.pointwise is None and layer.coeff is None]
    if len(full) > 2 * max(report.pointwise_learned - 1, 0):  # one of them is the classifier at the end
        warnings.warn(
            f"{len(full)} convolutions are now fixed with only {report.pointwise_learned} learned 1x1 or linear layers "
            f"in the network: little is left to learn. pointwise=True (explainfix train: --pointwise) adds a learned "
            f"1x1 after each, learn_coeff=True (--learn-coeff) learns the mix of the basis functions.",
            stacklevel=3,
        )


def _of_layer(options: dict[str, Any], conv: Any) -> dict[str, Any]:
    """Returns the options for a layer: of few inputs it keeps all filters."""
    few = conv.in_channels // conv.groups < _ENOUGH_INPUTS
    return options | {"density": 1.0} if few and 0 < options.get("density", 1.0) < 1 else options


def _warn_if_density_does_nothing(options: dict[str, Any], layers: Iterable[FixedConv]) -> None:
    density = options.get("density", 1.0)
    if density < 1 and all(layer.in_channels // layer.groups < _ENOUGH_INPUTS for layer in layers):
        warnings.warn(
            f"density={density} leaves every filter: no layer has {_ENOUGH_INPUTS} inputs a group, and stems and "
            f"depthwise layers keep all of theirs.",
            stacklevel=3,
        )
