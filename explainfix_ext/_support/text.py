"""Words for errors."""

import difflib
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """Its message without what libraries add below; its class, if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def unknown_name(kind: str, name: str, names: Iterable[str]) -> ValueError:
    """The error for a name that is not there, with the three nearest that are."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:8]
    return ValueError(f"unknown {kind} {name!r}; nearest: {', '.join(near)}")
