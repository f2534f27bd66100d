"""Finds a model's blocks for `save_memory(checkpoint="blocks")`, and lets each keep its input alone.

A block is run a second time in the backward pass, by torch.utils.checkpoint, and its drop-ins then keep what the mode
says, until the block's backward is over. In an nn.Sequential of n blocks about sqrt(n) of them share one checkpoint:
that keeps fewer inputs, for the same work. Elsewhere each block has its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from .saver import PLAIN


class CheckpointedBlock(nn.Module):
    """Is mixed into a block's class, and runs its forward under a checkpoint."""

    _plain: type[nn.Module]  # of the class, not of the module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plain = super().forward
        if not _gains(self, args, kwargs):
            return plain(*args, **kwargs)
        if not _is_chain(self):
            return _run_checkpointed([self], plain, *args, **kwargs)
        (x,) = args
        children = list(self.children())
        for begin, end in _groups(children):
            x = _run_checkpointed(children[begin:end], functools.partial(_in_turn, children[begin:end]), x)
        return x

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """Pickles and copies by the block's plain class: this one has no name that can be imported."""
        return _blank, (self._plain,), vars(self)


def exchange_blocks(blocks: Sequence[nn.Module]) -> None:
    """Lets blocks that `find_blocks` has found run under checkpoints."""
    for block in blocks:
        block.__class__ = _checkpointed(type(block))  # type: ignore[arg-type]


def restore_blocks(model: nn.Module) -> None:
    """Gives each checkpointed block its class back."""
    for module in model.modules():
        if isinstance(module, CheckpointedBlock):
            module.__class__ = module._plain  # type: ignore[assignment]


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns, by name, the outermost Sequentials of blocks, and the blocks that lists hold.

    Raises:
        ValueError: there are none.
    """
    found = _blocks(model)
    if not found:
        raise ValueError(
            'checkpoint="blocks" wants a model with blocks in an nn.Sequential, ModuleList or ModuleDict, '
            f"got {type(model).__name__}, which has none"
        )
    return found


def checkpoint_names(name: str, block: nn.Module) -> list[str]:
    """Returns the name of each checkpoint that a block of `find_blocks` has: of a Sequential, a slice of it."""
    if not _is_chain(block):
        return [name]
    return [f"{name}[{begin}:{end}]" for begin, end in _groups(list(block.children()))]


def has_blocks(model: nn.Module) -> bool:
    """Tells whether `find_blocks` finds any."""
    return bool(_blocks(model))


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    _find(model, "", False, found, set())
    return found


def _find(module: nn.Module, name: str, listed: bool, found: dict[str, nn.Module], seen: set[nn.Module]) -> None:
    """Adds what is in `module` to `found`; `listed` says that a list or a Sequential holds it."""
    if module in seen or isinstance(module, torch.jit.ScriptModule):
        return
    seen.add(module)
    whole = (listed and _is_block(module)) or (_is_chain(module) and _worth_a_checkpoint(module))
    if whole and "forward" not in vars(module) and not any(_repeats(m) for m in module.modules() if m is not module):
        found[name] = module
        return
    for child, inner in module.named_children():
        _find(inner, f"{name}.{child}" if name else child, _is_list(module), found, seen)


def _is_chain(module: nn.Module) -> bool:
    """Tells whether a module runs its children one after another."""
    return isinstance(module, nn.Sequential) and _plain_class(module).forward is nn.Sequential.forward


def _is_list(module: nn.Module) -> bool:
    """Tells whether a module only holds others, as ModuleList and ModuleDict do."""
    return _plain_class(module).forward is nn.Module.forward


def _plain_class(module: nn.Module) -> type[nn.Module]:
    return module._plain if isinstance(module, CheckpointedBlock) else type(module)


def _is_block(module: nn.Module) -> bool:
    """Tells whether a module computes with several layers that have parameters."""
    return not _is_list(module) and any(True for _ in module.children()) and _has_parameters(module)


def _has_parameters(module: nn.Module) -> bool:
    """Tells whether there are parameters, or the filters of a fixed convolution."""
    return any(True for _ in module.parameters()) or any(map(_convolves, module.modules()))


def _worth_a_checkpoint(chain: nn.Module) -> bool:
    """Tells whether a Sequential has a block, or several convolutions."""
    children = list(chain.children())
    own = [child for child in children if _is_block(child) and not _is_chain(child)]
    return bool(own) or sum(map(_convolves, children)) > 1


def _repeats(module: nn.Module) -> bool:
    """Tells whether a module is a Sequential or list of blocks of one class: a stage, in which to look for blocks."""
    if not (_is_chain(module) or _is_list(module)):
        return False
    kinds = [type(child) for child in module.children() if _is_block(child) and not _is_chain(child)]
    return len(set(kinds)) < len(kinds)


def _convolves(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd)


def _groups(children: Sequence[nn.Module]) -> list[tuple[int, int]]:
    """Divides a Sequential's children into those that share a checkpoint. Each begins with a block or convolution.

    A checkpoint must not begin with an inplace activation, which would overwrite the input that it keeps.
    """
    begins = [i for i, child in enumerate(children) if _convolves(child) or _is_block(child)]
    begins = begins[:: max(1, math.ceil(len(begins) ** 0.5))]
    ends = [*begins[1:], len(children)]
    return list(zip([0, *begins[1:]], ends, strict=True))


def _in_turn(modules: Sequence[nn.Module], x: Any) -> Any:
    for module in modules:
        x = module(x)
    return x


def _gains(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Tells whether torch's autograd alone records this call, with a gradient wanted, on arguments that stay as they
    are: a list may have grown before the block runs again."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or not torch.is_grad_enabled():
        return False
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    given = (*args, *kwargs.values())
    if not all(t is None or type(t) in (*PLAIN, bool, int, float, str) for t in given):
        return False
    tensors = [t for t in given if isinstance(t, Tensor)]
    wanted = any(t.requires_grad for t in (*tensors, *block.parameters()))
    return wanted and bool(tensors) and not any(t.is_inference() for t in tensors)


def _run_checkpointed(modules: Sequence[nn.Module], run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    inner = [m for module in modules for m in module.modules()]
    buffers = [
        (m, name, b) for m in inner if not isinstance(m, _NormBase) for name, b in m.named_buffers(recurse=False)
    ]
    versions = [b._version for _, _, b in buffers]
    result = checkpoint(
        run, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_stay(inner)), **kwargs
    )
    for (module, name, buffer), version in zip(buffers, versions, strict=True):
        if module._buffers[name] is not buffer or buffer._version != version:
            raise RuntimeError(
                f'checkpoint="blocks" runs a block twice, and {type(module).__name__} in one changes its buffer '
                f'{name!r} each time: call save_memory(model, mode) without checkpoint="blocks"'
            )
    return result


@contextmanager
def _statistics_stay(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Keeps BatchNorms from moving their running statistics, which the first run has moved."""
    norms = [m for m in modules if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@functools.cache
def _checkpointed(plain: type[nn.Module]) -> type[nn.Module]:
    """Makes the class of a block that runs under checkpoints."""
    return type(
        f"Checkpointed{plain.__name__}", (CheckpointedBlock, plain), {"_plain": plain, "__module__": plain.__module__}
    )


def _blank(plain: type[nn.Module]) -> nn.Module:
    """Makes a checkpointed block without anything in it, for pickle and copy."""
    kind = _checkpointed(plain)  # type: ignore[arg-type]
    return kind.__new__(kind)
