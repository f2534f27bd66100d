"""bn_bias="fold" is exact for images of any size, or does not fold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.nets import conv, images
from torch import Tensor, nn

import explainfix_ext as efx


class Of(nn.Module):
    """An operation on maps, as a module that torch.fx looks into."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "same":
            return F.pad(x, [0, x.shape[3] % 2, 0, x.shape[2] % 2])
        return x.sum((2, 3), keepdim=True) if self.name == "sum" else x * x.shape[2]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + self.mix(2 * x)


def pooled() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1)]


# What follows the first layer and its ReLU -> whether constants can be folded there.
TAILS = {
    "border": ([conv(16, 16), nn.ReLU(), *pooled()], True),
    "padded mean": ([nn.AvgPool2d(3, 1, 1), *pooled()], False),
    "mean of what is there": ([nn.AvgPool2d(3, 1, 1, count_include_pad=False), *pooled()], True),
    "one padded mean": ([nn.AvgPool2d(8, 8, 1), nn.Conv2d(16, 4, 1)], False),
    "zeros around": ([nn.ZeroPad2d(1), *pooled()], False),
    "mirrors around": ([nn.ReflectionPad2d(1), nn.Conv2d(16, 4, 3)], True),
    "mirrors in the layer": ([nn.Conv2d(16, 4, 3, padding=1, padding_mode="reflect")], True),
    "larger": ([nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(16, 4, 1)], True),
    "padded 1x1": ([nn.Conv2d(16, 4, 1, padding=1), nn.AdaptiveAvgPool2d(1)], False),
    "transposed": ([nn.ConvTranspose2d(16, 16, 3, 2), nn.ReLU(), *pooled()], False),
    "computed padding": ([Of("same"), nn.Conv2d(16, 4, 2, 2)], False),
    "sum": ([Of("sum"), nn.Conv2d(16, 4, 1)], False),
    "size": ([Of("size"), nn.Conv2d(16, 4, 1)], False),
    "sequence": ([nn.Flatten(2), nn.Conv1d(16, 4, 3)], True),
    "a layer twice": ([Twice()], False),
}


QUICK = ("border", "padded mean", "mirrors around", "computed padding", "size", "a layer twice")


@pytest.mark.parametrize(
    ("name", "bn_bias"),
    [
        pytest.param(name, bn_bias, marks=() if bn_bias == "fold" and name in QUICK else pytest.mark.slow)
        for name in TAILS
        for bn_bias in ("keep", "fold")
    ],
)
def test_exact_at_any_size(name: str, bn_bias: str) -> None:
    torch.manual_seed(0)
    tail, folds = TAILS[name]
    model = nn.Sequential(conv(3, 16), nn.ReLU(), *tail).eval()
    model[0].bias.data = torch.linspace(-0.3, 0.5, 16)
    options = {"amount": 0.6, "criterion": "random", "granularity": "filter"}
    scores = {n: torch.rand(m.weight.shape[:2]) + 1 for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    scores["0"][::2] = 0
    if name == "border":
        scores["2"][::2] = 0
    spatial = {n: s for n, s in scores.items() if max(model.get_submodule(n).kernel_size) > 1}  # type: ignore[arg-type,call-overload]
    options = {"amount": sum(int((s == 0).sum()) for s in spatial.values()) / sum(s.numel() for s in spatial.values())}
    report = efx.channelprune(model, images(), criterion=scores, bn_bias=bn_bias, **options)
    masked = efx.channelprune(model, images(), criterion=scores, structured=False, **options).model
    assert report.model is not None
    assert masked is not None
    outputs = report.plan["layers"]["0"]["outputs"]
    assert (len(outputs) < 13) == (bn_bias == "fold" and folds and name != "border")  # three constants are zero
    for size in (7, 8, 11, 24):
        assert relative_error(report.model(images(size=size)), masked(images(size=size))) < 1e-5
