"""Puts the results of a run into bench/results/ without the folders of the machine: files keep their names only.

python bench/names_only.py runs/mnist/results.json bench/results/mnist_cpu.json  # its curves: mnist_cpu.png
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The folders of an absolute path, with the slashes: at the start of a text, or after a space, a quote, or the colon or
# equals sign of "bbbc038:/folders/file.npz" and "--data=/folders/file.npz". The // of an address are no path.
_FOLDERS = re.compile(r"""(?:^|(?<=[\s"'`:=]))(?:~|[A-Za-z]:)?[/\\](?:[^/\\\s"'`:?]+[/\\])+""")


def names_only(value: Any) -> Any:
    """`value`, as JSON has it, with every absolute path in it shortened to the name of its file."""
    if isinstance(value, dict):
        return {key: names_only(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [names_only(inside) for inside in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="results.json of `explainfix train` or `prune`, or any other JSON file")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    found = names_only(json.loads(arguments.file.read_text()))
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    if "runs" in found:  # of `explainfix train`: the data set's name is in the picture, too
        from explainfix_ext.training.curves import plot_curves

        plot_curves(found, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
