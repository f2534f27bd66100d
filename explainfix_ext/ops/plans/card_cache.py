"""card_cache keeps on the disk what was measured of a card: ~/.cache/explainfix_ext/cards.json, or $XDG_CACHE_HOME.

The file is a dict of cards; a card is named with all that runs on it, so that another driver, torch or build of this
package measures anew. A file that cannot be read or written is a file that is not there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from explainfix_ext.ops import binaries

FORMAT = 1  # of the entries
MOST_CARDS, MOST_CHOICES = 8, 5000  # the latest


def recall(device: torch.device, name: str) -> Any:
    """Returns what is remembered of a card under a name, or None."""
    return _entries(card(device)).get(name)


def remember(device: torch.device, name: str, value: Any) -> None:
    """Notes a value of a card, also for other processes."""
    key = card(device)
    _entries(key)[name] = value
    cards = _read()
    entries = {**cards.pop(key, {}), name: value}
    cards[key] = dict(list(entries.items())[-MOST_CHOICES:])
    with contextlib.suppress(OSError):
        _write(dict(list(cards.items())[-MOST_CARDS:]))


@functools.cache
def card(device: torch.device) -> str:
    """Names a card, its driver, torch and the build of this package."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    driver = Path("/sys/module/nvidia/version")
    file = Path(binaries.__file__).with_name(str(binaries.LOADED["cuda"]))
    build = f"explainfix_ext {version('explainfix_ext')} {file.stat().st_mtime_ns if file.is_file() else ''}"
    driver_version = driver.read_text().strip() if driver.is_file() else "unknown"
    return f"{name}, driver {driver_version}, torch {torch.__version__}, {build}, format {FORMAT}"


@functools.cache
def _entries(key: str) -> dict[str, Any]:
    return _read().get(key, {})


def _path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "explainfix_ext" / "cards.json"


def _read() -> dict[str, dict[str, Any]]:
    try:
        cards = json.loads(_path().read_bytes())
    except (OSError, ValueError):
        return {}
    cards = cards if isinstance(cards, dict) else {}
    return {key: entries for key, entries in cards.items() if isinstance(entries, dict)}


def _write(cards: dict[str, dict[str, Any]]) -> None:
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(cards, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
