"""`flatten` turns a model into one sequence of calls, which lets go of each tensor after its last use."""

from __future__ import annotations

from torch import fx, nn

from .modules import DROP_IN
from .regions import Tracer
from .save import load_blocks


class _Flattener(Tracer):
    """Traces into everything but the blocks that have a drop-in: these stay whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in DROP_IN or super().is_leaf_module(module, name)


def flatten(model: nn.Module) -> fx.GraphModule:
    """Makes a model of one flat sequence of calls, which lets go of each tensor after its last use.

    Python code holds the arguments of a block until the block ends, such as the concatenations of a U-Net. The result
    shares its modules and Parameters with `model`, and has the same names in its state_dict. It no longer calls blocks,
    so that hooks on them do not run. Call it after `convert` and before `save_memory`.

    Args:
        model: any module that torch.fx can trace.

    Raises:
        ValueError: torch.fx cannot trace the model.

    Example:
        >>> from explainfix_ext.memory import flatten
        >>> model = flatten(torchvision.models.resnet18())
        >>> print(save_memory(model, "recompute").mode)
        recompute
    """
    load_blocks()
    try:
        return fx.GraphModule(model, _Flattener().trace(model), type(model).__name__)
    except Exception as error:  # a model may raise anything on a proxy
        raise ValueError(f"model cannot be traced by torch.fx: {error}") from error
