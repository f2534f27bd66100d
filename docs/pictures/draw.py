"""Draws every picture of "How it works" into this folder. Run: python docs/pictures/draw.py [NAME ...]"""

from __future__ import annotations

import importlib
import sys

from style import save

NAMES = ("filters", "banks", "memory", "arithmetic", "butterfly", "plans", "cpu", "cuda", "prune")


def main(names: list[str]) -> None:
    for name in names or NAMES:
        print(save(importlib.import_module(name).draw(), name))


if __name__ == "__main__":
    main(sys.argv[1:])
