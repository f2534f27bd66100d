"""Bytes that DistributedDataParallel sends in a training step: filters learned, and filters fixed.

    python bench/ddp_bytes.py [--networks resnet18 resnet50 densenet121 efficientnet_b0]
        [--ways learned fixed "fixed, pointwise"] [--out FILE.json]

Starts two processes on this machine (CPU, gloo), which train each network of torchvision, with random weights, on
images of 64 pixels: three steps under DDP, of which the last is counted. Every collective is counted as DDP issues it:
gradients all-reduced, and BatchNorm's running statistics broadcast from rank 0 in each forward pass.
Afterwards both ranks must hold the same parameters, bit for bit, and other ones than before. Times nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from table import ddp_table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import explainfix_ext as efx
from explainfix_ext._support.machine import hardware, versions

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("resnet18", "resnet50", "densenet121", "efficientnet_b0")
# resnet18 has next to no learned 1x1 of its own: what adding them costs is shown beside it.
WAYS: dict[str, dict[str, Any] | None] = {"learned": None, "fixed": {}, "fixed, pointwise": {"pointwise": True}}
STEPS, IMAGES, SIZE, CLASSES = 3, 2, 64, 1000  # the second step also agrees on buckets, once
PATIENCE = timedelta(seconds=120)  # of a collective for the other process


class Traffic(TorchDispatchMode):
    """Sums the bytes of each kind of collective that this process issues."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.bytes[func.overloadpacket.__name__.strip("_")] += sum(t.nbytes for t in args[0])
        return func(*args, **(kwargs or {}))


def train(network: str, options: dict[str, Any] | None, rank: int) -> dict[str, Any]:
    """STEPS steps under DDP -> what the last of them sent."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, network)(num_classes=CLASSES)
    if options is not None:
        efx.convert(model, "dct2", seed=0, **options)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, data = flat(model), torch.Generator().manual_seed(rank)
    for _ in range(STEPS):
        x = torch.randn(IMAGES, 3, SIZE, SIZE, generator=data)
        y = torch.randint(CLASSES, (IMAGES,), generator=data)
        with Traffic() as sent:
            loss = nn.functional.cross_entropy(wrapped(x), y)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    check_ranks_agree(network, before, flat(model))
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return {"all_reduced": sent.bytes["allreduce"], "broadcast": sent.bytes["broadcast"], "gradients": gradients}


def flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def check_ranks_agree(network: str, before: Tensor, after: Tensor) -> None:
    """Else what was counted was no training."""
    everyone = [torch.empty_like(after) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, after)
    if not all(torch.equal(one, after) for one in everyone):
        raise RuntimeError(f"{network}: parameters differ between ranks after {STEPS} steps")
    if torch.equal(before, after) or not after.isfinite().all():
        raise RuntimeError(f"{network}: parameters are not finite, or did not change in {STEPS} steps")


def work(rank: int, folder: str, networks: list[str], ways: list[str]) -> None:
    """One of the two processes; the first writes the rows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that resnet18 has little left to learn
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=PATIENCE)
    rows = [{"network": name} | {way: train(name, WAYS[way], rank) for way in ways} for name in networks]
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def measure(networks: list[str], ways: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder, networks, ways), nprocs=2)  # if one fails, so does this, and the other is ended
        return json.loads((Path(folder) / "rows.json").read_text())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--out", type=Path, default=RESULTS / "ddp_bytes.json")
    arguments = parser.parse_args(argv)
    rows = measure(arguments.networks, arguments.ways)
    about = {"hardware": hardware(torch.device("cpu")), "versions": versions(), "processes": 2, "steps": STEPS}
    arguments.out.write_text(json.dumps({**about, "images": IMAGES, "pixels": SIZE, "rows": rows}, indent=1) + "\n")
    ddp_table(rows)


if __name__ == "__main__":
    main()
