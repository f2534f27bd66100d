"""Runs a model case: a training step, or inference, of a network learned, with frozen filters, and with ours."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext._support.timing import LEAST_SECONDS, Calls, fastest, interleaved, ratio, using_threads
from explainfix_ext.conversion.convert import convert
from explainfix_ext.nn.swap import revert
from explainfix_ext.training.models import build_model, logits_of

from .cases import SEED, ModelCase
from .conv import relative_error

DENSITY = {"ours": 1.0, "ours, density 0.1": 0.1}
MODES = {"training": ("learned", "frozen", *DENSITY), "inference": ("learned", *DENSITY)}  # frozen is as learned there

# Largest relative norm of the logits' error against float64; rounding grows from layer to layer.
TOLERANCE = 1e-3
_PROBE_ROUNDS = 3
_LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def measure_model(
    case: ModelCase, threads: int, rounds: int, least_seconds: float = LEAST_SECONDS
) -> list[dict[str, Any]]:
    """Checks each mode of a case against float64, then times them interleaved, one step of each per round.

    Returns:
        A row of the report for each mode: what the case is; `seconds` of a step; `layout`, the memory layout that it
        ran in, which is the faster one for it; `ratio`, the learned network's time over this one's; `error` of the
        logits.
    """
    with using_threads(threads):
        layouts = {mode: _faster_layout(case, mode, least_seconds) for mode in modes_of(case)}
        models = {mode: build_mode(case, mode, layout) for mode, layout in layouts.items()}
        errors = {mode: checked_error(case, mode, model) for mode, model in models.items()}
        calls = {mode: step(case, model, layouts[mode]) for mode, model in models.items()}
        timings = interleaved(calls, rounds, least_seconds)
    return [
        {
            "kind": case.kind, "case": case.name, "task": case.task, "mode": mode, "threads": threads,
            "model": case.model, "input": [case.batch, 3, case.size, case.size], "layout": layouts[mode],
            "seconds": timings[mode].as_dict(), "ratio": ratio(timings, "learned", mode), "error": errors[mode],
        }
        for mode in models
    ]  # fmt: skip


def modes_of(case: ModelCase) -> list[str]:
    """Returns the networks of a case, by name; few filters only of the index bank."""
    return [mode for mode in MODES[case.task] if case.init == "dct2" or DENSITY.get(mode, 1.0) == 1]


def build_mode(case: ModelCase, mode: str, layout: str = "NCHW") -> nn.Module:
    """Builds the network of a mode, with random weights that are the same at each call."""
    torch.manual_seed(SEED)
    model = build_model(case.model, 3, case.classes)
    if mode == "frozen":
        freeze_spatial(model)
    elif mode in DENSITY:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning that little is left to learn: only time counts here
            convert(model, case.init, seed=SEED, density=DENSITY[mode], pointwise=case.pointwise)
    model.to(memory_format=_LAYOUTS[layout])
    _settle(model, _batch(case, layout)[0])
    return model.train(case.task == "training")


def freeze_spatial(model: nn.Module) -> nn.Module:
    """Freezes every convolution with a kernel larger than 1x1, to compare a network with a converted one."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and max(module.kernel_size) > 1:
            module.weight.requires_grad_(False)
    return model


def step(case: ModelCase, model: nn.Module, layout: str = "NCHW") -> Callable[[], Any]:
    """Returns the call to time: a training step (forward, cross entropy, backward, SGD), or inference."""
    x, target = _batch(case, layout)
    if case.task == "inference":
        return torch.no_grad()(lambda: model(x))
    # The rate is low, so that weights stay in range over thousands of steps on one batch: times must not change.
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(logits_of(model(x)), target).backward()
        optimizer.step()

    return train


def checked_error(case: ModelCase, mode: str, model: nn.Module) -> float:
    """Returns the relative error (norm) of the logits in eval mode against plain convolutions in float64.

    Raises:
        FloatingPointError: it is larger than rounding explains.
    """
    x, _ = _batch(case, "NCHW")
    training = model.training
    plain = revert(copy.deepcopy(model)).double().eval()
    with torch.no_grad():
        error = relative_error(model.eval()(x), plain(x.double()))
    model.train(training)
    if not error <= TOLERANCE:
        raise FloatingPointError(
            f"{case.name}: {mode} computes something else than float64 does: relative error {error:.1e}, at most "
            f"{TOLERANCE:.0e} expected"
        )
    return error


def _faster_layout(case: ModelCase, mode: str, least_seconds: float) -> str:
    """Returns the name of the memory layout in which the network is faster."""
    calls: Calls = {name: step(case, build_mode(case, mode, name), name) for name in _LAYOUTS}
    return fastest(interleaved(calls, _PROBE_ROUNDS, least_seconds), tuple(_LAYOUTS))


def _batch(case: ModelCase, layout: str) -> tuple[Tensor, Tensor]:
    """Draws images and random classes, one class per image or, for a segmentation network, per pixel."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(case.batch, 3, case.size, case.size, generator=generator)
    shape = (case.batch, case.size, case.size) if case.model.startswith("smp:") else (case.batch,)
    target = torch.randint(case.classes, shape, generator=generator)
    return x.contiguous(memory_format=_LAYOUTS[layout]), target


def _settle(model: nn.Module, x: Tensor) -> None:
    """Sets BatchNorm's running statistics to those of a batch.

    With fresh ones, a deep network in eval mode does not normalise, and its numbers leave float32's normal range, where
    arithmetic may be slower.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
