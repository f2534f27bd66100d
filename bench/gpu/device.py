"""Times calls on a GPU: by its own clock, and on so many inputs in turn that its cache holds none of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from explainfix_ext._support.timing import Clock

LEAST_SECONDS = 10e-3  # per turn, so that the first launch and two events, which take some 20 us, hardly count
NO_GPU = "no GPU here: this measures kernels on one (torch.cuda.is_available() is False)\n"
_MOST_INPUTS = 64


class EventClock:
    """Returns seconds by the GPU's clock when called, after waiting until the current stream is empty.

    It adds up, in float64, what passed between calls: the time since a first event, in float32, would be too coarse.
    """

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None
        self._seconds = 0.0

    def __call__(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self._last is not None:
            self._seconds += self._last.elapsed_time(event) / 1e3
        self._last = event
        return self._seconds


def clock_of(device: str) -> Clock:
    """Returns the clock that `interleaved` should read for calls that run on `device`."""
    return EventClock() if torch.device(device).type == "cuda" else time.perf_counter


def inputs_needed(nbytes: int, device: str) -> int:
    """Returns how many inputs to take in turn, so that the L2 cache has dropped each when its turn comes again.

    Together they take more than twice the cache; but never more than 64 are taken, however small they are.

    Args:
        nbytes: bytes that one call reads and writes.
    """
    if torch.device(device).type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_INPUTS, 2 * cache // nbytes + 1)


class Rotation:
    """Runs a call on several inputs in turn; `run()` makes one round over all of them.

    Each output has memory of its own, so that what is written does not stay in the cache either.

    Args:
        call: takes an input and returns a new output.
        inputs: the inputs of one round.
        graph: True to record the round once as a CUDA graph, so that `run` launches no kernels one by one.

    Attributes:
        inputs: may be filled with other numbers; the next round reads them.
        outputs: outputs of the last round, in order.
    """

    def __init__(self, call: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], graph: bool) -> None:
        self.inputs, self._call = list(inputs), call
        self._graph = torch.cuda.CUDAGraph() if graph else None
        self.outputs: list[Tensor] = self._round() if self._graph is None else self._captured(self._graph)

    def run(self) -> None:
        if self._graph is None:
            self.outputs = self._round()
        else:
            self._graph.replay()

    def _round(self) -> list[Tensor]:
        return [self._call(x) for x in self.inputs]

    def _captured(self, graph: torch.cuda.CUDAGraph) -> list[Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # as torch.cuda.make_graphed_callables does: work of a first call cannot be captured
                self._call(self.inputs[0])
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            return self._round()
