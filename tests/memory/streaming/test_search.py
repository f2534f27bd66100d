"""stream refuses what is not local, and names it; so it does with arguments that are wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.streamed import Net, calibrated, check_same, images, strided
from torch import Tensor, nn

import explainfix_ext as efx


class _Position(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[3], dtype=x.dtype) % 50


class _SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class _Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


REFUSED = [
    (lambda: _SqueezeExcite(), r"body\.1 \(_SqueezeExcite\)|body\.1\.fc \(Conv2d\)|mean"),
    (lambda: nn.GroupNorm(2, 8), r"body\.1 \(GroupNorm\): its result depends on the whole image"),
    (lambda: nn.BatchNorm2d(8, track_running_stats=False), r"body\.1 \(BatchNorm2d\)"),
    (lambda: _Position(), r"body\.1 \(_Position\): by tiles its result is another"),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), r"body\.1 \(Conv2d\): by tiles"),
]


@pytest.mark.parametrize(("layer", "named"), REFUSED)
def test_what_is_not_local_is_refused_by_name(layer: Callable[[], nn.Module], named: str) -> None:
    model = Net(nn.Conv2d(3, 8, 3, bias=False), layer(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)).double()
    with pytest.raises(ValueError, match=rf"local in most of its layers.* up to body\.0 .*{named}"):
        efx.stream(model, 16)
    assert "forward" not in vars(model)
    plain = copy.deepcopy(model)
    efx.stream(model, 16, until="body.0")
    check_same(model, plain, images(60, 50))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 0}, "tile must be pixels, an integer of 1 or more, got 0"),
        ({"tile": 2.5}, "tile must be pixels"),
        ({"until": "nothing"}, "until must name a module that the model's forward calls, got 'nothing'"),
        ({"until": "head"}, r"until must name a layer up to which all are local, got 'head': mean: its"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        efx.stream(calibrated(strided), **arguments)


def test_bad_models_and_images() -> None:
    with pytest.raises(ValueError, match=r"model has no layer to stream"):
        efx.stream(nn.Sequential(nn.Flatten(), nn.Linear(27, 4)))
    with pytest.raises(ValueError, match=r"model cannot be traced by torch\.fx"):
        efx.stream(_Branches())
    model = calibrated(strided)
    model.forward = model.forward  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="replaced on the instance"):
        efx.stream(model)
    model = calibrated(strided)
    efx.stream(model)
    with pytest.raises(ValueError, match=r"takes images \(N, C, H, W\), got"):
        model(torch.zeros(3, 8, 8))


def test_a_value_that_is_needed_twice_is_no_cut() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x))
            return F.interpolate(y.mean((2, 3), keepdim=True), x.shape[2:]) + x.mean() + y

    with pytest.raises(ValueError, match=r"until must name a layer whose output alone is needed later, got 'b'"):
        efx.stream(Skips(), 16, until="b")
