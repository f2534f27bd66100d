"""Lists the names of models, and makes the error for an unknown one, which says what name was probably meant."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable

from explainfix_ext._support.text import shown, table_lines


def describe_models(presets: Iterable[str]) -> list[str]:
    """Returns a line for each way to name a model, for `explainfix train --model list`."""
    libraries = [
        ("torchvision:NAME", "torchvision:resnet18; for masks torchvision:fcn_resnet50"),
        ("timm:NAME", "timm:resnet18"),
        ("smp:ARCH/ENCODER", "smp:fpn/resnet18, for masks"),
    ]
    small = "small ones, of which NAME@0.5 has half as many channels and NAME@2 twice as many:"
    return [small, f"  {', '.join(presets)}", *table_lines(libraries)]


def unknown_model(name: str, presets: Iterable[str]) -> ValueError:
    """Returns the error: it lists the presets and libraries, and where a library has the name, or the preset nearest.

    Args:
        name: what was asked for.
        presets: the names that need no library before them.
    """
    presets = list(presets)
    near = _in_libraries(name) or difflib.get_close_matches(name, [*presets, "torchvision:", "timm:", "smp:"], n=1)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    known = f"{', '.join(presets)}, torchvision:NAME, timm:NAME or smp:ARCH/ENCODER"
    return ValueError(f"model must be {known}, got {shown(name)}{hint}")


def _in_libraries(name: str) -> list[str]:
    """Returns NAME with the libraries that have a model of it, of those that are installed."""
    found = []
    with contextlib.suppress(ImportError):
        import torchvision

        found += [f"torchvision:{name}"] * (name in torchvision.models.list_models())
    with contextlib.suppress(ImportError):
        import timm

        found += [f"timm:{name}"] * timm.is_model(name)
    return found
