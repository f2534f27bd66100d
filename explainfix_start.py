"""Starts the program `explainfix`. Help and shell completion come without torch, whose import takes seconds."""

import importlib.util
import os
import sys
import types


def main() -> None:
    """Runs the command in the process's arguments, and exits the process."""
    if "_EXPLAINFIX_COMPLETE" in os.environ or not sys.argv[1:] or sys.argv[-1] == "--help":
        _leave_out_torch()
    from explainfix_ext.cli import main

    main()


def _leave_out_torch() -> None:
    """Puts an empty package in the place of explainfix_ext, with its modules but without what its __init__ imports."""
    found = importlib.util.find_spec("explainfix_ext")
    package = types.ModuleType("explainfix_ext")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["explainfix_ext"] = package


if __name__ == "__main__":
    main()
