"""status says what runs here: versions, binaries, instruction set and GPUs; `explainfix status` prints it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version

import torch

from . import binaries


@dataclass(frozen=True)
class Status:
    """A Status holds versions, the binaries that are loaded (or why not), and the hardware; `print(status())` shows it.

    Attributes:
        explainfix_ext: version.
        torch: version.
        cpu_kernels: name of the binary that is loaded, or "pure torch" and the reason.
        cuda_kernels: the same for GPUs.
        cpu: the instruction set that torch uses, its threads, and the instruction set that our kernels use.
        gpu: names of the GPUs, or "none".

    Examples:
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
        """Returns the attributes as a dict for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{name.replace('_kernels', ' kernels'):>14}  {text}" for name, text in self.as_dict().items())


def _kernels(device: str) -> str:
    if binaries.LOADED[device] is None:
        return f"pure torch ({binaries.REASON[device]})"
    off = f", but {', '.join(sorted(binaries.OFF))} in pure torch" if device == "cuda" and binaries.OFF else ""
    return f"{binaries.LOADED[device]}{off}"


def status() -> Status:
    """Finds out what runs here.

    Examples:
        >>> status().torch == torch.__version__
        True
        >>> print(status())  # doctest: +SKIP
        explainfix_ext  0.1.0
                 torch  2.15.0+cu132
           cpu kernels  _C.abi3.so
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    torch_isa = torch.backends.cpu.get_cpu_capability()
    return Status(
        explainfix_ext=version("explainfix_ext"),
        torch=torch.__version__,
        cpu_kernels=_kernels("cpu"),
        cuda_kernels=_kernels("cuda"),
        cpu=f"{torch_isa}, {torch.get_num_threads()} threads, kernels for {binaries.cpu_isa()}",
        gpu=", ".join(gpus) or "none",
    )
