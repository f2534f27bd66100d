"""What a training step on one large image takes, streamed and not: counted, as the process grew, and in time.

    python bench/bench_stream.py [--model resnet50] [--size 2048] [--counted 4096] [--rounds 1] [--out FILE.json]

First without numbers, at --counted pixels: the peak of activations and gradients, over that of the same network with
torch's frozen convolutions. Then real steps at --size, each variant in a process of its own, which tells by how much it
grew; times of a step are medians, over frozen torch's. BatchNorm uses running statistics in all, as `stream` has it.
`--mosaic FILE.npz` puts its `images` (N, H, W) side by side to --size pixels and compares the losses, streamed and
whole, in float64 on a fixed ResNet-18.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from names_only import names_only
from rich.progress import track
from torch import nn

import explainfix_ext as efx
from explainfix_ext._support.machine import hardware, versions
from explainfix_ext.memory.budget.fake import step_counter
from explainfix_ext.memory.report import mean_square

# How each variant trains: mode and checkpoint of save_memory, and the tile.
VARIANTS: dict[str, tuple[str, str, int | None]] = {
    "frozen": ("off", "off", None),
    "recompute": ("recompute", "off", None),
    "recompute blocks": ("recompute", "blocks", None),
    "recompute, tile 1024": ("recompute", "off", 1024),
    "recompute blocks, tile 1024": ("recompute", "blocks", 1024),
    "recompute, tile 512": ("recompute", "off", 512),
    "recompute blocks, tile 512": ("recompute", "blocks", 512),
    "int8, tile 512": ("int8", "off", 512),
}


def build(name: str, variant: str) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    model = getattr(torchvision.models, name)(num_classes=10)
    efx.convert(model, seed=0)
    mode, checkpoint, tile = VARIANTS[variant]
    if variant == "frozen":
        efx.revert(model)
    efx.save_memory(model, mode, checkpoint)
    if tile is not None:
        efx.stream(model, tile, calibrate=torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    return model


def counted(name: str, variant: str, size: int) -> dict:
    return {
        "variant": variant,
        "size": size,
        "counted": step_counter(build(name, variant), (3, size, size), None)(1).peak,
    }


def run(name: str, variant: str, size: int, rounds: int) -> dict:
    model = build(name, variant)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    mean_square(model(image[:, :, :256, :256])).backward()
    before, seconds = reset_peak(), []
    for _ in range(rounds):
        model.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        mean_square(model(image)).backward()
        seconds.append(time.perf_counter() - begin)
    grew = resident("VmHWM") - before
    return {"variant": variant, "size": size, "process_grew": grew, "seconds": statistics.median(seconds)}


def resident(what: str) -> int:
    """Returns bytes of the process in memory: VmRSS now, VmHWM at most since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024


def reset_peak() -> int:
    """Gives freed memory back to the system, forgets the peak so far, and returns what is in memory."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def mosaic(path: Path, size: int) -> dict:
    """Takes a training step on a mosaic, streamed and whole, and compares losses and gradients in float64."""
    with np.load(path) as file:
        images = file["images"]
    side = images.shape[1]
    count = -(-size // side)
    tiles = images[np.arange(count * count) % len(images)].reshape(count, count, side, side)
    image = torch.from_numpy(tiles.transpose(0, 2, 1, 3).reshape(1, 1, count * side, count * side).copy())
    image = image.expand(1, 3, -1, -1).double() / 255
    losses, gradients = {}, {}
    for variant in ("recompute", "recompute, tile 512"):
        model = build("resnet18", "recompute").double()
        efx.stream(model, 512, calibrate=image)
        model.eval()
        if variant == "recompute":
            efx.unstream(model)
        loss = nn.functional.cross_entropy(model(image), torch.tensor([1]))
        loss.backward()
        losses[variant] = loss.item()
        gradients[variant] = torch.cat([p.grad.flatten() for p in model.parameters()])
    whole, streamed = gradients.values()
    return {"pixels": count * side, "losses": losses, "gradient_error": float((streamed - whole).norm() / whole.norm())}


def in_own_process(arguments: argparse.Namespace, *words: str) -> dict:
    options = ["--model", arguments.model, "--size", arguments.size, "--counted", arguments.counted]
    command = [sys.executable, __file__, *map(str, options), "--rounds", str(arguments.rounds), "--only", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"variant": words[1], "failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
    return json.loads(done.stdout)


def table(rows: list[dict], runs: list[dict]) -> str:
    lines = ["| | counted peak MiB | over frozen | process grew MiB | seconds | over frozen |", "|" + " --- |" * 6]
    frozen_peak = rows[0].get("counted")
    frozen_time = runs[0].get("seconds")
    for row, real in zip(rows, runs, strict=True):
        cells = ["failed", "-", "-", "-", "-"]
        if "counted" in row:
            cells[:2] = [
                f"{row['counted'] / 2**20:,.0f}",
                f"{row['counted'] / frozen_peak:.4f}" if frozen_peak else "-",
            ]
        if "seconds" in real:
            over = f"{real['seconds'] / frozen_time:.2f}" if frozen_time else "-"
            cells[2:] = [f"{real['process_grew'] / 2**20:,.0f}", f"{real['seconds']:.1f}", over]
        lines.append(f"| {row['variant']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="of torchvision")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--counted", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--mosaic", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "stream_cpu.json")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        what, variant = arguments.only
        model = arguments.model
        if what == "count":
            print(json.dumps(counted(model, variant, arguments.counted)))
        else:
            print(json.dumps(run(model, variant, arguments.size, arguments.rounds)))
        return
    results: dict = {"hardware": hardware(torch.device("cpu")), "versions": versions(), "model": arguments.model}
    if arguments.mosaic:
        results["mosaic"] = mosaic(arguments.mosaic, arguments.size)
        print(results["mosaic"])
    results["counted"] = [in_own_process(arguments, "count", v) for v in track(VARIANTS, "counting", transient=True)]
    results["runs"] = [in_own_process(arguments, "run", v) for v in track(VARIANTS, "running", transient=True)]
    arguments.out.write_text(json.dumps(names_only(results), indent=1) + "\n")
    print(table(results["counted"], results["runs"]))
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
