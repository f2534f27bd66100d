"""What a network takes to run on the CPU, deployed in every way that a user may pick.

    python bench/bench_deploy.py [--models resnet18 ...] [--batch 1 8] [--threads 1 2] [--rounds 7] [--out FILE.json]

Peers run the learned network: torch (the faster memory layout), torch.compile with freezing, ONNX Runtime, OpenVINO.
Ours run the same network with fixed filters (`auto`, after `convert`), of which 1/8 are not zero (`dct2`), or pruned to
a tenth by channels and work: as they are, by `optimize_for_inference`, and in ONNX Runtime with and without our
library. Each runs in a process of its own, since threads that wait for work disturb others; they have turns, and a
turn is the median of some calls after a warm-up. Every output is compared with the same network's in float64.
A picture FILE.png shows batch 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

import explainfix_ext as efx
import explainfix_ext.onnx
from explainfix_ext._support.machine import hardware, versions

SIZE = 224
PEERS = ("torch", "torch.compile", "onnxruntime", "openvino")
OURS = ("eager", "optimized", "onnx plain", "onnx library")
POINTWISE = ("resnet18", "unet")  # networks that have no learned layer otherwise, or few
FILTERS = {"learned": PEERS, "fixed": OURS, "density 1/8": OURS, "pruned 90 %": ("optimized", "onnx library")}


def network(name: str, filters: str) -> nn.Module:
    """Makes the network in eval mode, with statistics of BatchNorm that are not those of a new one."""
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    if name == "unet":
        import segmentation_models_pytorch as smp

        model: nn.Module = smp.Unet("resnet18", encoder_weights=None)
    else:
        import torchvision

        model = getattr(torchvision.models, name)()
    if filters != "learned":
        options: dict[str, Any] = {"density": 0.125} if filters == "density 1/8" else {}
        efx.convert(model, "dct2" if options else "auto", pointwise=name in POINTWISE, seed=0, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average of all batches
    with torch.no_grad():
        model.train()(torch.randn(8, 3, SIZE, SIZE))
    model.eval()
    if filters == "pruned 90 %":
        options = {"granularity": "channel", "weigh": "work", "criterion": "l2", "bn_bias": "drop"}
        model = efx.channelprune(model, torch.randn(1, 3, SIZE, SIZE), amount=0.9, **options).model.eval()
    return model


def runner(way: str, model: nn.Module, x: Tensor, threads: int) -> Callable[[], Any]:
    """Prepares a way to run the network on x."""
    if way in ("torch", "eager"):
        last, x_last = (copy.deepcopy(t).to(memory_format=torch.channels_last) for t in (model, x))
        return min(lambda: model(x), lambda: last(x_last), key=seconds_of)
    if way == "torch.compile":
        compiled = torch.compile(model, options={"freezing": True})
        return lambda: compiled(x)
    if way == "optimized":
        fast = efx.optimize_for_inference(model, x)
        if fast.reason:
            raise RuntimeError(fast.reason)
        return lambda: fast(x)
    path = Path(tempfile.mkdtemp()) / "model.onnx"
    if way == "openvino":
        import openvino

        export(model, x, path, plain=True)
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        array = x.numpy()
        return lambda: torch.from_numpy(next(iter(request.infer([array]).values())).copy())
    import onnxruntime

    export(model, x, path, plain=way != "onnx library")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if way == "onnx library":
        options.register_custom_ops_library(explainfix_ext.onnx.library())
    session = onnxruntime.InferenceSession(path, options)
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def export(model: nn.Module, x: Tensor, path: Path, plain: bool) -> None:
    with contextlib.redirect_stdout(None):
        explainfix_ext.onnx.export(model, x, path, plain=plain)


def seconds_of(call: Callable[[], Any], calls: int = 3) -> float:
    """Returns the median of some calls, after one to warm up."""
    call()
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def work(name: str, filters: str, way: str, batch: int, threads: int) -> None:
    """Is a process that runs one way: it prints how far its output is from float64, then a time for each line read."""
    torch.set_flush_denormal(True)  # for all ways, and before there are threads, which take it over
    torch.set_num_threads(threads)
    x = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        model = network(name, filters)
        exact = network(name, filters).double()(x.double())
        begin = time.perf_counter()
        call = runner(way, model, x, threads)
        error = float((call().double() - exact).norm() / exact.norm())
        print(json.dumps({"error": error, "seconds to prepare": time.perf_counter() - begin}), flush=True)
        for _ in sys.stdin:
            print(seconds_of(call, 5 if batch > 1 else 11), flush=True)


class Worker:
    """Holds such a process."""

    def __init__(self, *setting: Any) -> None:
        command = [sys.executable, __file__, "--work", json.dumps(setting)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(setting[-1])}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.ask, self.answer = self.process.stdin, self.process.stdout
        line = self.answer.readline()
        if not line:
            raise RuntimeError(self.process.communicate()[1].strip().splitlines()[-1])
        self.facts, self.seconds = json.loads(line), []  # type: ignore[var-annotated]

    def turn(self) -> None:
        print(file=self.ask, flush=True)
        self.seconds.append(float(self.answer.readline()))


def measure(name: str, batch: int, threads: int, rounds: int, without: list[str]) -> list[dict[str, Any]]:
    """Times all ways to run a network in turns."""
    rows: list[dict[str, Any]] = []
    workers: list[Worker] = []
    ways = [(filters, way) for filters, ways in FILTERS.items() for way in ways if way not in without]
    for filters, way in track(ways, f"{name}, batch {batch}, {threads} threads"):
        row = {"network": name, "batch": batch, "threads": threads, "filters": filters, "way": way}
        try:
            workers.append(Worker(name, filters, way, batch, threads))
            rows.append(row | workers[-1].facts)
        except RuntimeError as error:
            print(f"{name}, {filters}, {way}: {error}", file=sys.stderr)
    for _ in range(rounds):
        for worker in workers:
            worker.turn()
    for row, worker in zip(rows, workers, strict=True):
        row["ms"] = round(1e3 * statistics.median(worker.seconds), 3)
        worker.process.communicate()
    best = min((row["ms"] for row in rows if row["filters"] == "learned"), default=float("nan"))
    for row in rows:
        row["times the fastest peer's speed"] = round(best / row["ms"], 2)
        print(f"  {row['filters']:12} {row['way']:14} {row['ms']:9.2f} ms  {best / row['ms']:5.2f}  {row['error']:.0e}")
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the times of batch 1 on the most threads, a panel a network, the fastest peer as a line."""
    from matplotlib.figure import Figure

    threads = max(row["threads"] for row in rows)
    rows = [row for row in rows if row["batch"] == 1 and row["threads"] == threads]
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure((4.2 * len(names), 4.6), layout="constrained")
    for axes, name in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
        own = [row for row in rows if row["network"] == name][::-1]
        peers = [row["ms"] for row in own if row["filters"] == "learned"]
        colours = ["tab:gray" if row["filters"] == "learned" else "tab:blue" for row in own]
        bars = axes.barh([f"{row['filters']}, {row['way']}" for row in own], [row["ms"] for row in own], color=colours)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axes.axvline(min(peers), color="tab:red", linewidth=1)
        axes.set_title(name)
        axes.set_xlabel(f"ms an image, {threads} threads")
        axes.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "unet", "efficientnet_b0"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without", nargs="+", default=[], help="ways to leave out, such as torch.compile")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*json.loads(options.work))
        return
    rows: list[dict[str, Any]] = []
    for name in options.models:
        for batch in options.batch:
            for threads in options.threads:
                rows += measure(name, batch, threads, options.rounds, options.without)
                if options.out:  # after each, for the whole takes long
                    result = {
                        "hardware": hardware(torch.device("cpu")),
                        "versions": versions(),
                        "size": SIZE,
                        "rows": rows,
                    }
                    options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.out:
        draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
