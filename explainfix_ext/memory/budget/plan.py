"""`memory_plan` says which memory mode and which batch fit a card, without running anything.

fake.py counts the bytes of a step, for any batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from explainfix_ext._support.models import check_is_module, on_a_copy
from explainfix_ext._support.progress import counted
from explainfix_ext._support.text import first_line, shown, table_lines, times
from explainfix_ext.memory.blocks import has_blocks
from explainfix_ext.memory.count import MIB, Usage, own_tensors
from explainfix_ext.memory.plots import plot_plan
from explainfix_ext.memory.save import MODES, save_memory
from explainfix_ext.memory.streaming import stream

from .arithmetic import largest_batch, parse_bytes
from .fake import step_counter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Tensors of a trained parameter's size that an optimizer holds.
OPTIMIZERS = {"adamw": 2, "sgd": 1}


@dataclass(frozen=True)
class Configuration:
    """Names one way to train with less memory: what `save_memory` is given, and the tile of `stream`, if any."""

    mode: str
    checkpoint: str = "off"
    tile: int | None = None

    def apply(self, model: nn.Module, channels: int) -> None:
        """Puts the configuration into a model, whose BatchNorms' statistics may become anything."""
        save_memory(model, self.mode, self.checkpoint)
        if self.tile is not None:
            stream(model, self.tile, calibrate=torch.zeros(1, channels, 256, 256))

    def suits(self, model: nn.Module, shape: tuple[int, int, int]) -> bool:
        """Tells whether the model has blocks, and the image tiles, if that is what the configuration takes."""
        has_tiles = self.tile is None or max(shape[1:]) > self.tile
        return has_tiles and (self.checkpoint == "off" or has_blocks(model))

    def __str__(self) -> str:
        blocks = ", blocks" if self.checkpoint == "blocks" else ""
        return self.mode + blocks + ("" if self.tile is None else f", tile {self.tile}")


CONFIGURATIONS = (
    *(Configuration(mode) for mode in MODES),
    Configuration("recompute", "blocks"),
    *(Configuration("recompute", tile=tile) for tile in (1024, 512)),
)


@dataclass(frozen=True)
class PlanRow:
    """Holds the bytes of one configuration.

    Attributes:
        configuration: the memory mode, and whether blocks are checkpointed.
        kept: what the forward pass keeps for the backward pass, at the plan's batch.
        peak: the most of activations and gradients that is alive at once, at that batch.
        total: `peak`, the images, and the plan's `model_bytes` and `optimizer_bytes`.
        largest_batch: the largest batch whose total is within the budget; 0 if none is.
    """

    configuration: Configuration
    kept: int
    peak: int
    total: int
    largest_batch: int


@dataclass(frozen=True)
class MemoryPlan:
    """Holds what `memory_plan` found. `print(plan)` shows a table; `plan.plot("plan.png")` draws it.

    Attributes:
        shape: (C, H, W) of an image.
        batch: images of a step.
        budget: bytes that there are.
        model_bytes: of parameters, buffers and fixed filters.
        optimizer_bytes: of the optimizer's state.
        rows: a PlanRow for each configuration. A model without blocks has no checkpoints, and images that fit a tile
            have none.
        not_streamed: why there are no rows with tiles, where images are larger; else empty.

    Examples:
        >>> plan = memory_plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (3, 34, 34), batch=2, budget="1MiB")
        >>> plan.rows[0].kept  # the output of ReLU; the convolution's input is the user's
        65536
        >>> plan.fits(plan.rows[0]), plan.rows[0].largest_batch
        (True, 5)
    """

    shape: tuple[int, int, int]
    batch: int
    budget: int
    model_bytes: int
    optimizer_bytes: int
    rows: list[PlanRow]
    not_streamed: str = ""

    def fits(self, row: PlanRow) -> bool:
        """Tells whether a row's total is within the budget."""
        return row.total <= self.budget

    def as_dict(self) -> dict[str, Any]:
        """Returns all numbers, in bytes, as JSON can have them."""
        rows = [{**dataclasses.asdict(row), "fits": self.fits(row)} for row in self.rows]
        return {**dataclasses.asdict(self), "rows": rows}

    def cells(self) -> list[tuple[str, ...]]:
        """Returns the table, its head first, sizes in MiB."""
        head = ("memory mode", "kept (MiB)", "peak (MiB)", "total (MiB)", "fits", "largest batch")
        rows = [
            (
                str(row.configuration),
                *(f"{size / MIB:,.0f}" for size in (row.kept, row.peak, row.total)),
                "yes" if self.fits(row) else "no",
                f"{row.largest_batch:,}" if row.largest_batch else "none",
            )
            for row in self.rows
        ]
        return [head, *rows]

    def notes(self) -> list[str]:
        """Returns sentences that say what the totals hold, and what they do not."""
        fixed = f"{self.model_bytes / MIB:,.0f} MiB of network and {self.optimizer_bytes / MIB:,.0f} of optimizer"
        return [
            f"Peak: activations and gradients. Total: peak, images, {fixed}; "
            f"the budget is {self.budget / MIB:,.0f} MiB.",
            "Not counted: the CUDA context, workspaces of cuDNN and of kernels, fragmentation, what the optimizer's "
            "step makes. Leave a tenth free.",
            *([f"No tiles: {self.not_streamed}."] if self.not_streamed else []),
        ]

    def __str__(self) -> str:
        return "\n".join([*table_lines(self.cells(), numbers=True), *self.notes()])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draws the totals as bars beside the budget.

        Returns the matplotlib Figure, and writes it into `path`, if given, in the format that its ending says.

        Raises:
            ValueError: matplotlib is not installed.
        """
        fixed = {"network": self.model_bytes, "optimizer": self.optimizer_bytes}
        figure = plot_plan({f"{r.configuration}": (r.peak, r.total) for r in self.rows}, fixed, self.budget, self.batch)
        if path is not None:
            figure.savefig(path)
        return figure


def memory_plan(
    model: nn.Module,
    shape: tuple[int, int, int],
    batch: int = 8,
    budget: int | str = "24GiB",
    *,
    optimizer: str = "adamw",
    amp: torch.dtype | None = None,
) -> MemoryPlan:
    """Counts, for each mode of `save_memory`, the bytes of a training step and the largest batch within a budget.

    Nothing is run: the step is of FakeTensors, which have shapes and no numbers, on the CPU. So a plan for a card needs
    no card, and its activations take no memory. Weights, fixed filters, gradients, activations, images (float32) and
    the optimizer's state are counted. The CUDA context, workspaces of cuDNN and of kernels, fragmentation and what the
    optimizer's step makes are not. The loss is the mean square of the output.

    Args:
        model: any module that takes a batch of images and does not look at numbers; it is copied.
        shape: (C, H, W) of an image.
        batch: images of a step, 1 or more.
        budget: bytes, or a text such as "24GiB", "80GB" or "512MiB".
        optimizer: "adamw", or "sgd", with momentum.
        amp: the dtype of autocast, such as torch.bfloat16; None: no autocast.

    Returns:
        A MemoryPlan, in bytes. The model is untouched.

    Raises:
        ValueError: an argument is wrong, or the model cannot run on shapes alone.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, seed=0)
        >>> plan = memory_plan(model, (3, 64, 64), batch=4, budget="1GiB")
        >>> [str(row.configuration) for row in plan.rows]
        ['off', 'exact', 'recompute', 'int8', 'recompute, blocks']
        >>> plan.rows[0].kept > plan.rows[1].kept > plan.rows[2].kept  # off, exact, recompute
        True

        The equivalent PyTorch, for what the forward pass keeps, is that of `memory_report`, under FakeTensorMode:

        >>> from torch._subclasses.fake_tensor import FakeTensorMode
        >>> with FakeTensorMode(allow_non_fake_inputs=True):
        ...     torch.nn.functional.relu(torch.empty(512, 64, 1024, 1024)).nbytes // 2**30  # GiB, of no memory
        128
    """
    check_is_module(model)
    shape = _checked_shape(shape)
    if not _is_count(batch):
        raise ValueError(f"batch must be an integer of 1 or more, got {shown(batch)}")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {shown(optimizer)}")
    limit = parse_bytes(budget)
    model_bytes = sum({id(t): t.nbytes for t in own_tensors(model)}.values())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    rest, image = model_bytes + OPTIMIZERS[optimizer] * trained, torch.Size(shape).numel() * 4
    rows: list[PlanRow] = []
    not_streamed = ""
    for configuration in counted([way for way in CONFIGURATIONS if way.suits(model, shape)], "counting modes"):
        with on_a_copy(model) as copied:
            try:
                configuration.apply(copied, shape[0])
            except ValueError as error:
                if configuration.tile is None:
                    raise
                not_streamed = first_line(error)
                continue
            count = step_counter(copied, shape, amp)
            try:
                usage = count(batch)
            except (RuntimeError, ValueError) as error:
                size = times((batch, *shape))
                raise ValueError(f"model cannot run on the shape of {size} images: {first_line(error)}") from None
            total = rest + batch * image + usage.peak

            def total_of(n: int, count: Callable[[int], Usage] = count) -> int:
                try:
                    return rest + n * image + count(n).peak
                except ValueError:  # a BatchNorm refuses a single value per channel, as some have at batch 1
                    return limit + 1

            largest = largest_batch(total_of, limit, {0: rest + trained, batch: total})
        rows.append(PlanRow(configuration, usage.kept_bytes, usage.peak, total, largest))
    return MemoryPlan(shape, batch, limit, model_bytes, OPTIMIZERS[optimizer] * trained, rows, not_streamed)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _checked_shape(shape: Any) -> tuple[int, int, int]:
    if not isinstance(shape, Sequence) or len(shape) != 3 or not all(map(_is_count, shape)):
        raise ValueError(f"shape must be (C, H, W) of an image, got {shown(shape)}")
    channels, height, width = shape
    return channels, height, width
