"""tune chooses by measurement between a kernel of ours and torch's convolution, where "auto" has one for a GPU.

The first call of a geometry, in each direction, compares the two and times both; ours runs on where it is right and
faster. Later calls look into a dict; card_cache.py remembers it for other processes. Nothing is measured under CUDA
graph capture, a dispatch mode, deterministic mode or torch.distributed: there what is known holds, or else our kernel
runs, as estimated. Graphs of torch.compile and torch.func do not ask at all. EXPLAINFIX_TUNE=0 turns all of it off.
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from explainfix_ext._support.models import check_has_tensors, check_is_module, eval_mode
from explainfix_ext.ops import binaries, fixed_conv2d, hadamard_conv2d, transposes

from .card_cache import recall, remember
from .card_families import TOLERANCE
from .plan import AUTO, DENSE

ROUNDS, WARM_UPS = 5, 2
GAIN = 0.97  # ours must take less than this share of torch's time, or noise would decide
MOST = 1000  # choices that a process measures by itself: images may be of ever new sizes
TF32_TOLERANCE = 3e-3

CHOICES: dict[tuple, bool | None] = {}  # call -> does our kernel run it? None: nobody has measured it
_INPUT_GRADS = {pair.conv: pair.input_grad for pair in (fixed_conv2d.PAIR, hadamard_conv2d.PAIR)}


def install() -> None:
    """Has `choose` asked at each call of our operators, where there are CUDA kernels to choose."""
    if binaries.LOADED["cuda"] is not None and os.environ.get("EXPLAINFIX_TUNE") != "0":
        transposes.choose = choose


def tune(model: nn.Module, x: Tensor) -> str:
    """Measures ahead, for inputs like x, where kernels of this package are faster than torch's, forward and backward.

    The first calls on a GPU do that by themselves, but not in a CUDA graph, in deterministic mode, or with
    torch.distributed, whose ranks could choose differently. Call this before, there on all ranks: rank 0 measures for
    all. What was measured on this card before is not measured again.

    Args:
        model: is run once in eval mode without gradients, and stays as it was.
        x: an input of the size, dtype and memory layout that will come, on the model's device. For mixed precision,
            call this under torch.autocast.

    Returns:
        What was found, for people.

    Raises:
        TypeError: `model` is no nn.Module, or `x` no tensor.

    Examples:
        >>> print(tune(FixedConv2d(8, 8, 3, groups=8, seed=0), torch.randn(1, 8, 9, 9)))
        nothing to choose: no kernel of this package for GPUs has run
    """
    check_is_module(model)
    check_has_tensors("x", x)
    if x.is_cuda and binaries.LOADED["cuda"] is not None and transposes.choose is None:
        return "nothing was measured: EXPLAINFIX_TUNE=0 turns it off"
    before, calls = transposes.choose, dict[tuple, bool]()
    transposes.choose = partial(_choose_ahead, calls)
    try:
        with eval_mode(model), torch.no_grad():
            model(x)
    finally:
        transposes.choose = before
    if _distributed():
        shared = [{key[1:]: ours for key, ours in calls.items()}]
        dist.broadcast_object_list(shared, src=0)
        calls = {(x.get_device(), *key): ours for key, ours in shared[0].items()}
        CHOICES.update(calls)
    if not calls:
        return "nothing to choose: no kernel of this package for GPUs has run"
    return f"{len(calls)} calls: {sum(calls.values())} by our kernels, {len(calls) - sum(calls.values())} by torch's"


def choose(op: Any, packed: int, args: tuple, may_measure: Callable[[], bool] | None = None) -> tuple:
    """Returns the arguments that a call of `op` is to have: `args`, or the same for the dense plan.

    Args:
        op: a convolution or its input gradient.
        packed: the place of the argument `packed` in args. Before it are x and the bank, after it the bias or the
            input's size, stride, padding, dilation, groups; at the end the plan.
        may_measure: tells whether an unknown call may be measured.
    """
    if args[-1] < AUTO:
        return args
    key = _key(op, packed, args)
    ours = CHOICES.get(key)
    if ours is None:
        ours = _decide(key, op, packed, args, may_measure or _undisturbed)
    return args if ours else _dense(packed, args)


def _key(op: Any, packed: int, args: tuple) -> tuple:
    x, size = args[0], args[packed + 1]
    size = size if isinstance(size, tuple) else size is None
    shapes = (x.shape, x.stride(), args[1].shape, args[2].shape)
    precision = tf32_allowed() if x.dtype == torch.float32 else x.dtype
    return (x.get_device(), op._name, precision, *shapes, size, *args[packed + 2 : packed + 6], args[-1])


def _dense(packed: int, args: tuple) -> tuple:
    return (*args[:packed], None, *args[packed + 1 : -1], DENSE)


def _decide(key: tuple, op: Any, packed: int, args: tuple, may_measure: Callable[[], bool]) -> bool:
    """Recalls or measures whether our kernel is to run a call. Where neither can be, it is, and that is not kept."""
    x = args[0]
    if type(x) not in (Tensor, nn.Parameter) or x.dtype not in TOLERANCE or x.numel() == 0:
        return True
    if key not in CHOICES:
        CHOICES[key] = recall(x.device, repr(key[1:]))
    if CHOICES[key] is None and may_measure():
        try:
            CHOICES[key] = _is_better(op, args, _dense(packed, args))
        except torch.OutOfMemoryError:
            CHOICES[key] = True  # or each call would run out of memory
        else:
            if CHOICES[key] is not None:
                remember(x.device, repr(key[1:]), CHOICES[key])
    return CHOICES[key] is not False


def _is_better(op: Any, args: tuple, dense: tuple) -> bool | None:
    """Tells whether our kernel is right and faster; None where torch's result is not finite, which says nothing."""

    def run(args: tuple) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    got, want = (torch.stack([y[0], y[-1]]).double() for y in (run(args), run(dense)))
    error, size = (got - want).norm().item(), want.norm().item()
    x = args[0]
    tf32 = x.dtype == torch.float32 and tf32_allowed()
    if not torch.isfinite(want).all():
        return None
    if not error <= (TF32_TOLERANCE if tf32 else TOLERANCE[x.dtype]) * size:
        warnings.warn(
            f"{op} for x {list(x.shape)} in {x.dtype} is off by {error:.1e} of {size:.1e} on {x.device}: torch's "
            "convolution runs instead; please report this",
            stacklevel=2,
        )
        return False
    ours, torchs = times(x.device, lambda: run(args), lambda: run(dense))
    return ours < GAIN * torchs


def times(device: torch.device, *calls: Callable[[], Any]) -> list[float]:
    """Returns the median milliseconds that the GPU takes for each call, measured in turns."""
    events = [[[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls] for _ in range(ROUNDS)]
    with torch.cuda.device(device):
        for call in calls * WARM_UPS:
            call()
        for turn in events:
            for call, (start, end) in zip(calls, turn, strict=True):
                start.record()
                call()
                end.record()
        torch.cuda.current_stream().synchronize()
    return [statistics.median(start.elapsed_time(end) for start, end in turns) for turns in zip(*events, strict=True)]


def _undisturbed() -> bool:
    """Tells whether an unknown call may be measured in passing."""
    steady = _distributed() or torch.are_deterministic_algorithms_enabled()
    return not steady and len(CHOICES) <= MOST and _can_run_twice()


def _can_run_twice() -> bool:
    """Tells whether nobody records or counts what runs: a tracer, a transform, a mode or a CUDA graph."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.cuda.is_current_stream_capturing()
    )


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _choose_ahead(calls: dict[tuple, bool], op: Any, packed: int, args: tuple) -> tuple:
    """Chooses for a convolution and for its input gradient, and notes both in `calls`; of several ranks, rank 0."""
    measures = not _distributed() or dist.get_rank() == 0
    chosen = choose(op, packed, args, lambda: measures and _can_run_twice())
    if args[-1] >= AUTO and op in _INPUT_GRADS:
        size = args[0].shape[-2:]
        with torch._C._AutoDispatchBelowAutograd():
            grad = op(*chosen)
        backward = (_INPUT_GRADS[op], packed, (grad, *args[1 : packed + 1], size, *args[packed + 2 :]))
        choose(*backward, lambda: measures and _can_run_twice())
        for call in ((op, packed, args), backward):
            key = _key(*call)
            calls[key] = CHOICES.get(key) is not False
    return chosen


def tf32_allowed() -> bool:
    """Tells whether float32 convolutions of torch may read 19 bits of a number."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # set by the newer names, and differently for recurrent networks
        return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
