"""Keeps a class that models pickled by version 0.1 name, from when torch.fx said what a BatchNorm may overwrite."""

from __future__ import annotations

from typing import Any

from torch import nn


class Region:
    """Stands in a pickled model for a traced module, on which it has two hooks that do nothing now."""

    # The names of attributes and methods are those of the pickles.
    _hooks: list[Any]

    def _enter(self, module: nn.Module, args: Any) -> None:
        pass

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        pass

    def remove(self) -> None:
        """Takes the hooks off the module."""
        for hook in self._hooks:
            hook.remove()
