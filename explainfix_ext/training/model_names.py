"""Makes the error for an unknown model, which says what name was probably meant. `models.build_model` calls it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable

from explainfix_ext._support.text import shown


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
