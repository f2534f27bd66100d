"""fit_saab: which patches of which layer, in which order, for which layers; what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.zoo import convert_quietly
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.conversion import fit_saab as module
from explainfix_ext.filters.saab import saab_functions

Batches = list[tuple[Tensor, Tensor]]


def data(*shape: int, batches: int = 2) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(*shape, generator=generator).cumsum(-1), torch.zeros(shape[0])) for _ in range(batches)]


def images(given: Batches) -> Tensor:
    return torch.cat([x for x, _ in given])


def first_axis(x: Tensor, kernel: int, dilation: int = 1) -> Tensor:
    """The strongest function over all channels, by torch's own unfold and SVD."""
    patches = F.unfold(x.double(), kernel, dilation).mT.flatten(0, 1)
    patches = patches - patches.mean(1, keepdim=True)
    return torch.linalg.svd(patches - patches.mean(0), full_matrices=False).Vh[0]


def same_axis(one: Tensor, other: Tensor) -> bool:
    return float((one.detach().double().flatten() @ other.detach()).abs()) == pytest.approx(1, abs=1e-5)


def test_each_layer_sees_what_the_fitted_ones_before_it_make_of_the_data() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3))
    given = data(30, 2, 14, 14, batches=1)
    banks = efx.fit_saab(model, given, "joint")
    first, last = banks["0"].weight(), banks["4"].weight()
    assert same_axis(first[1], first_axis(images(given), 3))
    before = F.conv2d(images(given), first, model[0].bias)
    before = F.max_pool2d(F.batch_norm(before, None, None, training=True).relu(), 2)
    assert same_axis(last[1], first_axis(before, 3))


def test_spatial_functions_are_of_single_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=2, groups=1))
    given = data(20, 3, 10, 10)
    bank = efx.fit_saab(model, given)["0"]
    patches = F.unfold(images(given).double().flatten(0, 1)[:, None], 3).mT.flatten(0, 1)
    functions, variances = saab_functions(torch.cov(patches.T, correction=0))
    order = variances.argsort(descending=True)
    overlap = (bank.basis.flatten(1) @ functions[order].T).abs()
    torch.testing.assert_close(overlap, torch.eye(9, dtype=torch.float64), atol=1e-6, rtol=0)


def test_depthwise_dilated_and_small_inputs() -> None:
    given = data(20, 2, 9, 9)
    dilated = nn.Sequential(nn.Conv2d(2, 4, 3, dilation=2))
    assert same_axis(efx.fit_saab(dilated, given, "joint")["0"].weight()[1], first_axis(images(given), 3, 2))
    depthwise = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2))
    assert efx.fit_saab(depthwise, given, "joint")["0"].shape == (4, 1, 3, 3)
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(2, 4, (3, 5), padding=2))
    padded = F.pad(F.adaptive_avg_pool2d(images(given), 2), [1, 2, 0, 1]).double()
    assert same_axis(efx.fit_saab(tiny, given, "joint")["1"].weight()[1], _axis_of(padded.flatten(1)))


def _axis_of(patches: Tensor) -> Tensor:
    patches = patches - patches.mean(1, keepdim=True)
    return torch.linalg.svd(patches - patches.mean(0), full_matrices=False).Vh[0]


def test_many_patches_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    given, model = data(50, 1, 20, 20), nn.Sequential(nn.Conv2d(1, 3, 3))
    whole = efx.fit_saab(model, given, "joint")["0"].weight()
    monkeypatch.setattr(module, "PATCHES", 12000)
    some = efx.fit_saab(model, given, "joint")["0"].weight()
    assert not torch.equal(whole, some)
    assert float((whole[1] * some[1]).sum().abs()) > 0.9
    assert torch.equal(some, efx.fit_saab(model, given, "joint")["0"].weight())


class Swapped(nn.Module):
    """Its layers run in another order than they are registered, one of them twice and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.never = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(input=self.first(self.first(x)))


def test_layers_are_fitted_in_the_order_in_which_they_run() -> None:
    model, given = Swapped(), data(20, 2, 12, 12)
    banks = efx.fit_saab(model, given, "joint")
    assert list(banks) == ["first", "last"]
    first = banks["first"].weight()
    twice = images(given)
    for _ in range(2):
        twice = F.conv2d(twice, first, model.first.bias)
    assert same_axis(banks["last"].weight()[1], first_axis(twice, 3))


def test_the_model_is_left_alone_and_convert_takes_the_banks() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    banks = efx.fit_saab(model, data(20, 1, 10, 10))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())
    report = convert_quietly(model, lambda name, conv: banks.get(name))
    assert [layer.init for layer in report.converted] == ["given bank"] * 2
    assert torch.equal(model[3].weight, banks["3"].weight())


def test_fixed_layers_are_fitted_too_and_what_convert_leaves_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)))
    given = data(20, 1, 10, 10)
    assert list(efx.fit_saab(model, given)) == ["0"]
    fixed = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3))
    fixed[1].bias, plain = fixed[0].bias, efx.fit_saab(fixed, given, include="0")
    convert_quietly(fixed, seed=0)
    assert torch.equal(efx.fit_saab(fixed, given, exclude="1")["0"].weight(), plain["0"].weight())
    fixed[0].bank = plain["0"]
    assert torch.equal(fixed[0].weight, plain["0"].weight())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "channel"}, "mode must be one of spatial, joint, got 'channel'"),
        ({"energy": 0}, r"energy must be in \(0, 1\], got 0"),
        ({"num_batches": 0}, "num_batches must be at least 1, got 0"),
        ({"data": []}, r"data is empty: expected batches \(x, y\)"),
        ({"data": [torch.zeros(2, 1, 8, 8)]}, r"data must give pairs of tensors \(x, y\), got Tensor"),
        ({"data": [(torch.ones(4, 1, 8, 8), torch.zeros(4))]}, "0: its input must be finite and vary .* variance of 0"),
        ({"data": [(torch.full((4, 1, 8, 8), math.nan), torch.zeros(4))]}, "0: its input must be finite and vary"),
        ({"include": "layer*"}, "include and exclude must leave a spatial convolution, such as 0"),
        ({"model": nn.Linear(8, 8)}, "model has no spatial Conv2d to fit"),
    ],
)
def test_bad_calls_are_told(options: dict, message: str) -> None:
    arguments = {"model": nn.Sequential(nn.Conv2d(1, 4, 3)), "data": data(4, 1, 8, 8)} | options
    with pytest.raises(ValueError, match=message):
        efx.fit_saab(**arguments)


def test_large_patches_are_refused_in_joint_mode_only() -> None:
    model, given = nn.Sequential(nn.Conv2d(1, 256, 1), nn.Conv2d(256, 8, 3)), data(4, 1, 8, 8)
    with pytest.raises(ValueError, match='1: mode "joint" takes patches of 2048 numbers at most, got 2304: exclude it'):
        efx.fit_saab(model, given, "joint")
    assert list(efx.fit_saab(model, given)) == ["1"]
    with pytest.raises(TypeError, match="model must be an nn.Module, got 3"):
        efx.fit_saab(3, given)
