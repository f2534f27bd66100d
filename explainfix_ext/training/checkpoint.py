"""Saves and loads checkpoints and state_dicts, and says in one line why one does not fit.

`Trainer`, `runs`, `prune_checkpoint` and the web page call it. Files are written whole or not at all.
"""

from __future__ import annotations

import dataclasses
import pickle
import random
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from explainfix_ext._support.files import write_atomic
from explainfix_ext._support.text import first_line

from .config import TrainConfig
from .state_names import misfit, state_dict_of, with_names_of


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a dict of tensors, numbers, strings, and lists and dicts of those, for `load_checkpoint`."""
    write_atomic(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, with weights_only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no checkpoint; it is named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: expected a checkpoint")
    try:
        _check_sizes(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, where the file is no checkpoint
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # anything, where a damaged pickle is read
        raise ValueError(f"{path} cannot be read ({_reason(error)}): expected a checkpoint") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dict: expected a checkpoint")
    return state


def _check_sizes(path: Path) -> None:
    """Refuses a zip file of parts that are compressed, or lie in one another: a small one can fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as parts:
        size, there = sum(part.file_size for part in parts.infolist()), path.stat().st_size
    if size > there:
        raise ValueError(f"its parts have {size} bytes, and it has {there}: torch.save does not compress")


def _reason(error: Exception) -> str:
    """Says in one line what is wrong with a file; torch's own words advise to run what it holds."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        what = f"Python objects, such as {found[1]:.100}," if found else "something"
        return f"it holds {what} beside tensors, numbers and strings; save model.state_dict() alone"
    known = isinstance(error, (OSError, RuntimeError, ValueError)) and str(error)
    return f"{first_line(error).partition('. ')[0]:.200}" if known else f"damaged: {type(error).__name__}"


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a `model.pt` or `checkpoint.pt` of `explainfix train`, or any state_dict, into a model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no state_dict, or one that does not fit the model.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save(nn.Linear(2, 3).state_dict(), path)
        >>> load_weights(nn.Linear(2, 3), path)
    """
    load_state(model, read_weights(path), str(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a state_dict from a file of torch.save or, if it ends in .safetensors, of safetensors.

    It may lie in a checkpoint of this package, torchvision, timm, Lightning and others; of averaged weights only where
    there are no others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or what it holds is no state_dict.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    state = state_dict_of(load_checkpoint(path))
    if state is None:
        raise ValueError(f"{path} is no state_dict: expected names and their tensors")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: expected a state_dict")
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError('a .safetensors file needs safetensors: pip install "explainfix_ext[demo]"') from None
    try:
        return load_file(path)
    except Exception as error:  # a library may raise anything
        raise ValueError(f"{path} cannot be read ({_reason(error)}): expected a state_dict") from None


def load_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads a state_dict. Its names and shapes must be the model's, but for what DDP, `torch.compile`, averaging and
    Lightning put before the names, and for DenseNet's names of before torchvision 0.3.

    Args:
        source: the file that it came from, for the message.

    Raises:
        ValueError: it does not fit the model.
    """
    own = model.state_dict()
    state = with_names_of(own, state)
    check_converted_alike(model, state, source)
    reason = misfit(own, state)
    try:
        if reason is None:
            model.load_state_dict(state)
    except RuntimeError as error:  # its first line has the model's class, the others a layer each
        lines = str(error).splitlines()[1:]
        reason = f"{len(lines)} layer{'s' * (len(lines) != 1)} cannot take it, the first: {lines[0].strip():.500}"
    if reason is not None:
        raise ValueError(f"{source} does not fit the model: {reason}{_pruned(Path(source))}")


def check_converted_alike(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Refuses the state_dict of a plain model for a converted one, and the reverse; the message says what to do."""
    wanted = model.state_dict().keys()
    for key in wanted - state.keys():
        layer, _, kind = key.rpartition(".")
        if kind == "_extra_state" and f"{layer}.weight" in state:
            raise ValueError(
                f"{source} is of a plain model and this one is converted ({layer} has fixed filters): load it into the "
                f'plain model, then convert(model, init="unchanged"); or convert first and train again'
            )
        if kind == "weight" and f"{layer}._extra_state" in state:
            raise ValueError(
                f"{source} is of a converted model and this one is plain ({layer} has learned filters): "
                f"convert first, then load"
            )


def seed_all(seed: int) -> None:
    """Seeds every generator that `rng_state` saves."""
    torch.manual_seed(seed)  # of all devices
    random.seed(seed)
    np.random.seed(seed % 2**32)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Returns the states of this process's random generators: torch (CPU and `device`), Python, numpy."""
    legacy = np.random.get_state(legacy=False)
    inner = legacy["state"] | {"key": legacy["state"]["key"].tolist()}  # weights_only loads no numpy array
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": legacy | {"state": inner}}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts the random generators back into the states that `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(state["numpy"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def training_of(checkpoint: Path, data: str | None) -> tuple[TrainConfig, int]:
    """Reads how the network of a checkpoint was trained.

    Args:
        data: takes the place of the data set that the network was trained on; None keeps that.

    Returns:
        The configuration, and the number of epochs done.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of a training run, or one of another version of this package.
    """
    try:
        state = load_checkpoint(checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}, OUT/NETWORK/checkpoint.pt of explainfix train{_beside(checkpoint)}") from None
    if not {"config", "model", "epoch"} <= state.keys():
        expected = f"expected OUT/NETWORK/checkpoint.pt{_beside(checkpoint)}{_pruned(checkpoint)}"
        raise ValueError(f"{checkpoint} is not a checkpoint of explainfix train: {expected}")
    trained = TrainConfig.from_saved(state["config"], str(checkpoint))
    return dataclasses.replace(trained, data=data or trained.data), state["epoch"]


def _pruned(path: Path) -> str:
    """Says how a file of weights is loaded if it lies beside a plan, as what `explainfix prune` writes does."""
    plan = path.parent / "plan.json"
    if not plan.is_file():
        return ""
    return f"; it is pruned: efx.apply_plan(network, json.load(open({str(plan)!r}))) makes a network that can load it"


def _beside(path: Path) -> str:
    """Asks whether a checkpoint beside or in `path` was meant, such as for its folder, or for model.pt."""
    folder = path if path.is_dir() else path.parent
    found = [*folder.glob("checkpoint.pt"), *sorted(folder.glob("*/checkpoint.pt"))][:3]
    return f"; did you mean {' or '.join(map(str, found))}?" if found and path not in found else ""
