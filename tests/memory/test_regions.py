"""A BatchNorm writes into its input's memory only where it is the single consumer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.training_step import EXACT, Block, check_same, check_saving, image, prepared, step
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import save_memory
from explainfix_ext.memory.notes import replay_of
from explainfix_ext.memory.regions import Region, hooks_on_all_modules, single_consumer_convolutions, watched


def _input_of(layer: nn.Module, model: nn.Module) -> Tensor:
    """Runs the model, and returns what the layer's input is afterwards; a hook would count as its consumer."""
    inputs = []
    layer.forward = lambda x, plain=layer.forward: inputs.append(x) or plain(x)
    model(image())
    return inputs[0]


@pytest.mark.parametrize("mode", EXACT)
def test_a_value_that_others_read_is_not_overwritten(mode: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(3, 8, 1)
            self.conv, self.norm = efx.FixedConv2d(8, 8, 3, padding=1, seed=0), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(F.relu(self.mix(x)))
            return self.norm(y) + y

    check_saving(prepared(Reader()), image(), mode)


@pytest.mark.parametrize("mode", EXACT)
def test_hooks_and_calls_from_outside_see_the_convolution(mode: str) -> None:
    model = prepared(Block())
    plain, seen = copy.deepcopy(model), []
    save_memory(model, mode)
    model.wide[0].register_forward_hook(lambda module, args, y: seen.append(y))
    plain.wide[0].register_forward_hook(lambda module, args, y: seen.append(y))
    check_same(step(plain, image()), step(model, image()))
    assert relative_error(seen[1], seen[0]) < 1e-12

    # Not through the model's forward, for which alone the trace shows that the BatchNorm is the only reader.
    x = image().requires_grad_()
    y = model.wide[0](model.narrow(model.stem(x)))
    before = y.detach().clone()
    model.wide[1](y)
    assert torch.equal(y, before)


def test_a_batch_norm_overwrites_what_only_it_reads() -> None:
    model = prepared(Block())
    save_memory(model, "recompute")
    overwritten = _input_of(model.wide[1], model)
    assert overwritten._version > 0
    assert replay_of(overwritten) is None


@pytest.mark.parametrize("frozen", ["block", "norm"])
def test_a_part_of_the_model_in_eval_mode(frozen: str) -> None:
    """The block reads the convolution's output once more then; a frozen BatchNorm alone changes nothing."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            normalized = self.norm(y)
            return normalized if self.training else normalized + y * y

    model = prepared(nn.Sequential(Block(), nn.SiLU()))
    (model[0] if frozen == "block" else model[0].norm).eval()
    ours = check_saving(model, image(), "recompute")
    assert (_input_of(ours[0].norm, ours)._version > 0) == (frozen == "norm")


def test_the_largest_parts_that_can_be_traced_are_found() -> None:
    class Branching(nn.Module):
        """Cannot be traced: it asks for a value."""

        def __init__(self) -> None:
            super().__init__()
            self.good = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU())
            self.alone = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.good(x) if x.sum() > 0 else self.alone(x)

    model = Branching()
    assert list(single_consumer_convolutions(model)) == [(model.good, [model.good[0]])]


def test_a_region_holds_during_its_own_forward_in_training_mode() -> None:
    class Asking(nn.Module):
        def forward(self) -> bool:
            return region.running

    root = Asking()
    region = Region(root)
    assert not region.running
    assert root()
    assert not root.eval()()
    region.remove()
    assert not root.train()()


def test_hooks_watch_except_those_that_keep_nothing() -> None:
    def hook(*args: object) -> None:
        pass

    conv = nn.Conv2d(1, 1, 1)
    assert not watched(conv)
    with hooks_on_all_modules(hook, lambda *args: None):
        assert not watched(conv)
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
        assert watched(conv)
        handle.remove()
    handle = conv.register_forward_pre_hook(hook)
    assert watched(conv)
    handle.remove()
    assert not watched(conv)
