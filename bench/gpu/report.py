"""Makes what the GPU benchmarks show and write: tables of text cells, for the terminal and Markdown, and JSON."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.table import Table

from explainfix_ext._support.machine import hardware, versions

from .ceilings import Ceilings

Row = dict[str, Any]

LAYER_HEAD = ("layer", "task", "plan", "ours (us)", "torch (us)", "faster", "NCHW / NHWC", "of floor", "of copy",
              "torch of its floor", "error / torch's")  # fmt: skip
TRAINING_HEAD = ("network", "variant", "step (ms)", "faster than learned", "than frozen", "in a graph (ms)",
                 "faster than learned", "than frozen", "peak (MiB)", "of frozen's", "kept (MiB)", "error")  # fmt: skip


def slug(name: str) -> str:
    """Turns a name into one for files: "NVIDIA H100 80GB HBM3" is "nvidia_h100_80gb_hbm3"."""
    return "_".join(re.findall("[a-z0-9]+", name.lower()))


def about_gpu(quick: bool = False) -> dict[str, Any]:
    """Returns the head of a report: card, machine, versions, date; without a GPU, as in tests, the CPU's."""
    there = torch.cuda.is_available()
    machine, found = hardware(torch.device("cuda" if there else "cpu")), versions()
    card: dict[str, Any] = {}
    if there:
        properties = torch.cuda.get_device_properties(0)
        card = {
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {
        "hardware": machine["gpu"] or machine["cpu"],
        "isa": "sm_{}{}".format(*torch.cuda.get_device_capability()) if there else "cpu",
        **card,
        "cpu": machine["cpu"],
        "torch": torch.__version__,
        "explainfix_ext": found["explainfix_ext"],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
    }


def layer_report(
    rows: Sequence[Row], failures: Sequence[Row], ceilings: Ceilings, quick: bool = False
) -> dict[str, Any]:
    """Returns a report of all rows of `measure_cuda_layer`; failures are {"case", "task", "why"}."""
    head = about_gpu(quick)
    return {**head, "copy_bytes_per_second": ceilings.copy, "flops": ceilings.flops, "failures": list(failures),
            "rows": list(rows)}  # fmt: skip


def layer_cells(row: Row) -> list[str]:
    """Returns the cells of a row under LAYER_HEAD. "faster" is torch's time over ours, each in its faster layout."""
    seconds, error = row["seconds"], row["error"]
    mine, torchs = (_in(row[layout], name) for layout, name in (("our_layout", "ours"), ("torch_layout", "torch")))
    return [
        row["case"], row["task"], row["plan"], f"{seconds[mine]['median'] * 1e6:.1f}",
        f"{seconds[torchs]['median'] * 1e6:.1f}", f"{row['ratio']['median']:.2f}",
        f"{row['ratio_nchw']['median']:.2f} / {row['ratio_channels_last']['median']:.2f}",
        f"{row['floor_fraction']:.0%}", f"{row['copy_fraction']:.0%}", f"{row['torch_floor_fraction']:.0%}",
        f"{error[mine]:.1e} / {error[torchs]:.1e}",
    ]  # fmt: skip


def training_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the cells of all rows of `bench_cuda_training.py`, under TRAINING_HEAD."""
    found = {(row["model"], row["variant"]): row for row in rows}
    table = []
    for row in rows:
        learned, frozen = (found.get((row["model"], name)) for name in ("learned", "frozen"))
        times = [text for kind in ("seconds", "graph_seconds") for text in _times(kind, row, learned, frozen)]
        share = f"{row['peak'] / frozen['peak']:.2f}" if frozen and row["peak"] else "-"
        table.append([
            row["model"], row["variant"], *times, _mib(row["peak"]), share,
            _mib(row["kept"]), f"{row['error']:.0e}",
        ])  # fmt: skip
    return table


def _times(kind: str, row: Row, *others: Row | None) -> list[str]:
    """Returns the milliseconds of a row, and how many times as long each of the others takes."""
    if kind not in row:
        return ["-"] * (1 + len(others))
    median = row[kind]["median"]
    ratios = [f"{other[kind]['median'] / median:.2f}" if other and kind in other else "-" for other in others]
    return [f"{median * 1e3:.1f}", *ratios]


def rich_table(title: str, head: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """Returns a table for the terminal; columns with a number in any row are aligned right."""
    table = Table(title=title, box=box.SIMPLE)
    for i, name in enumerate(head):
        number = any(row[i][:1].isdigit() for row in cells)
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table


def _in(layout: str, name: str) -> str:
    return name if layout == "NCHW" else f"{name} {layout}"


def _mib(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 2**20:.0f}"
