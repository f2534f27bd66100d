"""This module runs a model in training mode without what makes training random: the code's branches, eval's numbers.

Outputs that a model gives in training only must survive pruning, too. Dropout and the statistics of a batch would hide
whether they do, so functions and norms compute as in eval mode here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .kinds import NORMS

# Where functions without a Python signature take the mode.
_TRAINING = {
    torch.dropout: 2, torch.dropout_: 2, torch.feature_dropout: 2, torch.feature_dropout_: 2, torch.alpha_dropout: 2,
    torch.alpha_dropout_: 2, torch.feature_alpha_dropout: 2, torch.feature_alpha_dropout_: 2, torch.rrelu: 3,
    torch.batch_norm: 5,
}  # fmt: skip
_NAMES = ("training", "train")


@cache
def _place_of_mode(function: Callable[..., Any]) -> int | None:
    """Returns which positional argument of a function is the mode; None if it has none."""
    if function in _TRAINING:
        return _TRAINING[function]
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin has no signature
        return None
    return next((names.index(name) for name in _NAMES if name in names), None)


def as_in_eval(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of a function such as F.dropout with training=False in place of what they say."""
    place = _place_of_mode(function)
    kwargs = {
        k: False if k in _NAMES and place is not None else 0.0 if k == "dropout_p" else v for k, v in kwargs.items()
    }
    if place is not None and len(args) > place:
        args = (*args[:place], False, *args[place + 1 :])
    elif place is not None and not kwargs.keys() & {*_NAMES} and function not in _TRAINING:
        kwargs["training"] = False  # the default of F.dropout is True
    return tuple(args), kwargs


class _EvalFunctions(TorchFunctionMode):
    """Lets functions compute as in eval mode, whatever mode the model's code passes to them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = as_in_eval(func, args, kwargs or {})
        return func(*args, **kwargs)


def as_in_training_(model: nn.Module) -> nn.Module:
    """Puts a model into training mode, in place, except norms and what holds no numbers, such as stochastic depth.

    Run it in `eval_functions()`.
    """
    for module in model.train().modules():
        empty = not (module._modules or module._parameters or module._buffers)
        module.training = not (empty or isinstance(module, NORMS))
    return model


def eval_functions() -> contextlib.AbstractContextManager[Any]:
    """Lets F.dropout and the like compute as in eval mode, in a `with` block."""
    return _EvalFunctions()


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Draws torch's random numbers from one seed in a `with` block, and goes on with those of before behind it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tensors_of(result: Any) -> list[Tensor]:
    """Returns the tensors in what a model returned: in tuples, lists, dicts and dataclasses, however deep."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        result = [*result.values()]
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = [*vars(result).values()]
    if isinstance(result, (tuple, list)):
        return [tensor for item in result for tensor in tensors_of(item)]
    return []
