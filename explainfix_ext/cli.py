"""Starts the program `explainfix`: runs a command, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 1 it could not go on (the loss diverged, memory or the disk is full), 2 bad input, 130 interrupted.
EXPLAINFIX_TRACEBACK=1 shows where an error came from.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command in `argv` (default: the process's arguments), and exits the process."""
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    warnings.simplefilter("once", UserWarning, append=True)  # a network is made more than once, to be checked first
    try:
        from .commands.app import app
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(_complain('explainfix needs typer and rich: pip install "explainfix_ext[demo]"', 2))
    sys.exit(_run(app, argv))


def _run(app: Callable[..., int | None], argv: list[str]) -> int:
    import typer

    from explainfix_ext._support.text import check_utf8

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter must not lose the results
    try:
        for word in argv:
            check_utf8("an argument", word)
        return app(args=argv or ["--help"], prog_name="explainfix", standalone_mode=False, obj=argv) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        return _complain(f"{error.format_message().removesuffix('.')}{hint}", 2)
    except BrokenPipeError:  # whoever reads the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing stdout does not fail too
        return 1
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return _complain(str(error), 1 if full else 2, getattr(error, "__notes__", ()))
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "explainfix_ext", "torch", "numpy"):
            raise
        return _complain(f'this needs {name}: pip install "explainfix_ext[demo]"', 2)
    except (FloatingPointError, RuntimeError) as error:
        import torch

        if not isinstance(error, (FloatingPointError, torch.OutOfMemoryError)):
            raise
        return _complain(str(error), 1)
    except typer.Abort:
        return 130


def _complain(message: str, code: int, notes: Iterable[str] = ()) -> int:
    """Prints one line on stderr, with the rank if there are several processes, and `notes` below; returns `code`."""
    if os.environ.get("EXPLAINFIX_TRACEBACK") == "1" and sys.exc_info()[0] is not None:
        raise
    rank = f"rank {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    print(f"explainfix: {rank}{' '.join(message.split())}", *notes, sep="\n  ", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
