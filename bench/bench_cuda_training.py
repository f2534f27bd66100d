"""A training step of whole networks on a GPU: its time and memory, torch's ways beside fixed filters and save_memory.

    python bench/bench_cuda_training.py [--models resnet50,resnet18+pointwise] [--batch 64] [--size 224] [--out FILE]

Mixed precision (bfloat16 autocast), channels_last, cudnn.benchmark, SGD without momentum. For each network: learned;
frozen (the default's fixed filters in torch's convolutions); frozen with torch.utils.checkpoint around each block;
fixed as by default, and so with save_memory in each mode; and fixed with an initialisation whose convolutions run
dense. Steps are timed twice, interleaved, by events: called from Python, where the host may be the limit, and replayed
from a CUDA graph of the whole step, where it is not. The peak of a step is torch.cuda.max_memory_allocated above what
the model holds, `kept` what lives after the forward pass.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_memory import checkpoint_blocks
from gpu.device import NO_GPU, clock_of
from gpu.report import TRAINING_HEAD, about_gpu, rich_table, slug, training_cells
from networks.memory import MEMORY_MODELS
from rich.console import Console
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext._support.timing import interleaved, ratio
from explainfix_ext.commands.benchmarks.conv import relative_error
from explainfix_ext.commands.benchmarks.models import freeze_spatial
from explainfix_ext.commands.benchmarks.report import as_text
from explainfix_ext.training.models import logits_of

RESULTS = Path(__file__).resolve().parent / "results"
CLASSES = 1000
MODES = ("exact", "recompute", "int8")
DENSE_INIT = "ghaar4_s1"
# Logits against the same filters in torch's convolutions, in bfloat16: roundings grow over 50 layers to some 1e-2; a
# wrong kernel gives 1.
TOLERANCE = 0.2


def variants() -> list[str]:
    """ "learned", "frozen", "checkpoint", or an initialisation and perhaps a mode: "ghaar4_s1", "auto int8"."""
    return ["learned", "frozen", "checkpoint", "auto", DENSE_INIT, *(f"auto {mode}" for mode in MODES)]


def build(name: str, variant: str, device: str) -> nn.Module:
    """The network, in training mode and channels_last; the same weights at each call."""
    torch.manual_seed(0)
    name, _, pointwise = name.partition("+")
    model = MEMORY_MODELS[name]().train()
    if variant != "learned":
        frozen = variant in ("frozen", "checkpoint")
        init, _, mode = ("auto" if frozen else variant).partition(" ")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that little is left to learn: nothing here is to be learned well
            efx.convert(model, init, seed=0, pointwise=bool(pointwise))
        if frozen:
            efx.revert(model)
        freeze_spatial(model)
        if variant == "checkpoint":
            checkpoint_blocks(name, model)
        if mode:
            efx.save_memory(model, mode)
    return model.to(device, memory_format=torch.channels_last)


def batch(size: int, count: int, device: str) -> tuple[Tensor, Tensor]:
    """Normal images (count, 3, size, size) and random classes (count,), the same at each call."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, size, size, generator=generator).to(device)
    return x.to(memory_format=torch.channels_last), torch.randint(CLASSES, (count,), generator=generator).to(device)


def forward(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return F.cross_entropy(logits_of(model(x)), target)


def step_of(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    """One training step; so slow that thousands of them on one batch change no number's order."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward(model, x, target).backward()
        optimizer.step()

    return step


def graph_of(step: Callable[[], None]) -> Callable[[], None]:
    """Records the step, which has run before, as a CUDA graph; returns what replays it."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def memory(model: nn.Module, x: Tensor, target: Tensor, step: Callable[[], None]) -> tuple[int | None, int | None]:
    """(bytes alive after the forward pass, most bytes alive in a step), above those before it; None on a CPU."""
    if x.device.type != "cuda":
        return None, None
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    loss = forward(model, x, target)
    kept = torch.cuda.memory_allocated() - before
    del loss
    torch.cuda.reset_peak_memory_stats()
    step()
    return kept, torch.cuda.max_memory_allocated() - before


def error_of(model: nn.Module, x: Tensor) -> float:
    """Relative norm of the logits' difference from the same filters in torch's convolutions; 0 if there are none.

    Raises:
        FloatingPointError: it is larger than rounding explains.
    """
    plain = efx.revert(copy.deepcopy(model))

    def logits(network: nn.Module) -> Tensor:
        torch.manual_seed(1)  # dropout's
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16):
            return logits_of(network(x))

    error = relative_error(logits(model), logits(plain).double())
    if not error <= TOLERANCE:
        raise FloatingPointError(f"logits differ from torch's by {error:.1e}, at most {TOLERANCE} expected")
    return error


def measure(name: str, size: int, count: int, rounds: int, device: str = "cuda") -> tuple[list[dict], list[dict]]:
    """(a row for each variant, {"model", "variant", "why"} for each that failed). All are alive at once, and timed
    interleaved."""
    x, target = batch(size, count, device)
    steps, graphs, rows, failures = {}, {}, {}, []
    for variant in variants():
        try:
            model = build(name, variant, device)
            step = step_of(model, x, target)
            step()  # cuDNN tries its algorithms, and workspaces are made
            kept, peak = memory(model, x, target, step)
            row = {"model": name, "variant": variant, "batch": count, "size": size, "kept": kept, "peak": peak}
            rows[variant], steps[variant] = row | {"error": error_of(model, x)}, step
            model.zero_grad(set_to_none=True)
        except (RuntimeError, ArithmeticError) as error:
            failures.append({"model": name, "variant": variant, "why": str(error).splitlines()[0]})
    timings = interleaved(steps, rounds, 0.0, clock_of(device)) if steps else {}
    if device == "cuda":
        for variant, step in steps.items():
            try:
                graphs[variant] = graph_of(step)
            except RuntimeError as error:
                why = f"in a graph: {str(error).splitlines()[0]}"
                failures.append({"model": name, "variant": variant, "why": why})
    in_graphs = interleaved(graphs, rounds, 0.0, clock_of(device)) if graphs else {}
    for kind, timed in (("", timings), ("graph_", in_graphs)):
        for variant, timing in timed.items():
            rows[variant] |= {f"{kind}seconds": timing.as_dict()}
            if "learned" in timed:
                rows[variant] |= {f"{kind}ratio": ratio(timed, "learned", variant)}
    return list(rows.values()), failures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,resnet18+pointwise,efficientnet_b0",
                        help=f"of {', '.join(MEMORY_MODELS)}, with +pointwise or without")  # fmt: skip
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="default: bench/results/cuda_training_<card>.json")
    arguments = parser.parse_args(argv)
    names = arguments.models.split(",")
    if unknown := [name for name in names if name.partition("+")[0] not in MEMORY_MODELS]:
        parser.exit(2, f"unknown model {unknown[0]!r}; models are {', '.join(MEMORY_MODELS)}\n")
    if not torch.cuda.is_available():
        parser.exit(2, NO_GPU)
    out = arguments.out or RESULTS / f"cuda_training_{slug(about_gpu()['hardware'])}.json"
    rows, failures = [], []
    for name in names:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            done, failed = measure(name, arguments.size, arguments.batch, arguments.rounds)
        rows, failures = [*rows, *done], [*failures, *failed]
        out.write_text(as_text({**about_gpu(), "failures": failures, "rows": rows}))
    Console(width=180, highlight=False).print(rich_table("training steps", TRAINING_HEAD, training_cells(rows)))
    print(out)
    if failures:
        parser.exit(1, "\n".join(json.dumps(failure) for failure in failures) + "\n")


if __name__ == "__main__":
    main()
