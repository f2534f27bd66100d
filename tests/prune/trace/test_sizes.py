"""Sizes in the code that come from attributes or shapes follow the channels; others keep only what they touch."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import BY_CHANNEL, Net, conv, images, made
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.prune.cut.layers import zero_filters_
from explainfix_ext.prune.cut.plan import zeros_of


def stem_first(name: str, module: nn.Module) -> Tensor:
    """Scores filters at random, and those of the stem lowest."""
    shape = (module.out_channels, module.in_channels // module.groups)  # type: ignore[operator]
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) + (0 if name == "stem" else 1)


OPTIONS = BY_CHANNEL | {"criterion": stem_first}


class Sized(Net):
    """stem -> split by sizes that the module holds -> tail. The parts go through convolutions of their own."""

    def __init__(self, cut: Callable[[Any, Tensor], Any], parts: tuple[int, ...] = (10, 6)) -> None:
        super().__init__()
        self.cut, self.parts, self.scale = cut, parts, 2
        self.total, self.first, self.last = 16, parts[0], parts[-1]
        self.branches = nn.ModuleList(conv(n, n) for n in parts)

    def middle(self, x: Tensor) -> Tensor:
        parts = self.cut(self, x)
        return torch.cat([branch(parts[i]) for i, branch in enumerate(self.branches)], 1)


# Name -> (how the code cuts, the parts, the attributes that must change).
CUTS: dict[str, tuple[Callable[[Any, Tensor], Any], tuple[int, ...], set[str]]] = {
    "tuple": (lambda m, x: torch.split(x, m.parts, 1), (10, 6), {"parts"}),
    "three": (lambda m, x: x.split(list(m.parts), dim=1), (2, 10, 4), {"parts"}),
    "difference": (lambda m, x: x.split([m.total - m.last, m.last], 1), (10, 6), {"total", "last"}),
    "rest of the shape": (lambda m, x: x.split([m.first, x.shape[1] - m.first], 1), (10, 6), {"first"}),
    "slices": (lambda m, x: (x[:, : m.first], x[:, m.first :]), (10, 6), {"first"}),
    "from the end": (lambda m, x: (x[:, : -m.last], x[:, -m.last :, :, :]), (10, 6), {"last"}),
    "ellipsis": (lambda m, x: (x[..., : m.first, :, :], x[:, m.first :, ...]), (10, 6), {"first"}),
    "narrow": (lambda m, x: (x.narrow(1, 0, m.first), x[:, m.first :]), (10, 6), {"first"}),
    "half": (lambda m, x: x.split(m.total // 2, dim=1), (8, 8), {"total"}),
    "twice the same": (lambda m, x: x.split([m.first, m.first], 1), (8, 8), {"first"}),
    "of parts": (lambda m, x: torch.split(x, m.total // m.scale, 1), (8, 8), {"total"}),
    "reshaped": (lambda m, x: x.reshape(-1, m.scale, m.first, 8, 8).unbind(1), (8, 8), {"first"}),
    "quarter of the shape": (lambda m, x: x.split([x.shape[1] // 4, x.shape[1] - x.shape[1] // 4], 1), (4, 12), set()),
    "slices of the shape": (lambda m, x: (x[:, : x.shape[1] // 4], x[:, x.shape[1] // 4 :]), (4, 12), set()),
    "chunk": (lambda m, x: x.chunk(2, 1), (8, 8), set()),
}


def sizes_of(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ("parts", "total", "first", "last", "scale")}


def masked_by(model: Any, plan: Any) -> nn.Module:
    """Returns the model of before with the filters zero that the plan removes or zeroes, and all channels there."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            shape = (module.out_channels, module.in_channels)
            cut = plan["layers"].get(name, {})
            rows, columns = (cut.get(side) or [*range(n)] for side, n in zip(("outputs", "inputs"), shape, strict=True))
            zero = torch.ones(shape, dtype=torch.bool)
            zero[rows] = False
            if name in plan["zeros"]:
                zero[torch.tensor(rows)[:, None], torch.tensor(columns)] = zeros_of(plan)[name]
            zero_filters_(module, zero)
    return model


@pytest.mark.parametrize("kind", ["learned", "dct2"])
@pytest.mark.parametrize("name", CUTS)
def test_sizes_follow_the_channels(name: str, kind: str) -> None:
    cut, parts, changing = CUTS[name]
    model = made(lambda: Sized(cut, parts), kind)
    for m in model.modules():  # what zero filters give is zero after the ReLU, so that it can go exactly
        if isinstance(m, nn.Conv2d):
            nn.init.zeros_(m.bias)  # type: ignore[arg-type]
    nn.init.zeros_(model.bn.running_mean)
    nn.init.constant_(model.bn.bias, -1.0)
    report = efx.channelprune(model, images(), amount=0.5, **OPTIONS | {"bn_bias": "keep"})
    pruned: Any = report.model
    assert type(pruned) is Sized
    torch.testing.assert_close(pruned(images(3)), masked_by(model, report.plan)(images(3)))
    assert report.plan["layers"]["stem"]["outputs"]
    assert {*report.plan.get("sizes", {})} == changing
    before, after = sizes_of(model), sizes_of(pruned)
    assert {name for name in before if before[name] != after[name]} == changing
    assert all(type(after[name]) is type(before[name]) for name in before)


def test_a_fresh_model_and_a_pickled_one_have_the_sizes() -> None:
    model = made(lambda: Sized(split_by_parts))
    report = efx.channelprune(model, images(), amount=0.5, **OPTIONS)
    pruned: Any = report.model
    fresh = efx.apply_plan(copy.deepcopy(model), json.loads(json.dumps(report.plan)))
    fresh.load_state_dict(pruned.state_dict())
    file = io.BytesIO()
    torch.save(pruned, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (fresh, loaded, copy.deepcopy(pruned)):
        assert other.parts == pruned.parts != (10, 6)
        assert torch.equal(other.eval()(images()), pruned.eval()(images()))


def split_by_parts(model: Any, x: Tensor) -> Any:
    return x.split(model.parts, 1)


def test_steps_of_a_schedule_are_one_plan() -> None:
    model = made(lambda: Sized(split_by_parts))
    report = efx.channelprune(model, images(), amount=0.7, schedule=[0.3, 0.5, 0.7], **OPTIONS)
    pruned: Any = report.model
    assert report.plan["sizes"]["parts"] == {"whole": [10, 6], "left": [*pruned.parts]}
    assert torch.equal(efx.apply_plan(copy.deepcopy(model), report.plan)(images()).isfinite().all(), torch.tensor(True))


class Twice(Sized):
    """Also uses the size for something else, so that it must stay."""

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(x) * self.total**-0.5


# Name -> network in which only the stem, or only the tail, must stay whole.
KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "attribute that scales": (lambda: Twice(lambda m, x: x.split(m.total // 2, 1), (8, 8)), "stem"),
    "written in the code": (lambda: Sized(lambda m, x: (x[:, :10], x[:, 10:])), "stem"),
}


class Asking(Net):
    def __init__(self, asks: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.asks, self.other = asks, conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        return self.asks(self, x)


def attention(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    q, k, v = torch.cat([x, x, x], 1).reshape(b, 3, 4, c // 4, h * w).unbind(1)
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).reshape(b, c, h, w)


def by_the_number_of_another(m: Any, x: Tensor) -> Tensor:
    count = m.other(x).shape[1]
    return x * x.mean((2, 3))[:, :, None].expand(-1, -1, count).sum(2)[..., None, None]


KEPT |= {
    "by the number": (lambda: Asking(lambda m, x: x / x.shape[1]), "stem"),
    "by its root": (lambda: Asking(lambda m, x: x * x.size(1) ** -0.5), "stem"),
    "attention": (lambda: Asking(attention), "stem"),
    "another's number": (lambda: Asking(by_the_number_of_another), "other"),
    "a new tensor": (lambda: Asking(lambda m, x: x + torch.arange(x.shape[1])[:, None, None]), "stem"),
    "a weight used twice": (lambda: Asking(lambda m, x: x + F.conv2d(x[:, :3], m.stem.weight, padding=1)), "stem"),
    "a bias used twice": (lambda: Asking(lambda m, x: x * m.stem.bias[:, None, None]), "stem"),
    "a norm's weight": (lambda: Asking(lambda m, x: x * m.bn.weight[:, None, None]), "stem"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_counts_channels_keeps_only_what_it_touches(name: str) -> None:
    make, whole = KEPT[name]
    report = efx.channelprune(made(make), images(), amount=0.5, **OPTIONS | {"backend": "fx"})
    assert whole in report.protected
    assert report.plan["layers"].get(whole, {}).get("outputs") is None
    assert report.plan["layers"]["tail"]["outputs"]
    assert "sizes" not in report.plan
    assert report.verify_error is not None


def test_sizes_of_other_images_are_no_channels() -> None:
    def resized(m: Any, x: Tensor) -> Tensor:
        return F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:])

    report = efx.channelprune(made(lambda: Asking(resized)), images(), amount=0.5, **OPTIONS)
    assert report.plan["layers"]["stem"]["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["cspresnet50", "inception_next_tiny", "mixnet_s", "fasternet_t0", "skresnet18", "res2net50_26w_4s", "rexnet_100"],
)
def test_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, 64, 64)
    report = efx.channelprune(model, x, amount=0.5, scope="layer", **BY_CHANNEL)
    assert report.verify_error is not None
    assert not any("written in the code" in reason for reason in report.protected.values())
    fresh = efx.apply_plan(timm.create_model(name), report.plan).eval()
    fresh.load_state_dict(report.model.state_dict())  # type: ignore[union-attr]
    assert torch.equal(fresh(x), report.model(x))  # type: ignore[misc]


def test_a_size_of_minus_one_in_an_attribute_stays() -> None:
    """As in the global response norm of ConvNeXt V2: torch counts, and the plan changes nothing."""

    class Inferred(Net):
        def __init__(self) -> None:
            super().__init__()
            self.shape, self.scale = (1, -1, 1, 1), nn.Parameter(torch.rand(16) + 0.5)

        def middle(self, x: Tensor) -> Tensor:
            return x * self.scale.view(self.shape)

    report = efx.channelprune(made(Inferred), images(), amount=0.9, **BY_CHANNEL)
    assert len(report.plan["tensors"]["scale"]["kept"]) < 16
    assert not report.plan.get("sizes")
    assert report.model.shape == (1, -1, 1, 1)
