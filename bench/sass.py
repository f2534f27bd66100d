"""What the compiler made of the CUDA kernels, read from the binary; needs no GPU.

    python bench/sass.py [BINARY] [--only depthwise] [--launch depthwise=128:0] [--out bench/results/sass.json]

For every kernel and architecture: registers, static shared memory, stack and local memory (cuobjdump -res-usage), how
often some instructions stand in the machine code, and how full a multiprocessor gets. Threads and dynamic shared memory
of a launch are not in the binary: `--launch PART=THREADS:BYTES` gives them for kernels whose name contains PART; the
others count as 256:0. Exit code 1 if a kernel spills, 2 if something is missing.

Instructions: HMMA, HGMMA matrix products; LDSM ldmatrix; LDGSTS cp.async; FFMA, HFMA2, HADD2 arithmetic; LDS, STS
shared memory; LDG, STG global memory; LDL, STL local memory: spilled registers, or arrays with a run-time index.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
COUNTED = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "FFMA", "HFMA2", "HADD2", "LDS", "STS", "LDG", "STG", "LDL", "STL")
USAGE = {"REG": "registers", "SHARED": "shared", "STACK": "stack", "LOCAL": "local"}
DEFAULT_LAUNCH = (256, 0)  # threads a block, bytes of dynamic shared memory

# Of a multiprocessor: (KiB of shared memory, warps). Both have 65536 registers in four parts and hold 32 blocks.
MULTIPROCESSORS = {"sm_80": (164, 64), "sm_90": (228, 64)}
REGISTERS, PARTS, MOST_BLOCKS = 65536, 4, 32

Kernel = tuple[str, str]  # architecture, mangled name


def parse_usage(lines: Iterable[str]) -> dict[Kernel, dict[str, int]]:
    """{kernel: {"registers", "shared", "stack", "local"}} from cuobjdump -res-usage; all but registers in bytes."""
    found, arch, name = {}, "", ""
    for line in lines:
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):$", line):
            name = match[1]
        elif name and "REG:" in line:
            numbers = dict(re.findall(r"(\w+):(\d+)", line))
            found[arch, name] = {label: int(numbers[key]) for key, label in USAGE.items()}
    return found


def parse_sass(lines: Iterable[str]) -> dict[Kernel, Counter[str]]:
    """{kernel: how often each opcode, without its modifiers, stands in it} from cuobjdump -sass."""
    found: dict[Kernel, Counter[str]] = {}
    arch, counts = "", Counter[str]()
    for line in lines:
        if match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)", line):
            counts[match[1]] += 1
        elif match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            counts = found.setdefault((arch, match[1]), Counter())
    return found


def occupancy(arch: str, registers: int, threads: int, shared: int) -> float | None:
    """Share of a multiprocessor's warps that can be there at once; None for an architecture that is not in the table.

    Args:
        registers: of a thread.
        threads, shared: of a block; bytes, static and dynamic together.

    A warp gets registers in units of 256, so 8 a thread, within one of the four parts; a block gets 1 KiB of shared
    memory more than it asks for, in units of 128 bytes.
    """
    limits = MULTIPROCESSORS.get(arch.rstrip("abcdef"))
    if limits is None:
        return None
    kib, most_warps = limits
    warps = -(-threads // 32)
    registers_a_warp = 32 * max(8, -(-registers // 8) * 8)
    by_registers = REGISTERS // PARTS // registers_a_warp * PARTS // warps
    by_shared = kib * 1024 // (-(-shared // 128) * 128 + 1024)
    blocks = min(by_registers, by_shared, most_warps // warps, MOST_BLOCKS)
    return blocks * warps / most_warps


def short_names(names: Sequence[str]) -> dict[str, str]:
    """{mangled name: what a reader wants to see}; the mangled one itself where there is no c++filt."""
    filt = shutil.which("c++filt") or shutil.which("cu++filt")
    if filt is None or not names:
        return {name: name for name in names}
    done = subprocess.run([filt], input="\n".join(names), capture_output=True, text=True, check=True)
    return {name: _shortened(text) for name, text in zip(names, done.stdout.splitlines(), strict=True)}


def _shortened(text: str) -> str:
    """Without return type, arguments and namespaces."""
    depth, end = 0, len(text)
    for i, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            end = i
            break
    return re.sub(r"\b(explainfix|device|c10)::|^void |\(([\w:]+)\)(?=\d)", "", text[:end])


def rows_of(
    usage: Mapping[Kernel, Mapping[str, int]],
    opcodes: Mapping[Kernel, Mapping[str, int]],
    launches: Mapping[str, tuple[int, int]],
) -> list[dict]:
    """A row for each kernel and architecture, sorted by name."""
    names = short_names(list(dict.fromkeys(name for _, name in usage)))
    rows = []
    for (arch, name), used in usage.items():
        launch = next((sizes for part, sizes in launches.items() if part in names[name]), DEFAULT_LAUNCH)
        row = {"kernel": names[name], "arch": arch, **used, "threads": launch[0], "dynamic_shared": launch[1]}
        row["occupancy"] = occupancy(arch, used["registers"], launch[0], used["shared"] + launch[1])
        counts = opcodes.get((arch, name), {})
        rows.append(row | {"instructions": sum(counts.values()), **{op: counts.get(op, 0) for op in COUNTED}})
    return sorted(rows, key=lambda row: (row["kernel"], row["arch"]))


def spills(row: Mapping[str, int]) -> bool:
    return bool(row["LDL"] or row["STL"] or row["local"])


def table_of(rows: Sequence[Mapping]) -> Table:
    table = Table(title="CUDA kernels", box=box.SIMPLE)
    for name in ("kernel", "arch"):
        table.add_column(name, overflow="fold")
    shown = ("registers", "shared", "stack", "instructions", *COUNTED)
    for name in ("regs", "shared", "stack", "all", *COUNTED, "occupancy"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        full = "-" if row["occupancy"] is None else f"{row['occupancy']:.0%}"
        numbers = [str(row[name] or "") for name in shown]
        table.add_row(row["kernel"], row["arch"], *numbers, full, style="red" if spills(row) else None)
    return table


def find_cuobjdump() -> str | None:
    """From PATH, the CUDA toolkit, or triton."""
    try:
        import triton

        packaged = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    except ImportError:
        packaged = Path("/usr/local/cuda/bin/cuobjdump")
    places = ("cuobjdump", "/usr/local/cuda/bin/cuobjdump", str(packaged))
    return next((found for found in map(shutil.which, places) if found), None)


def read_binary(binary: Path, launches: Mapping[str, tuple[int, int]] | None = None) -> list[dict]:
    """`rows_of` all kernels in it."""
    tool = find_cuobjdump()

    def dump(option: str) -> list[str]:
        return subprocess.run([tool, option, binary], capture_output=True, text=True, check=True).stdout.splitlines()

    return rows_of(parse_usage(dump("-res-usage")), parse_sass(dump("-sass")), launches or {})


def parse_launch(text: str) -> tuple[str, tuple[int, int]]:
    """ "depthwise=128:0" -> ("depthwise", (128, 0))"""
    match = re.fullmatch(r"(.+)=(\d+):(\d+)", text)
    if not match or not 1 <= int(match[2]) <= 1024:
        raise argparse.ArgumentTypeError(f"must be PART=THREADS:BYTES with 1 to 1024 threads, got {text!r}")
    return match[1], (int(match[2]), int(match[3]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", type=Path, help="default: explainfix_ext/ops/_C_cu*.so")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--launch", type=parse_launch, action="append", default=[], metavar="PART=THREADS:BYTES")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "sass.json")
    arguments = parser.parse_args(argv)
    folder = ROOT / "explainfix_ext" / "ops"
    built = sorted(folder.glob("_C_cu*.so"))
    binary = arguments.binary or next(iter(built), None)
    if binary is None or not binary.exists():
        parser.exit(2, f"no CUDA binary at {binary or folder}: build with EXPLAINFIX_CUDA=1\n")
    if find_cuobjdump() is None:
        parser.exit(2, "no cuobjdump: it comes with the CUDA toolkit, and with triton (pip install triton)\n")

    rows = [row for row in read_binary(binary, dict(arguments.launch)) if arguments.only in row["kernel"]]
    Console(width=200).print(table_of(rows))
    lines = ",\n".join(json.dumps(row) for row in rows)
    arguments.out.write_text(f'{{"binary": {json.dumps(binary.name)}, "rows": [\n{lines}\n]}}\n')
    spilled = [f"{row['kernel']} ({row['arch']})" for row in rows if spills(row)]
    print(f"{len(rows)} kernels; {arguments.out}")
    if spilled:
        parser.exit(1, "local memory is used by: " + ", ".join(spilled) + "\n")


if __name__ == "__main__":
    main()
