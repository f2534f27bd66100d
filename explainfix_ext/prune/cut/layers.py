"""This module reads, zeroes and cuts the weights of a layer, whatever its class.

Rows are output channels and columns input channels, for plain, transposed, linear and fixed layers alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import is_spatial, spatial_convolutions
from explainfix_ext.filters.bank import ZERO_FILTER, FilterBank
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.prune.trace.graph import MixingLayer
from explainfix_ext.prune.trace.kinds import TRANSPOSED, why_uncuttable


def is_prunable(module: nn.Module) -> bool:
    """Says whether a module is a spatial convolution, learned or fixed, whose filters can be set to zero."""
    return is_spatial(module) and not why_uncuttable(module)


def prunable_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Returns name -> module for every spatial convolution whose filters can be set to zero."""
    return {name: module for name, module in spatial_convolutions(model).items() if is_prunable(module)}


def unprunable_layers(model: nn.Module) -> dict[str, str]:
    """Returns name -> reason for every spatial convolution whose filters cannot be set to zero."""
    return {name: reason for name, module in spatial_convolutions(model).items() if (reason := why_uncuttable(module))}


def filter_shape(module: Any) -> tuple[int, int]:
    """Returns how many filters a convolution has, or weights a linear layer: (O, I/groups)."""
    inputs, outputs = channels_of(module)
    return outputs, inputs // getattr(module, "groups", 1)


def nonzero_filters(module: Any) -> Tensor:
    """Returns (O, I/groups) bool, on the CPU: the filters of a convolution, or weights of a linear layer, not zero."""
    if isinstance(module, FixedConv):
        return module.bank.nonzero.cpu()
    weight = module.weight.detach()
    nonzero = (weight != 0).flatten(2).any(2) if weight.ndim > 2 else weight != 0
    return by_output(module, nonzero).cpu()


def by_output(module: Any, filters: Tensor) -> Tensor:
    """Brings one number for each filter, in the order of the weight's axes, into the order (O, I/groups).

    Transposed convolutions have them as (I, O/groups). The same change brings them back.
    """
    return torch.cat([part.T for part in filters.chunk(module.groups)]) if isinstance(module, TRANSPOSED) else filters


def layer_nonzero(layer: MixingLayer, module: Any) -> Tensor:
    """Returns (groups, O/groups, I/groups) bool: the filters of a layer of the graph that are not zero."""
    nonzero = module.pointwise.detach().flatten(1).cpu() != 0 if layer.part else nonzero_filters(module)
    return nonzero.reshape(layer.groups, -1, nonzero.shape[1])


def zero_filters_(module: Any, zero: Tensor) -> None:
    """Sets the filters of a layer to zero where `zero` (O, I/groups) is True."""
    if isinstance(module, FixedConv):
        zero = zero.to(module.bank.device)
        if bool((zero & module.bank.nonzero).any()):
            module.bank = _zeroed(module.bank, zero)
    else:
        weight, zero = module.weight, by_output(module, zero)
        with torch.no_grad():
            weight.masked_fill_(zero.reshape(*zero.shape, *[1] * (weight.ndim - 2)).to(weight.device), 0)


def _zeroed(bank: FilterBank, zero: Tensor) -> FilterBank:
    if bank.hadamard is not None and (kept := bank.hadamard.without(zero)) is not None:
        return dataclasses.replace(bank, hadamard=kept, recipe=None)
    bank = bank.with_coefficients()
    if bank.index is not None:
        return dataclasses.replace(bank, index=bank.index.masked_fill(zero, ZERO_FILTER), recipe=None)
    assert bank.coeff is not None
    return dataclasses.replace(bank, coeff=bank.coeff.masked_fill(zero[:, :, None], 0), recipe=None)


def cut_layer_(module: Any, inputs: Tensor | None, outputs: Tensor | None) -> None:
    """Keeps these input and output channels of a layer, by number; None keeps all."""
    groups = getattr(module, "groups", 1)
    n_in, n_out = channels_of(module)
    inputs = torch.arange(n_in) if inputs is None else inputs
    outputs = torch.arange(n_out) if outputs is None else outputs
    per_in, per_out = n_in // groups, n_out // groups
    kept_groups = (outputs // per_out).unique()
    columns = inputs[inputs // per_in == kept_groups[0]] % per_in  # the same in each group that stays
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = len(inputs), len(outputs)
    else:
        module.in_channels, module.out_channels = len(inputs), len(outputs)
        module.groups = len(kept_groups) if groups > 1 else 1
    if isinstance(module, FixedConv):
        _cut_fixed_(module, kept_groups, columns, outputs)
    elif isinstance(module, TRANSPOSED):
        rows = outputs[outputs // per_out == kept_groups[0]] % per_out
        _replace_(module, "weight", _take(_take(module.weight, 0, inputs), 1, rows))
    else:
        _replace_(module, "weight", _take(_take(module.weight, 0, outputs), 1, columns))
    if module.bias is not None:
        _replace_(module, "bias", _take(module.bias, 0, outputs))


def _cut_fixed_(module: FixedConv, groups: Tensor, columns: Tensor, outputs: Tensor) -> None:
    bank = module.bank
    if bank.hadamard is not None:
        cut = dataclasses.replace(bank, hadamard=bank.hadamard.cut(outputs, groups, columns), recipe=None)
    else:
        steering = _take(_take(bank.steering, 0, outputs), 1, columns)
        index, coeff = (steering, None) if bank.index is not None else (None, steering)
        cut = dataclasses.replace(bank, index=index, coeff=coeff, recipe=None)
    for name, seconds in (("coeff", columns), ("pointwise", outputs)):
        parameter = getattr(module, name)
        if parameter is not None:
            _replace_(module, name, _take(_take(parameter, 0, outputs), 1, seconds))
    module.bank = cut


def cut_per_channel_(module: Any, kept: Tensor) -> None:
    """Keeps these channels of a norm or PReLU."""
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.ndim == 1:
            _replace_(module, name, _take(tensor, 0, kept))
    for attribute in ("num_features", "num_parameters", "num_channels"):
        if hasattr(module, attribute):
            before = getattr(module, attribute)
            setattr(module, attribute, len(kept))
            if isinstance(module, nn.GroupNorm):
                module.num_groups = max(1, module.num_groups * len(kept) // before)
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = (len(kept),)


def cut_tensor_(model: nn.Module, name: str, axis: int, kept: Tensor) -> None:
    """Keeps these channels of a Parameter or buffer that the model's own code uses."""
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    _replace_(module, attribute, _take(getattr(module, attribute), axis, kept))


def add_to_bias_(module: Any, addition: Tensor) -> None:
    """Adds `addition` (O,) to the bias. A layer without bias gets one, learned if the layer's other Parameters are."""
    if module.bias is not None:
        with torch.no_grad():
            module.bias += addition.to(module.bias)
    else:
        others = [*module.parameters(recurse=False)]
        learned = others[0].requires_grad if others else False
        module.bias = nn.Parameter(addition.to(module.weight), learned)


def channels_of(module: Any) -> tuple[int, int]:
    """Returns the numbers of input and output channels."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.in_channels, module.out_channels


def _take(tensor: Tensor, axis: int, kept: Tensor) -> Tensor:
    cut = tensor.detach().index_select(axis, kept.to(tensor.device))
    last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return cut.contiguous(memory_format=torch.channels_last) if last else cut


def _replace_(module: Any, name: str, tensor: Tensor) -> None:
    """Puts a cut tensor in place of the whole one. A Parameter stays a Parameter, frozen if it was."""
    old = getattr(module, name)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, old.requires_grad)
    setattr(module, name, tensor)
