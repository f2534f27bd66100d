"""The drop-ins compute the same gradients and running statistics as the modules that they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compare import relative_error
from support.training_step import EXACT, Block, check_saving, gradient_error, image, prepared, step
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import convolutions, save_memory

ACTS = [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish]


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize(
    "act", [*(a(inplace=i) for a in ACTS for i in (False, True)), nn.GELU(), nn.GELU("tanh")], ids=str
)
def test_gradients_are_exact(act: nn.Module, mode: str) -> None:
    check_saving(prepared(Block(act)), image(), mode)


@pytest.mark.parametrize("mode", [*EXACT, "int8"])
@pytest.mark.parametrize("act", [*(a(inplace=i) for a in ACTS for i in (False, True)), nn.GELU()], ids=str)
def test_what_is_not_finite_is_as_in_torch(act: nn.Module, mode: str) -> None:
    """Behind a BatchNorm, and behind a tensor that only the activation could keep."""
    special = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3.0, -3.0, 2.99, 6.0, 6.01, 100, -100, 1, -1, 5, -5]
    norm = nn.BatchNorm2d(1, eps=0.0).eval()
    for layers in ([norm, act], [act]):
        grads = []
        for saving in ("off", mode):
            model = nn.Sequential(*copy.deepcopy(layers)).double()
            save_memory(model, saving)
            x = torch.tensor(special, dtype=torch.float64).view(1, 1, 4, 4).requires_grad_()
            for factor in (1.0, torch.inf):
                grads.append(torch.autograd.grad(model(x * 1), x, torch.full_like(x, factor))[0])
        for want, got in zip(grads[:2], grads[2:], strict=True):
            torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 9])
def test_batch_sizes_and_layouts(mode: str, layout: torch.memory_format, batch: int) -> None:
    model = prepared(Block()).to(memory_format=layout)
    check_saving(model, image(batch).contiguous(memory_format=layout), mode)


@pytest.mark.parametrize("mode", EXACT)
def test_a_slice_of_channels_in_channels_last(mode: str) -> None:
    """Its strides are those of channels_last, but it has gaps: a mask was made in one order and read in the other."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        wide = torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last) * 1
        return (model(wide[:, :3]) * torch.arange(17)).square().mean()

    check_saving(
        nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.SiLU()).double(), image(), mode, loss
    )


def test_large_activations_are_made_in_parts() -> None:
    check_saving(prepared(Block(nn.SiLU(), channels=32)), image(4, size=200), "recompute")


def test_int8_is_off_by_a_percent_at_most() -> None:
    torch.manual_seed(0)
    model, x = prepared(Block(channels=16)), image(8, size=40)
    plain = step(copy.deepcopy(model), x)
    save_memory(model, "int8")
    ours = step(model, x)
    assert relative_error(ours["loss"], plain["loss"]) < 1e-12
    parameters = [name for name, _ in model.named_parameters() if name in plain]
    assert 0 < gradient_error(plain, ours, parameters) < 0.01


NORMS = {
    "no weight": lambda: nn.BatchNorm2d(8, affine=False),
    "cumulative": lambda: nn.BatchNorm2d(8, momentum=None),
    "untracked": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "eval": lambda: nn.BatchNorm2d(8).eval(),
    "frozen": lambda: nn.BatchNorm2d(8).eval().requires_grad_(False),
}


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("kind", NORMS)
def test_kinds_of_batch_norm(kind: str, mode: str) -> None:
    norm = NORMS[kind]()
    conv = efx.FixedConv2d(3, 8, 3, seed=0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), conv, norm, nn.SiLU(), nn.Conv2d(8, 4, 1)).double()
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    check_saving(model, image(), mode)


class _TwoNorms(nn.Module):
    """Has a BatchNorm whose output an activation and another BatchNorm read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second, self.act = (
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.BatchNorm2d(8),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.conv(x))
        z = self.second(y)
        return self.act(y) + z.sin()


def test_what_an_activation_rebuilt_goes_to_its_own_batch_norm() -> None:
    """The other BatchNorm, whose backward comes in between, once took it for its own input."""
    check_saving(prepared(_TwoNorms()), image(), "recompute")


def test_a_convolution_runs_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the activation and the BatchNorm need its result."""
    runs = []
    plain = convolutions._convolved
    monkeypatch.setattr(convolutions, "_convolved", lambda *args: runs.append(1) or plain(*args))
    model = prepared(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 1)))
    check_saving(model, image(), "recompute")
    assert len(runs) == 1
