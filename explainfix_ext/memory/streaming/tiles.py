"""Runs the local part of a network by tiles, forward and backward.

The tiles' outputs y_T do not overlap, so that the loss depends on each weight by the sum over them, and
dL/dw = sum over T of (dy_T/dw)^T dL/dy_T, whatever the tiles have read in common. The forward pass keeps the image and
y alone. The backward pass runs each tile again, and its graph lives as long as the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import get_device_states, set_device_states

from .field import Field, Tile


class Part(NamedTuple):
    """Names a tile: images of the batch, and positions along both axes."""

    images: slice
    rows: Tile
    columns: Tile

    @property
    def read(self) -> tuple[slice, ...]:
        return (self.images, slice(None), self.rows.read, self.columns.read)

    @property
    def kept(self) -> tuple[slice, ...]:
        return (slice(None), slice(None), self.rows.kept, self.columns.kept)

    @property
    def written(self) -> tuple[slice, ...]:
        return (self.images, slice(None), self.rows.written, self.columns.written)


def parts(shape: torch.Size, fields: Sequence[Field], pixels: Sequence[int]) -> list[Part]:
    """Cuts a batch of images into tiles, the bottom right one of each image first, whose end tells the output's size.

    A tile of images that are smaller than it holds as many of them as fill it.
    """
    n, _, height, width = shape
    rows, columns = (f.tiles(size, tile) for f, size, tile in zip(fields, (height, width), pixels, strict=True))
    together = max(1, pixels[0] * pixels[1] // max(height * width, 1))
    images = [slice(first, first + together) for first in range(0, max(n, 1), together)]
    return [Part(i, row, column) for i in images for row in reversed(rows) for column in reversed(columns)]


class Body:
    """Runs the local part of a network on a batch of images.

    Args:
        module: the local part.
        tiles: of the images, see `parts`.
        transform: is called with each tile, on the network's device, before the network.
        progress: returns an iterator over the tiles that shows how far a pass is.
    """

    def __init__(
        self,
        module: nn.Module,
        tiles: Sequence[Part],
        transform: Callable[[Tensor], Tensor] | None,
        progress: Callable[[Sequence[Any], str], Iterator[Any]],
    ) -> None:
        self.module, self._tiles, self._transform, self._progress = module, tiles, transform, progress
        self.learned = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._device = next((t.device for t in (*module.parameters(), *module.buffers())), None)
        self._random: list[tuple[Tensor, list[int], list[Tensor]]] = []

    def __call__(self, image: Tensor) -> Tensor:
        """Returns the output, with its gradient if one is wanted. BatchNorms use their running statistics."""
        with frozen(self.module):
            if torch.is_grad_enabled() and (self.learned or image.requires_grad):
                return _Streamed.apply(self, image, *self.learned.values())
            return self.forward(image)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the output, which autograd does not know."""
        output = None
        with torch.no_grad():
            for tile in self._progress(self._tiles, "forward, by tiles"):
                if self.module.training:  # dropout is to draw the same numbers again
                    self._random.append((torch.get_rng_state(), *get_device_states(*self.module.parameters())))
                result = self.module.forward(self._given(image[tile.read]))[tile.kept]
                if output is None:
                    begins = (tile.rows.written.start, tile.columns.written.start)
                    size = [begin + length for begin, length in zip(begins, result.shape[2:], strict=True)]
                    output = result.new_empty((len(image), result.shape[1], *size))
                output[tile.written] = result
                del result
        assert output is not None  # there is a tile
        return output

    def backward(self, image: Tensor, weights: dict[str, Tensor], grad: Tensor, grad_image: Tensor | None) -> None:
        """Adds to the .grad of `weights`, which take the place of the parameters, and to `grad_image`."""
        devices = self._random[0][1] if self._random else []
        with torch.enable_grad(), torch.random.fork_rng(devices, enabled=bool(self._random)):
            for at, tile in enumerate(self._progress(self._tiles, "backward, by tiles")):
                if self._random:
                    cpu, devices, states = self._random[at]
                    torch.set_rng_state(cpu)
                    set_device_states(devices, states)
                x = image[tile.read].detach().requires_grad_(grad_image is not None)
                y = functional_call(self.module, weights, (self._given(x),))[tile.kept]
                inputs = [*weights.values(), *([] if grad_image is None else [x])]
                torch.autograd.backward(y, grad[tile.written], inputs=inputs)
                if grad_image is not None and x.grad is not None:
                    grad_image[tile.read] += x.grad
                del x, y  # and with them the tile's graph, before the next tile makes its own

    def _given(self, tile: Tensor) -> Tensor:
        """Returns what the network is given of a tile."""
        tile = tile if self._device is None else tile.to(self._device, non_blocking=True)
        return tile if self._transform is None else self._transform(tile)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Lets BatchNorms use their running statistics: those of a batch are not local."""
    learning = [m for m in module.modules() if isinstance(m, _NormBase) and m.training]
    for norm in learning:
        norm.training = False
    try:
        yield
    finally:
        for norm in learning:
            norm.training = True


class _Streamed(torch.autograd.Function):
    """Is a Body as one operation on the images and the weights."""

    @staticmethod
    def forward(ctx: Any, body: Body, image: Tensor, *weights: Tensor) -> Tensor:
        device = weights[0].device.type if weights else image.device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        # Without the cache: it would keep the casts of one pass for the other.
        ctx.body, ctx.autocast = body, partial(torch.autocast, device, dtype, enabled, cache_enabled=False)
        ctx.save_for_backward(image, *weights)
        with ctx.autocast():
            return body.forward(image)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, *weights = ctx.saved_tensors
        # Not the Parameters themselves: hooks on those are called once, with the sum over all tiles.
        own = {name: w.detach().requires_grad_() for name, w in zip(ctx.body.learned, weights, strict=True)}
        grad_image = torch.zeros_like(image) if ctx.needs_input_grad[1] else None
        with ctx.autocast(), frozen(ctx.body.module):
            ctx.body.backward(image, own, grad, grad_image)
        return None, grad_image, *(weight.grad for weight in own.values())
