"""`stream` lets a network take images whose activations do not fit, by running its local layers tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _NormBase

from explainfix_ext._support.models import check_is_module, eval_mode
from explainfix_ext._support.progress import counted, with_progress
from explainfix_ext._support.text import shown

from .search import LocalPart, find_local_part
from .split import as_module
from .tiles import Body, parts


@dataclass(frozen=True)
class StreamReport:
    """Says what `stream` did. `print(report)` shows it.

    Attributes:
        until: the name of the last layer that is streamed.
        tile: pixels of a tile, (height, width), without its halo.
        halo: pixels that a tile reads beyond its own, both sides together, (height, width).
        period: pixels after which the network repeats, (height, width): its stride, or that of its encoder.
        layers: with parameters: how many are streamed, and how many there are.
        stop: the first layer that is not local, and why; empty if all are.
        norms: names of the BatchNorms that use their running statistics, in training mode too.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> print(stream(model, 1024, calibrate=[torch.rand(1, 3, 256, 256)]))
        streamed: up to layer4, 40 of 41 layers with parameters
        tile: 1024 x 1024 pixels, and 416 x 416 of halo: a pass computes 1.98 times the pixels of a large image
        not streamed: avgpool (AdaptiveAvgPool2d): its result depends on the whole image, and what follows
        BatchNorm: 20 use their running statistics, in training too
    """

    until: str
    tile: tuple[int, int]
    halo: tuple[int, int]
    period: tuple[int, int]
    layers: tuple[int, int]
    stop: str
    norms: tuple[str, ...]

    @property
    def cost(self) -> float:
        """Pixels that a pass computes over those that there are, in a large image."""
        return math.prod((tile + halo) / tile for tile, halo in zip(self.tile, self.halo, strict=True))

    def __str__(self) -> str:
        (height, width), (rows, columns) = self.tile, self.halo
        lines = [
            f"streamed: up to {self.until}, {self.layers[0]} of {self.layers[1]} layers with parameters",
            f"tile: {height} x {width} pixels, and {rows} x {columns} of halo: "
            f"a pass computes {self.cost:.2f} times the pixels of a large image",
        ]
        if 2 * max(self.halo) > min(self.tile):
            enough = [math.ceil(halo / (2**0.5 - 1) / p) * p for halo, p in zip(self.halo, self.period, strict=True)]
            lines.append(f"a tile of {max(enough)} would make that less than 2")
        if self.stop:
            lines.append(f"not streamed: {self.stop}, and what follows")
        if self.norms:
            lines.append(f"BatchNorm: {len(self.norms)} use their running statistics, in training too")
        return "\n".join(lines)


def stream(
    model: nn.Module,
    tile: int = 1024,
    until: str | None = None,
    *,
    calibrate: Tensor | Iterable[Any] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    progress: bool = False,
) -> StreamReport:
    """Lets `model` run its local layers by tiles of the image, in place, for the same output and the same gradients.

    A layer is local if its output at a place depends on the image around that place only: convolutions, pools with a
    window, activations, BatchNorm by running statistics. The forward pass keeps the image, and the output of the last
    of them; the backward pass runs each tile a second time. The rest of the model, such as a global mean and a
    classifier, runs as before. What is local, the field that a place reads, and strides are found by running small
    images on a copy.

    The model's Parameters, modules, hooks, state_dict and modes stay, and `save_memory`, autocast and
    DistributedDataParallel work with it: call `save_memory` too, since a tile's activations are kept while its
    gradients are computed. Forward hooks of streamed modules run for each tile, twice.

    Args:
        model: takes one batch of images (N, C, H, W), and can be traced by torch.fx down to the last streamed layer.
        tile: height and width in pixels, of what a tile has of its own. It is rounded down to the model's stride.
            Images that are smaller share a tile.
        until: the name of the last module to stream; by default the last local one whose output alone is needed later.
        calibrate: images for BatchNorm's running statistics, which streamed layers use in training mode too: a batch,
            or batches, such as a DataLoader gives. The statistics are the mean of those of all tiles. Not needed for a
            model that has some.
        transform: is called with each tile, before the model: for images that stay uint8, and on the CPU, until they
            are needed, such as `lambda x: x / 255`. What it does at a pixel must depend on that pixel alone.
        progress: show a bar on stderr for each pass (needs rich).

    Returns:
        A StreamReport. `unstream(model)` undoes it.

    Raises:
        ValueError: an argument is wrong, torch.fx cannot trace the model, fewer than half of its layers are local (the
            first that is not is named; `until` streams those before it nonetheless), or a BatchNorm has no statistics.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, seed=0), save_memory(model, "recompute")
        >>> images = torch.rand(1, 3, 640, 512)
        >>> report = stream(model, 256, calibrate=images)
        >>> report.until, report.tile, report.halo
        ('layer4', (256, 256), (416, 416))
        >>> model(images).sum().backward()

        The equivalent PyTorch is the plain model, with BatchNorm in eval mode:

        >>> plain, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2)), torch.rand(2, 3, 70, 50)
        >>> ours = copy.deepcopy(plain)
        >>> _ = stream(ours, 16)
        >>> for net in (plain, ours):
        ...     net(x).square().mean().backward()
        >>> torch.allclose(ours[0].weight.grad, plain[0].weight.grad, atol=1e-6)
        True

    Source: Pinckaers, van Ginneken, Litjens 2020, Streaming convolutional neural networks, whose tiles overlap in the
    output; those here do not, so that the chain rule does the counting.
    """
    check_is_module(model)
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise ValueError(f"tile must be pixels, an integer of 1 or more, got {shown(tile)}")
    if "forward" in vars(model) and not isinstance(vars(model)["forward"], _Streaming):
        raise ValueError("model must have the forward of its class: it was replaced on the instance")
    local = find_local_part(model, until)
    if until is None and 2 * local.layers[0] < local.layers[1]:
        raise ValueError(
            f"model must be local in most of its layers, and is only up to {local.last}, "
            f"{local.layers[0]} of {local.layers[1]}: {local.stop}; until={local.last.name!r} streams those alone"
        )
    pixels = (local.fields[0].whole_blocks(tile), local.fields[1].whole_blocks(tile))
    streaming = _Streaming(model, local, pixels, transform, progress)
    norms = streaming.norms()
    if calibrate is not None:
        streaming.calibrate([calibrate] if isinstance(calibrate, Tensor) else calibrate)
    for name, norm in norms.items():
        if norm.running_mean is not None and _is_fresh(norm.running_mean, norm.running_var):
            raise ValueError(
                f"{name} is a {type(norm).__name__} without statistics, and those of a tile are not those of the "
                f"image: give calibrate, some images"
            )
    model.forward = streaming  # type: ignore[assignment]  # of the instance, as no other class has this model's cut
    rows, columns = local.fields
    halo, period = (rows.halo, columns.halo), (rows.period, columns.period)
    return StreamReport(local.last.name, pixels, halo, period, local.layers, local.stop, tuple(norms))


def unstream(model: nn.Module) -> None:
    """Lets `model` run as before `stream`.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> _ = stream(model, 16)
        >>> unstream(model)

        The equivalent PyTorch is the model's own forward again:

        >>> x = torch.rand(1, 3, 10, 10)
        >>> torch.equal(model(x), type(model).forward(model, x))
        True
    """
    if isinstance(vars(model).get("forward"), _Streaming):
        del model.forward


def _is_fresh(mean: Tensor, var: Any) -> bool:
    """Tells whether running statistics are those of a new layer. Weights of libraries may come without a count."""
    return torch.equal(mean, torch.zeros_like(mean)) and torch.equal(var, torch.ones_like(var))


class _Streaming:
    """Is the forward of a model that is streamed."""

    streams = True  # tells `memory_report`

    def __init__(
        self,
        model: nn.Module,
        local: LocalPart,
        pixels: tuple[int, int],
        transform: Callable[[Tensor], Tensor] | None,
        progress: bool,
    ) -> None:
        self._model, self._splits, self._fields, self._pixels = model, local.splits, local.fields, pixels
        self._transform = transform
        self._progress = partial(with_progress, count=None) if progress else counted

    @torch.compiler.disable
    def __call__(self, image: Tensor) -> Any:
        head = as_module(self._model, self._splits[self._model.training].head)
        return head.forward(image, self._body(image)(image))

    def _body(self, image: Any) -> Body:
        """Makes the body for images of this size. It refers to the model's own modules."""
        if not isinstance(image, Tensor) or image.dim() != 4:
            raise ValueError(f"a streamed model takes images (N, C, H, W), got {shown(image)}")
        module = as_module(self._model, self._splits[self._model.training].body)
        tiles = parts(image.shape, self._fields, self._pixels)
        if isinstance(image, FakeTensor):  # without numbers, to count bytes: tiles of one size take the same
            sizes = [f"{tile.rows.kept} {tile.columns.kept}" for tile in tiles]
            tiles = [tile for at, tile in enumerate(tiles) if sizes.index(sizes[at]) == at]
        return Body(module, tiles, self._transform, self._progress)

    def norms(self) -> dict[str, _NormBase]:
        """Returns the BatchNorms of the body by name."""
        streamed = set(as_module(self._model, self._splits[False].body).modules())
        return {n: m for n, m in self._model.named_modules() if m in streamed and isinstance(m, _NormBase)}

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Lets the BatchNorms of the body have the statistics of `batches`, or of before, if that fails."""
        norms = [norm for norm in self.norms().values() if norm.track_running_stats]
        before = [(norm.momentum, {k: b.clone() for k, b in norm.named_buffers()}) for norm in norms]
        done = False
        try:
            with eval_mode(self._model), torch.no_grad():
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum, norm.training = None, True
                for batch in batches:
                    image = batch[0] if isinstance(batch, Sequence) else batch
                    self._body(image).forward(image)
                    done = True
            if not done:
                raise ValueError("calibrate must have at least one batch of images, got none")
        except BaseException:
            for norm, (_, buffers) in zip(norms, before, strict=True):
                norm.load_state_dict(buffers, strict=False)
            raise
        finally:
            for norm, (momentum, _) in zip(norms, before, strict=True):
                norm.momentum = momentum
