"""This module holds Settings, the checked arguments of `channelprune`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from explainfix_ext.explain.saliency import Cost, check_compat
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.prune.score.criteria import Criterion

CHOICES = {
    "scope": ("global", "layer"),
    "granularity": ("filter", "channel"),
    "weigh": ("score", "work"),
    "agree": ("all", "any"),
    "fill": ("none", "reset", "fill_zero"),
    "bn_bias": ("keep", "drop", "fold"),
    "backend": ("auto", "fx", "torch_pruning"),
}


@dataclass(kw_only=True)
class Settings:
    """Holds and checks the arguments of `channelprune`, which documents them.

    Raises:
        ValueError: one is out of range; the message says which, what was expected and what came.
    """

    amount: float
    criterion: Criterion
    data: Iterable[tuple[Tensor, Tensor]] | None
    cost: Cost | None
    scope: str
    granularity: str
    weigh: str
    structured: bool
    agree: str
    round_to: int
    min_channels: int
    max_layer_amount: float
    ignore: tuple[str, ...]
    fill: str
    bn_bias: str
    inplace: bool
    verify: bool
    dry_run: bool
    compat: str | None
    backend: str
    seed: int

    def __post_init__(self) -> None:
        check_amount(self.amount)
        if not 0 < self.max_layer_amount <= 1:
            raise ValueError(f"max_layer_amount must be in (0, 1], got {self.max_layer_amount}")
        for name in ("round_to", "min_channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        for name in CHOICES:
            check_choice(name, getattr(self, name))
        check_compat(self.compat)
        if self.compat == "paper":
            self.agree, self.bn_bias = "any", "drop"
        if self.agree == "any" and self.bn_bias == "fold":
            raise ValueError('bn_bias must be "drop" or "keep" with agree="any", which forgets what other layers write')


def check_amount(amount: float) -> None:
    """Raises ValueError unless `amount` is a number in [0, 1)."""
    if not isinstance(amount, (int, float)) or not 0 <= amount < 1:
        raise ValueError(f"amount must be in [0, 1), got {amount!r}; 0.9 is 90 %")


def check_choice(name: str, value: str) -> None:
    """Raises ValueError unless `value` is one of the choices for the argument `name`."""
    if value not in CHOICES[name]:
        raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")


def default_granularity(model: nn.Module) -> str:
    """Returns "channel" if a layer of the model is a fast transform, which has no single filters, else "filter"."""
    fixed = (module for module in model.modules() if isinstance(module, FixedConv))
    return "channel" if any(layer.bank.hadamard is not None for layer in fixed) else "filter"
