"""What the API pages need of griffe, which reads docstrings: a row for each of the names that share a line there."""

from __future__ import annotations

import re
from typing import Any

import griffe

# "    include, exclude: globs of names ...", and the lines of its description.
SHARED = re.compile(r"^( +)([*\w]+(?:, [*\w]+)+)(:.*(?:\n\1 +.*)*)", flags=re.M)


class Rows(griffe.Extension):
    """Rows gives each name the description that they share; griffe takes "include, exclude" for one name."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of every function and class that is read."""
        if obj.docstring:
            obj.docstring.value = SHARED.sub(split, obj.docstring.value)


def split(found: re.Match[str]) -> str:
    """Writes one entry for each name."""
    indent, names, description = found.groups()
    return "\n".join(f"{indent}{name}{description}" for name in names.split(", "))
