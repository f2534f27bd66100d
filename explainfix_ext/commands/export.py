"""Defines `explainfix export`: its options and what it prints. The room deploy/ makes the files."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from .options import Json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from explainfix_ext.commands.webpage.subject import ExplainConfig

_WHAT, _NAME = "What to export", "Only where MODEL is a name"  # groups of options in the help
_FORMS = ("optimized", "onnx")


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            rich_help_panel=_WHAT,
            help="OUT/NETWORK/checkpoint.pt of `explainfix train` or `demo`; OUT/model.pt of `explainfix prune`; or "
            "the name of a model, as for train --model.",
        ),
    ],
    out: Annotated[
        Path, Option(metavar="FILE", rich_help_panel=_WHAT, help="The file to write; one that is there is replaced.")
    ],
    to: Annotated[
        str,
        Option(metavar="FORM", rich_help_panel=_WHAT, help="optimized: for torch on this CPU; onnx: for ONNX Runtime."),
    ] = "optimized",
    size: Annotated[
        str | None,
        Option(
            metavar="SIZE",
            rich_help_panel=_WHAT,
            help="Images: PIXELS or CHANNELSxHEIGHTxWIDTH; default: the training's, for a name 3x224x224.",
        ),
    ] = None,
    batch: Annotated[int, Option(metavar="N", rich_help_panel=_WHAT, help="Images at a time.")] = 1,
    plain: Annotated[
        bool, Option("--plain", rich_help_panel=_WHAT, help="ONNX without our operators, for any program.")
    ] = False,
    data: Annotated[
        str | None,
        Option(metavar="DATA", rich_help_panel=_WHAT, help="The training's, if it is elsewhere; as for train."),
    ] = None,
    init: Annotated[
        str | None, Option(metavar="INIT", rich_help_panel=_NAME, help="How to fix the filters, as for train.")
    ] = None,
    weights: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            rich_help_panel=_NAME,
            help="A state_dict, .pt, .pth or .safetensors; default: random weights.",
        ),
    ] = None,
    classes: Annotated[
        int | None, Option(metavar="N", rich_help_panel=_NAME, help="Outputs of the network; default: 1000.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a trained network as a file that runs faster on the CPU.
    You get a table of what runs each layer, how far the outputs are from the network's, and the Python that loads it.
    """
    from explainfix_ext._support.files import check_writable
    from explainfix_ext._support.text import table_lines
    from explainfix_ext.commands.webpage.subject import ExplainConfig, parse_size

    from .progress import working

    _check(to, batch, plain)
    config = ExplainConfig(model=model, data=data, init=init, weights=weights, classes=classes, device="cpu")
    if not config.is_file:
        config = dataclasses.replace(config, size=size)
    elif size is not None:
        parse_size(size)
    check_writable(out)
    with working(as_json, "nothing was written") as bar:
        bar.stage(f"reading {model}", 1)
        network, example = _network_and_example(config, size, batch)
        bar.stage(f"exporting {model}", 1)
        found = _write_onnx(network, example, out, plain) if to == "onnx" else _write_optimized(network, example, out)
    if as_json:
        print(json.dumps({"model": model, "to": to, "file": str(out), "bytes": out.stat().st_size, **found}))
        return
    print(*table_lines([("convolution", "runs as"), *found["steps"].items()]), sep="\n")
    error = found["relative_difference"]
    compared = "not compared: onnxruntime is not installed" if error is None else f"{error:.1e}"
    print(f"relative difference from the network: {compared}")
    print(f"file: {out}, {out.stat().st_size / 2**20:.2f} MiB. To load it:")
    print(*(f"    {line}" for line in found["load"]), sep="\n")


def _check(to: str, batch: int, plain: bool) -> None:
    if to not in _FORMS:
        raise ValueError(f"to must be one of {', '.join(_FORMS)}, got {to!r}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if plain and to != "onnx":
        raise ValueError(f"plain is of --to onnx, got --to {to}")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if to == "onnx" and missing:
        raise ValueError(f'ONNX files need {missing[0]}: pip install "explainfix_ext[onnx]"')


def _network_and_example(config: ExplainConfig, size: str | None, batch: int) -> tuple[nn.Module, Tensor]:
    """Loads the network, as it was before `save_memory`, and makes images for it."""
    import torch

    from explainfix_ext.commands.webpage.subject import check_runs, find_subject, parse_size
    from explainfix_ext.memory import save_memory
    from explainfix_ext.training.prune_checkpoint import load_pruned

    path = Path(config.model)
    if config.is_file and path.with_name("plan.json").is_file():
        network, shape = load_pruned(path, config.data)
    else:
        subject = find_subject(config)
        network, shape = subject.network, subject.shape
    if config.is_file and size is not None:
        shape = parse_size(size, channels=shape[0])
    save_memory(network, "off")
    check_runs(network, config.model, shape)
    return network.eval(), torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


def _write_optimized(network: nn.Module, example: Tensor, out: Path) -> dict[str, Any]:
    import torch

    from explainfix_ext._support.files import write_atomic
    from explainfix_ext.deploy import optimize_for_inference

    fast = optimize_for_inference(network, example)
    if fast.reason:
        raise ValueError(f"nothing was written, the network stays as it is: {fast.reason}")
    write_atomic(out, lambda file: torch.save(fast, file))
    load = ["import torch", f"network = torch.load({str(out)!r}, weights_only=False)"]
    return {"steps": fast.steps, "relative_difference": fast.error, "load": load}


def _write_onnx(network: nn.Module, example: Tensor, out: Path, plain: bool) -> dict[str, Any]:
    """Writes into a folder of its own, and moves that to its place if ONNX Runtime computes what torch does."""
    from explainfix_ext.deploy.onnx_compare import compare_in_onnxruntime
    from explainfix_ext.deploy.onnx_export import export as export_onnx
    from explainfix_ext.deploy.onnx_export import library

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder, out.name)
        steps = export_onnx(network, example, made, plain=plain)
        error = None
        if importlib.util.find_spec("onnxruntime") is not None:
            found = compare_in_onnxruntime(network, example, made)
            if found.failure:
                raise FloatingPointError(f"nothing was written, ONNX Runtime computes something else: {found.failure}")
            error = found.error
        for file in Path(folder).iterdir():  # weights of more than 2 GiB are a file beside it
            os.replace(file, out.with_name(file.name))
    load = ["import onnxruntime", "options = onnxruntime.SessionOptions()"]
    if not set(steps.values()) <= {"Conv"}:
        load.append(f"options.register_custom_ops_library({library()!r})")
    load.append('options.add_session_config_entry("session.set_denormal_as_zero", "1")')
    load.append(f"session = onnxruntime.InferenceSession({str(out)!r}, options)")
    return {"steps": steps, "relative_difference": error, "load": load}
