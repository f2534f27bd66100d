"""Refusals: what FixedConv2d says to tools of torch that do not work without a weight to store."""

from __future__ import annotations

from typing import Any

from torch import nn

NO_WEIGHT = (
    "FixedConv2d stores no weight: assign `bank`, e.g. FilterBank.from_weight(weight); for tools that set weights, "
    "revert(model) first"
)


class Refusals(nn.Module):
    """Mixed into FixedConv2d: raises one sentence where torch calls, before anything has changed."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name not in ("weight", "weight_orig"):  # weight_orig: torch.nn.utils.prune
            super().register_parameter(name, param)
        elif "_held" in self.__dict__:
            raise AttributeError(NO_WEIGHT)
        # Else Conv2d.__init__ offers a weight, which nobody needs.

    def __prepare_scriptable__(self) -> Any:
        # To return a plain convolution would work, but torch.jit.script puts it into the model that it was given.
        raise RuntimeError(
            "torch.jit.script does not compile FixedConv2d: use torch.export, torch.jit.trace, or "
            "torch.jit.script(revert(copy.deepcopy(model)))"
        )

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "FixedConv2d does not run under nn.DataParallel: use torch.nn.parallel.DistributedDataParallel"
        )
