"""timm's families: create_model, convert, a training step, revert: the plain model trains alike."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compare import relative_error
from torch import Tensor, nn

import explainfix_ext as efx

timm = pytest.importorskip("timm", reason="timm (extra `models`) is not installed")

SMALL = ("test_resnet", "test_efficientnet", "test_convnext", "test_coatnet", "test_mambaout", "lcnet_035")
LARGE = (
    "resnet18",
    "resnext26ts",
    "densenet121",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "convnextv2_atto",
    "regnety_002",
    "rexnet_100",
    "ghostnet_050",
    "repvgg_a0",
    "dla34",
    "hrnet_w18_small",
    "xception41",
    "test_maxvit",
    "test_vit",
    "mobilevit_xxs",
    "levit_128s",
    "efficientformer_l1",
    "fastvit_t8",
)
LEFT = {"vit_tiny_r_s16_p8_224": "StdConv2dSame", "nf_regnet_b0": "ScaledStdConv2d"}  # they normalise their weights


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A model without weights of its own, in float64, and images of 64 pixels, where it takes these."""
    model = timm.create_model(name, num_classes=5)
    size = model.default_cfg["input_size"][-1] if model.default_cfg.get("fixed_input_size") else 64
    return model.double(), torch.randn(4, 3, size, size, dtype=torch.float64)


def train(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """One step -> how it changed what is learned."""
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in learned.items()}
    optimizer = torch.optim.SGD(learned.values(), 0.1)
    torch.manual_seed(0)  # of dropout
    nn.functional.cross_entropy(model.train()(x), torch.arange(4)).backward()
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in learned.items()}


@pytest.mark.filterwarnings("ignore:.* little is left to learn:UserWarning")
@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_family(name: str) -> None:
    model, x = make(name)
    report = efx.convert(model, "dct2", seed=0)
    assert report.converted
    assert not report.skipped
    plain = efx.revert(copy.deepcopy(model))
    assert {type(module) for module in plain.modules()}.isdisjoint({efx.FixedConv2d})
    changed, expected = train(model, x), train(plain, x)
    assert list(changed) == list(expected)
    whole = [torch.cat([change.flatten() for change in each.values()]) for each in (changed, expected)]
    assert whole[1].norm() > 0
    assert relative_error(*whole) < 1e-6
    with torch.no_grad():
        want = plain.eval()(x)
        assert relative_error(model.eval().float()(x.float()), want) < 1e-4, "the kernels, in float32"


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in LEFT])
def test_layers_with_a_forward_of_their_own_are_left_and_named(name: str) -> None:
    model, x = make(name)
    report = efx.convert(model, "dct2", seed=0)
    assert {layer.kind.split()[0] for layer in report.skipped} == {LEFT[name]}
    assert all("overrides forward" in layer.reason for layer in report.skipped)
    assert any(change.norm() > 0 for change in train(model, x).values())
