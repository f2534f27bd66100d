"""Finds by experiment which values of a traced network are local, and what of the image they read.

A band of NaN in a small image reaches just those places of a value that read it, since NaN times 0 is NaN. What no NaN
reaches on either side of the band is local. Lengths at two sizes of the image give strides, those of functions inside
of modules included. `check_tiles` then compares a run by tiles with a whole one: it would find what NaN does not show,
such as a position that is added to the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from explainfix_ext._support.text import first_line

from .field import Field, Tile

AXES = (2, 3)
_PERIODS = 1920  # divides by the periods that can be found: up to 128, and three and five times a power of 2
_WIDTHS = (32, 64, 128, 256)  # of the strip, across: the first that is enough for all layers


class Values(NamedTuple):
    """Holds what a run of a strip has shown.

    Attributes:
        fields: of each local value, until the first that is not.
        stop: the first value that is not local; None if all are.
        reason: why `stop` is not local.
    """

    fields: dict[fx.Node, Field]
    stop: fx.Node | None
    reason: str


def probe(model: nn.Module, graph: fx.Graph, channels: int, axis: int) -> Values:
    """Runs strips of images along `axis` through the graph of `model`, which is in eval mode, on the CPU."""
    for width in _WIDTHS:
        values, failed = _probe(model, graph, channels, axis, width)
        if not failed:
            break
    return values


def _probe(model: nn.Module, graph: fx.Graph, channels: int, axis: int, width: int) -> tuple[Values, bool]:
    """Does what `probe` does, by strips of one width; also tells whether a layer has refused the strip."""
    short = _Strip(model, graph, axis, _strip(channels, axis, _PERIODS, width))
    image = _strip(channels, axis, 3 * _PERIODS, width)
    image.narrow(axis, _PERIODS, _PERIODS).fill_(math.nan)
    long = _Strip(model, graph, axis, image)
    period = math.lcm(*(_rate(a, b).denominator for a, b in zip(short.lengths, long.lengths, strict=False)))
    fields: dict[fx.Node, Field] = {}
    for node, (length, first, last) in long.reached.items():
        rate = _rate(short.reached[node][0], length) if node in short.reached else Fraction(0)
        steps = int(period * rate)
        if not steps or _PERIODS % period or steps != period * rate:
            return Values(fields, node, "its size does not follow that of the image"), False
        blocks = _PERIODS // period
        fields[node] = Field(period, steps, max(last // steps - (2 * blocks - 1), 0), max(blocks - first // steps, 0))
    return Values(fields, long.stop, long.reason), long.failed or short.failed


def _rate(short: int, long: int) -> Fraction:
    """Returns places of a value for each pixel, from its lengths in images of one and of three times _PERIODS."""
    return Fraction(long - short, 2 * _PERIODS).limit_denominator(128)


class _Strip(fx.Interpreter):
    """Runs a strip until a value is not local.

    Attributes:
        reached: of each value, its length, and the first and last of its places that NaN has reached.
        lengths: of the results of all modules, inner ones too, in the order of the calls.
        stop, reason: as of Values.
        failed: whether `stop` has raised an error.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, axis: int, strip: Tensor) -> None:
        super().__init__(model, graph=graph)
        self._axis = axis
        self.reached: dict[fx.Node, tuple[int, int, int]] = {}
        self.lengths: list[int] = []
        self.stop: fx.Node | None = None
        self.reason, self.failed = "", False
        with self._watched(model), torch.no_grad(), suppress(_NotLocal):
            self.run(strip)

    def run_node(self, node: fx.Node) -> Any:
        try:
            value = super().run_node(node)
        except _NotLocal:
            raise
        except Exception as error:  # a layer may raise anything on an image whose size it does not take
            self.failed = True
            self._stop_at(node, f"it fails on other images: {first_line(error)}")
        if isinstance(value, Tensor) and node.op not in ("get_attr", "output"):
            self._look_at(node, value)
        return value

    def _look_at(self, node: fx.Node, value: Tensor) -> None:
        if value.dim() != 4:
            self._stop_at(node, f"its result has {value.dim()} axes")
        length = value.shape[self._axis]
        self.lengths.append(length)
        others = [axis for axis in range(4) if axis != self._axis]
        places = value.isnan().any(others[2]).any(others[1]).any(others[0]).nonzero().flatten().tolist()
        first, last = (places[0], places[-1]) if places else (0, length - 1)
        if places and (first == 0 or last == length - 1):
            self._stop_at(node, "its result depends on the whole image")
        self.reached[node] = (length, first, last)

    def _stop_at(self, node: fx.Node, reason: str) -> None:
        self.stop, self.reason = node, reason
        raise _NotLocal

    @contextmanager
    def _watched(self, model: nn.Module) -> Iterator[None]:
        """Notes the length of what each module returns."""

        def note(module: nn.Module, args: Any, value: Any) -> None:
            if isinstance(value, Tensor) and value.dim() == 4:
                self.lengths.append(value.shape[self._axis])

        hooks = [module.register_forward_hook(note) for module in model.modules()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _NotLocal(Exception):
    """Ends a run at a value that is not local."""


def check_tiles(model: nn.Module, body: fx.Graph, channels: int, field: Field, axis: int) -> float:
    """Runs a strip whole and by tiles, and returns the norm of the difference over that of the whole result.

    Its length is odd in blocks, unless the network refuses that, as encoders with skips do.

    Raises:
        RuntimeError: the network runs on no strip.
    """
    pixels = field.whole_blocks(64)
    for rest, width in itertools.product((field.period // 2 + 1, 0), _WIDTHS):
        image = _strip(channels, axis, field.halo + 3 * pixels + rest, width)
        try:
            return _difference(fx.Interpreter(model, graph=body), image, field.tiles(image.shape[axis], pixels), axis)
        except (RuntimeError, ValueError) as error:
            failure = error
    raise RuntimeError("no strip runs") from failure


def _difference(body: fx.Interpreter, image: Tensor, tiles: Sequence[Tile], axis: int) -> float:
    with torch.no_grad():
        whole = body.run(image).movedim(axis, 0)
        strip = image.movedim(axis, 0)
        results = [body.run(strip[tile.read].movedim(0, axis)).movedim(axis, 0)[tile.kept] for tile in tiles]
    tiled = torch.cat(results)
    return float((tiled - whole).norm() / whole.norm().clamp_min(1e-30)) if tiled.shape == whole.shape else math.inf


def _strip(channels: int, axis: int, length: int, width: int) -> Tensor:
    """Returns an image of `length` pixels along `axis`, and of `width` across."""
    strip = torch.randn(1, channels, length, width, generator=torch.Generator().manual_seed(0))
    return strip if axis == 2 else strip.transpose(2, 3).contiguous()
