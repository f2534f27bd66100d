"""Timing on a GPU: its own clock, and calls on so many inputs in turn that the cache holds none of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from explainfix_ext._support.timing import Clock

LEAST_SECONDS = 10e-3  # of a turn: what the first launch and the two events take, some 20 us, then hardly counts
NO_GPU = "no GPU here: this measures kernels on one (torch.cuda.is_available() is False)\n"
_MOST_INPUTS = 64


class EventClock:
    """Seconds by the GPU's clock. Waits until the current stream is empty, then adds what passed since the last call.

    The differences are added up in float64: the time since some first event, in float32, would be too coarse.
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
    """What `interleaved` is to read, for calls that run on `device`."""
    return EventClock() if torch.device(device).type == "cuda" else time.perf_counter


def inputs_needed(nbytes: int, device: str) -> int:
    """How many inputs to take in turn, so that the cache of `device` has forgotten one when its turn comes again.

    Args:
        nbytes: that one call reads and writes. All inputs together take more than twice the L2 cache, except where one
            is so small that this would need more than 64.
    """
    if torch.device(device).type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_INPUTS, 2 * cache // nbytes + 1)


class Rotation:
    """A call on several inputs in turn; `run()` makes one round.

    Each output has memory of its own, so that writing is not kept in the cache either.

    Args:
        graph: record the round once as a CUDA graph, so that `run` takes no time for launching kernels one by one.

    Attributes:
        inputs: may be filled with other numbers; the next round reads them.
        outputs: of the last round, in order.
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
            for _ in range(3):  # as torch.cuda.make_graphed_callables: what is made or tried once cannot be captured
                self._call(self.inputs[0])
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            return self._round()
