"""`optimize_for_inference`: makes a copy of a network that runs faster on the CPU, and compares it with the network."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import check_has_tensors, check_is_module, on_a_copy
from explainfix_ext._support.text import first_line, table_lines, times
from explainfix_ext.memory.save import save_memory

from .choose import settle
from .compare import TOLERANCE, compare
from .fuse import fuse
from .graph import trace


class Optimized(nn.Module):
    """Is what `optimize_for_inference` returns: a network that only infers. It has no gradient and no training mode.

    torch.save(optimized, path) keeps it, and torch.load(path, weights_only=False) brings it back in another process.

    Attributes:
        network: what runs.
        steps: for each convolution, by its name in the model, what runs it.
        error: the largest difference from the model's outputs, as a share of their norm.
        sizes: the shapes of the first input at which the outputs were compared.
        reason: why nothing was optimised, and `network` is the model; else empty.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        >>> fast = optimize_for_inference(model, torch.randn(1, 3, 16, 16))
        >>> list(fast.steps), fast.sizes[0], fast.reason
        (['0'], (1, 3, 16, 16), '')
    """

    def __init__(
        self, network: nn.Module, steps: dict[str, str] | None = None, error: float = 0.0,
        sizes: tuple[tuple[int, ...], ...] = (), reason: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.steps, self.error, self.sizes, self.reason = network, steps or {}, error, sizes, reason
        self.eval()

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        _keep_freed_memory()
        return self.network(*(x.contiguous() if isinstance(x, Tensor) else x for x in inputs))

    def train(self, mode: bool = True) -> Optimized:
        """Leaves the network in eval mode, whichever `mode` is asked for."""
        return super().train(False)

    @property
    def report(self) -> str:
        """Returns a table of the convolutions and what runs each, and how far the outputs are from the model's."""
        if self.reason:
            return f"unchanged: {self.reason}"
        lines = table_lines([("convolution", "runs as"), *self.steps.items()])
        sizes = ", ".join(map(times, self.sizes))
        return "\n".join([*lines, f"relative difference from the model: {self.error:.1e}, at {sizes}"])


def optimize_for_inference(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Optimized:
    """Makes a copy of a network that computes the same in eval mode, faster, on the CPU.

    BatchNorm, activation and addition after a convolution become part of it. Of the kernels that can run a layer, fixed
    or learned, the fastest on `example` is taken, with the number of threads that torch has now. So two calls may
    choose differently, and differ in rounding.

    Args:
        model: any module, in float32 (or float64, for comparisons) on the CPU. It is not changed.
        example: the input, or a tuple of the inputs, of the size that matters. Other sizes run, too.

    Returns:
        The network, compared with `model` on `example` and on images of other sizes where the model takes them: the
        norm of the difference is at most 1e-5 of the output's (1e-10 in float64), or 4 times what float32 itself costs
        an ill-conditioned model, and never over 1e-2. Where torch.fx cannot trace the model, or the outputs differ by
        more, it is a plain copy of the model; `reason` says why.

    Raises:
        TypeError: model is no module, or example has no tensor.

    Examples:
        >>> model = torchvision.models.resnet18().eval()
        >>> _ = convert(model, pointwise=True)
        >>> x = torch.randn(1, 3, 64, 64)
        >>> fast = optimize_for_inference(model, x)
        >>> print(len(fast.steps), fast.reason or "optimised")
        20 optimised

        The equivalent PyTorch:

        >>> with torch.no_grad():
        ...     expected = model(x)
        >>> ((fast(x) - expected).norm() / expected.norm()).item() < 1e-5
        True

    Source: folding BatchNorm is in Jacob et al. 2018, section 3.2; to choose kernels by time is cuDNN's benchmark mode.
    """
    check_is_module(model)
    check_has_tensors("example", example)
    inputs = example if isinstance(example, tuple) else (example,)
    tensors = [t for t in (*inputs, *model.parameters(), *model.buffers()) if isinstance(t, Tensor)]
    with on_a_copy(model) as plain:
        save_memory(plain, "off")
        plain.eval()
        if reason := _unfit(tensors):
            return Optimized(plain, reason=reason)
        try:
            with on_a_copy(plain) as copied:
                network, steps = _optimized(copied, inputs)
            found = compare(plain, network, inputs)
        except Exception as error:  # a model may raise anything on a proxy
            return Optimized(plain, reason=first_line(error))
        if found.failure:
            return Optimized(plain, reason=found.failure)
        return Optimized(network, steps, found.error, tuple(found.sizes))


def _optimized(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, dict[str, str]]:
    """Makes steps of the modules of `model`, and runs them once, so that the fastest are known."""
    with torch.no_grad():
        module = trace(model, inputs)
        choices = fuse(module)
        if not choices:
            raise ValueError("it has no convolution that a step can run")
        _keep_freed_memory()
        module(*inputs)
        return settle(module), {name: choice.describe() for name, choice in choices.items()}


def _unfit(tensors: list[Tensor]) -> str:
    """Says why tensors are not for the kernels; empty if they are."""
    devices = {t.device.type for t in tensors}
    dtypes = {t.dtype for t in tensors if t.is_floating_point()}
    if devices != {"cpu"}:
        return f"it, or the example, is on {', '.join(sorted(devices - {'cpu'}))}: the kernels are for the CPU"
    if len(dtypes) != 1 or not dtypes <= TOLERANCE.keys():
        return f"it and the example must be in float32, got {', '.join(sorted(str(d) for d in dtypes))}"
    return ""


@functools.cache
def _keep_freed_memory() -> None:
    """Lets glibc keep what is freed, once a process: it learns from the largest block freed, up to 32 MiB.

    Until then it returned the activations of EfficientNet-B0 to the system, and got them back page by page, in each
    call: 2,300 page faults, 3 of 17 ms.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
