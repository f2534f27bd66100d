"""Draws the pictures of the site into this folder. Run: python docs/pictures/draw.py [NAME ...]

Those of "How it works" have a file each; `gallery` runs the lines of docs/gallery.md, which take half a minute.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

from style import HERE, save

NAMES = ("filters", "banks", "memory", "arithmetic", "butterfly", "plans", "cpu", "gpu", "prune")


def main(names: list[str]) -> None:
    for name in names or (*NAMES, "gallery"):
        gallery() if name == "gallery" else print(save(importlib.import_module(name).draw(), name))


def gallery(folder: Path = HERE) -> None:
    """Runs the page's Python blocks, which write into the working folder."""
    os.chdir(folder)
    text = (HERE.parent / "gallery.md").read_text()
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.S)), {})


if __name__ == "__main__":
    main(sys.argv[1:])
