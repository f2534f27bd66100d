"""This module fills filters that are zero and stay, for `channelprune(fill=...)`, so that they compute something."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.layout import as_pair, as_picture
from explainfix_ext.filters.bank import FilterBank, Recipe
from explainfix_ext.filters.make_bank import make_bank
from explainfix_ext.filters.random_streams import derive_seed
from explainfix_ext.nn.fixed_conv import FixedConv

from .layers import is_prunable
from .plan import Plan, zeros_of


def recipes_of(model: nn.Module) -> dict[str, Recipe]:
    """Returns layer -> the recipe by which its filters can be drawn anew, where it has one."""
    fixed = {name: m for name, m in model.named_modules() if isinstance(m, FixedConv)}
    return {name: m.bank.recipe for name, m in fixed.items() if m.bank.recipe is not None}


def fill_zeros_(model: nn.Module, recipes: dict[str, Recipe], plan: Plan, *, fill: str, seed: int) -> None:
    """Fills, in place, the filters that `plan` set to zero and that are still in the model.

    Args:
        model: pruned by `plan`.
        recipes: what `recipes_of` returned for the model before pruning.
        plan: the pruning plan.
        fill: "none"; "reset" draws them by the layer's own initialisation (kaiming_uniform if it has none); "fill_zero"
            uses the initialisation of that name.
        seed: for drawing; each layer has a stream of its own.
    """
    if fill == "none":
        return
    for name, zero in zeros_of(plan).items():
        module: Any = model.get_submodule(name)
        if not is_prunable(module):  # rows of a layer that is not spatial stay zero
            continue
        bank = module.bank if isinstance(module, FixedConv) else FilterBank.from_weight(as_picture(module.weight))
        recipe = recipes.get(name, Recipe("kaiming_uniform", 0))
        init, options = recipe.init, {"gain": recipe.gain, "version": recipe.version, **recipe.options}
        if fill == "fill_zero":
            init, options = fill, {"weight": bank.weight(torch.float64).cpu()}
        shape = (module.out_channels, module.in_channels, as_pair(module.kernel_size))
        fresh = make_bank(init, *shape, groups=module.groups, seed=derive_seed(seed, name), **options).to(bank.device)
        filled = _filled(bank, fresh, zero.to(bank.device))
        if isinstance(module, FixedConv):
            module.bank = filled
        else:
            with torch.no_grad():
                module.weight.copy_(filled.weight(module.weight.dtype).reshape(module.weight.shape))


def _filled(bank: FilterBank, fresh: FilterBank, zero: Tensor) -> FilterBank:
    """Returns `bank` with the filters of `fresh` where `zero` is True.

    If both have the same basis, the bank stays an index or coefficient bank, as small and as fast. A hadamard bank gets
    coefficients.
    """
    bank, fresh = bank.with_coefficients(), fresh.with_coefficients()
    alike = bank.basis.shape == fresh.basis.shape and torch.allclose(bank.basis, fresh.basis, atol=1e-12)
    if alike and bank.index is not None and fresh.index is not None and bank.scale == fresh.scale:
        return dataclasses.replace(bank, index=torch.where(zero, fresh.index, bank.index), recipe=None)
    if alike and bank.coeff is not None and fresh.coeff is not None:
        steering = (fresh.coeff * (fresh.scale / bank.scale)).to(bank.coeff.dtype)
        return dataclasses.replace(bank, coeff=torch.where(zero[..., None], steering, bank.coeff), recipe=None)
    dtype = bank.steering.dtype if bank.coeff is not None else torch.float32
    weight = torch.where(zero[..., None, None], fresh.weight(torch.float64), bank.weight(torch.float64))
    return FilterBank.from_weight(weight.to(dtype))
