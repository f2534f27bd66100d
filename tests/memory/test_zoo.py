"""save_memory on 34 learned networks of three libraries: gradients and statistics equal torch's in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from support import zoo
from support.training_step import check_same, gradient_error, prepared, step
from torch import Tensor, nn

from explainfix_ext.memory import save_memory
from explainfix_ext.training.models import build_model, logits_of

zoo.needs_libraries()
pytestmark = pytest.mark.slow

TIMM = (
    "resnet26d", "resnetv2_50", "seresnet50", "skresnet18", "resnest14d", "regnety_002", "densenet121", "dla34",
    "hrnet_w18_small", "efficientnet_lite0", "tf_efficientnet_b0", "mobilenetv3_small_100", "mobilenetv2_100",
    "ghostnet_100", "repvgg_a0", "rexnet_100", "vovnet39a",
)  # fmt: skip
TORCHVISION = (
    "resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn", "densenet121", "mobilenet_v2", "mobilenet_v3_large",
    "shufflenet_v2_x1_0", "mnasnet1_0", "efficientnet_b0", "regnet_y_400mf",
)  # fmt: skip
SMP = ("unet", "unetplusplus", "fpn", "linknet", "manet", "deeplabv3plus")
NAMES = [f"timm:{n}" for n in TIMM] + [f"torchvision:{n}" for n in TORCHVISION] + [f"smp:{n}/resnet18" for n in SMP]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return logits_of(model(x)).square().mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_equals_torchs(name: str) -> None:
    torch.manual_seed(0)
    model = prepared(build_model(name, 3, 5).train())
    x = torch.randn(2, 3, 96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = step(copy.deepcopy(model), x, loss)
    for mode in ("exact", "recompute"):
        ours = copy.deepcopy(model)
        assert save_memory(ours, mode).changed
        check_same(plain, step(ours, x, loss), 1e-7)  # rexnet_100 makes 4e-9 of one rounding of the image
    save_memory(model, "int8")
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert gradient_error(plain, step(model, x, loss), names) < 0.05
