"""What runs here: versions, binaries, instruction set, GPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version

import torch

from . import binaries
from .binaries import cpu_isa


@dataclass(frozen=True)
class Status:
    """Versions, the binaries that loaded (or why not), and the hardware. `print(status())` shows it.

    Attributes:
        explainfix_ext, torch: versions.
        cpu_kernels, cuda_kernels: name of the binary that loaded, or "pure torch" and the reason.
        cpu: what torch runs on, its threads, and for which instruction set our kernels run.
        gpu: names of the GPUs, or "none".

    Example:
        >>> sorted(status().as_dict())
        ['cpu', 'cpu_kernels', 'cuda_kernels', 'explainfix_ext', 'gpu', 'torch']
    """

    explainfix_ext: str
    torch: str
    cpu_kernels: str
    cuda_kernels: str
    cpu: str
    gpu: str

    def as_dict(self) -> dict[str, str]:
        """The attributes, as JSON takes them."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{name.replace('_kernels', ' kernels'):>14}  {text}" for name, text in self.as_dict().items())


def _kernels(device: str) -> str:
    return binaries.LOADED[device] or f"pure torch ({binaries.REASON[device]})"


def status() -> Status:
    """What runs here.

    Example:
        >>> status().torch == torch.__version__
        True
        >>> print(status())  # doctest: +SKIP
        explainfix_ext  0.1.0
                 torch  2.15.0+cu132
           cpu kernels  _C.abi3.so
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Status(
        explainfix_ext=version("explainfix_ext"),
        torch=torch.__version__,
        cpu_kernels=_kernels("cpu"),
        cuda_kernels=_kernels("cuda"),
        cpu=f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, kernels for {cpu_isa()}",
        gpu=", ".join(gpus) or "none",
    )
