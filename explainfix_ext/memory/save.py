"""`save_memory` puts drop-ins in place of a model's modules, so that less is kept for the backward pass."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field

from torch import nn

from explainfix_ext._support.models import check_is_module
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.ops.plans.card_check import check_card

from .blocks import checkpoint_names, exchange_blocks, find_blocks, restore_blocks
from .modules import DROP_IN
from .saver import MemorySaver, Saving, exchange, restore

MODES = ("off", "exact", "recompute", "int8")
CHECKPOINTS = ("off", "blocks")

# Need not be exchanged: they keep nothing as large as an activation, or only hold modules, which are looked at in turn.
_FINE = (nn.Identity, nn.Flatten, nn.Upsample, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_KEEPING = "keeps what torch keeps"


@dataclass
class MemoryChanges:
    """Lists what `save_memory` did. `print(changes)` shows it.

    Attributes:
        mode: the mode that was asked for.
        changed: (name, class) of the modules that now keep less.
        left: (name, class, reason) of those that work as before.
        checkpoints: what runs again as a whole, in the backward pass: names of blocks, and slices of Sequentials.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        >>> save_memory(model).changed
        [('0', 'Conv2d'), ('1', 'BatchNorm2d'), ('2', 'ReLU')]
    """

    mode: str
    changed: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str, str]] = field(default_factory=list)
    checkpoints: tuple[str, ...] = ()  # of the class, too: pickles of before have none

    def __str__(self) -> str:
        lines = [f"{name}: {kind}: left: {reason}" for name, kind, reason in self.left]
        if self.checkpoints:
            lines.append(f"checkpoints: {', '.join(self.checkpoints)}")
        return "\n".join(
            [*lines, f"memory mode {self.mode}: {len(self.changed)} modules changed, {len(self.left)} left"]
        )


def save_memory(model: nn.Module, mode: str = "exact", checkpoint: str = "off") -> MemoryChanges:
    """Lets the modules of `model` keep less for the backward pass, in place, for the same gradients ("int8": nearly).

    Parameters, buffers, state_dict keys, hooks and modes stay: only the modules' classes are exchanged, for subclasses.
    A module that is not understood is left as it is, and listed.

    Args:
        model: any module. If it is to have fixed filters, convert it first: those need no activation at all. Frozen
            plain convolutions (requires_grad_(False)) gain too.
        mode: "exact" keeps only BatchNorm's input, from which the activation and the next layer's input are computed
            again, and one bit or byte where an element's place is needed. "recompute" also runs convolutions again
            instead of keeping their outputs; "int8" does so, too, and keeps what is left in 8 bits: its gradients are
            off by up to 1 %. "off" undoes it all.
        checkpoint: "blocks" keeps only the inputs of blocks, and runs each block once more in the backward pass, where
            its modules keep what the mode says until the block's backward is over. Blocks are what an nn.Sequential,
            ModuleList or ModuleDict holds; of a Sequential of n, about sqrt(n) blocks share one checkpoint. Running
            statistics move once, and random numbers are drawn again; forward hooks inside a block run twice.

    Returns:
        MemoryChanges, which lists the modules that keep less, and those that do not, with the reason.

    Raises:
        ValueError: unknown mode or checkpoint, checkpoint="blocks" in mode "off", or for a model without blocks.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, "dct2", seed=0)
        >>> print(save_memory(model, "recompute"))
        memory mode recompute: 51 modules changed, 0 left
        >>> save_memory(model, "recompute", checkpoint="blocks").checkpoints[:3]
        ('layer1[0:2]', 'layer2[0:2]', 'layer3[0:2]')

        The equivalent PyTorch is the plain model, whose gradients are the same:

        >>> plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> ours, x = copy.deepcopy(plain), torch.randn(2, 3, 8, 8)
        >>> _ = save_memory(ours, "recompute")
        >>> for net in (plain, ours):
        ...     net(x).square().mean().backward()
        >>> all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in zip(ours.parameters(), plain.parameters()))
        True

    Source: In-Place ABN (Rota Bulo, Porzi, Kontschieder 2018) and MemSave (Bhatia, Dangel 2024) for what need not be
    kept; running a fixed convolution again costs what computing a frozen weight's gradient would have.
    """
    check_is_module(model)
    check_mode(mode)
    if checkpoint not in CHECKPOINTS or (mode == "off" and checkpoint != "off"):
        allowed = "off" if mode == "off" else " or ".join(CHECKPOINTS)
        raise ValueError(f"checkpoint must be {allowed} in mode {mode!r}, got {checkpoint!r}")
    blocks = find_blocks(model) if checkpoint == "blocks" else {}
    load_blocks()
    _restore(model)
    changes = MemoryChanges(mode, checkpoints=tuple(n for name, b in blocks.items() for n in checkpoint_names(name, b)))
    if mode == "off":
        return changes
    for device in {p.device for p in model.parameters() if type(p) is nn.Parameter and p.is_cuda}:
        check_card(device)
    exchanged: dict[nn.Module, type[MemorySaver]] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if reason := _reason_to_leave(module):
            changes.left.append((name, kind, reason))
        elif type(module) in DROP_IN:
            exchanged[module] = DROP_IN[type(module)]
            changes.changed.append((name, kind))
    for module, drop_in in exchanged.items():
        exchange(module, drop_in, Saving(mode))
    exchange_blocks(list(blocks.values()))
    return changes


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"memory mode must be one of {', '.join(MODES)}, got {mode!r}")


def load_blocks() -> None:
    """Adds the drop-ins for blocks of the libraries that are in use to DROP_IN."""
    for library, blocks in (("torchvision.models", ".blocks_torchvision"), ("timm.models", ".blocks_timm")):
        if library in sys.modules:
            importlib.import_module(blocks, __package__)


def _reason_to_leave(module: nn.Module) -> str:
    """Says why a module is not exchanged; empty if it is, or need not be."""
    if type(module) in DROP_IN:
        if "forward" in vars(module):
            return "its forward was replaced on the instance"
        if isinstance(module, FixedConv) and module.coeff is not None:
            return "learned coefficients need the input"
        return ""
    # Of a 1x1 output torch keeps the input's size alone: it is a mean. Of a larger one it keeps the input.
    is_mean = isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1), [1, 1])
    has_own = any(True for _ in module.children())
    return "" if has_own or is_mean or isinstance(module, _FINE) else _KEEPING


def _restore(model: nn.Module) -> None:
    restore_blocks(model)
    plain = {drop_in: original for original, drop_in in DROP_IN.items()}
    for module in model.modules():
        if isinstance(module, MemorySaver):
            restore(module, plain[type(module)])
