"""Class purity, against counting by loops in float64, and the layers that are chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import explainfix_ext as efx


def stack(width: int = 6) -> nn.Sequential:
    """The last activation has channels last, as in ConvNeXt's blocks."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 5, 3), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4), nn.ReLU()),
    )


def of_means(values: Tensor, y: Tensor) -> efx.ClassPurity:
    """The purity of channels that have these means (N, K)."""
    model = nn.Identity()
    return efx.class_purity(nn.Sequential(model), [(values[:, :, None, None], y)], "0")


def by_loops(values: np.ndarray, labels: np.ndarray) -> float:
    """Information between the 16 bins of ranks and 0 or 1, as it is defined."""
    n, information = len(values), 0.0
    ranks = [(np.sum(values < v) + np.sum(values <= v)) / 2 for v in values]
    bins = [math.floor(16 * rank / n) for rank in ranks]
    for b in set(bins):
        for label in (0, 1):
            here = [i == b for i in bins]
            both = sum(i and j == label for i, j in zip(here, labels, strict=True)) / n
            if both:
                information += both * math.log(both / (sum(here) / n * np.mean(labels == label)))
    return information


def test_golden_one_hot_features_of_ten_balanced_classes() -> None:
    y = torch.arange(200) % 10
    found = of_means(nn.functional.one_hot(y).double(), y)
    assert found.mis["0"] == pytest.approx(0.325083, abs=1e-6)  # the entropy of 1 in 10
    assert torch.allclose(found.purity["0"], torch.ones(10).double(), atol=1e-12)
    assert found.top["0"].tolist() == [*range(10)]
    assert found.images == 200


def test_it_is_what_loops_count() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (150,), generator=g)
    values = torch.randn(150, 4, generator=g).double() + y[:, None] * torch.tensor([0.0, 0.3, 1, 3])
    values[:, 1] = values[:, 1].relu()  # many equal values
    found = of_means(values, y)
    for k in range(4):
        information = [by_loops(values[:, k].numpy(), (y == c).numpy()) for c in range(3)]
        p = [(y == c).double().mean().item() for c in range(3)]
        shares = [i / -(q * math.log(q) + (1 - q) * math.log(1 - q)) for i, q in zip(information, p, strict=True)]
        assert found.purity["0"][k].item() == pytest.approx(max(shares), abs=1e-9)
        assert found.top["0"][k].item() == int(np.argmax(shares))
    most = [max(by_loops(values[:, k].numpy(), (y == c).numpy()) for c in range(3)) for k in range(4)]
    assert found.mis["0"] == pytest.approx(sum(most) / 4, abs=1e-9)


def test_monotone_functions_of_a_channel_change_nothing() -> None:
    y = torch.arange(90) % 3
    values = torch.randn(90, 2).double() + y[:, None]
    assert torch.equal(of_means(values, y).purity["0"], of_means(values.exp(), y).purity["0"])


def test_a_known_information_is_found() -> None:
    """Two normal distributions, one standard deviation apart: 0.1114 nats, by numerical integration below."""
    x = torch.linspace(-10, 11, 100_001, dtype=torch.float64)
    density = torch.stack([torch.exp(-((x - c) ** 2) / 2) / math.sqrt(2 * math.pi) for c in (0, 1)]) / 2
    logs = torch.xlogy(density, density / (density.sum(0) / 2))
    exact = torch.trapezoid(logs.sum(0), x).item()
    y = torch.arange(8000) % 2
    values = torch.randn(8000, 1, generator=torch.Generator().manual_seed(0)).double() + y[:, None]
    assert of_means(values, y).mis["0"] == pytest.approx(exact, abs=0.01)


def test_shuffled_labels_leave_the_bias_alone() -> None:
    """About 15 / 2N nats: 16 bins, two labels."""
    y = torch.arange(600) % 2
    found = of_means(nn.functional.one_hot(y).double() + torch.rand(600, 2), y)
    assert found.mis["0"] > 0.6
    assert found.mis_chance["0"] == pytest.approx(15 / 1200, rel=0.3)
    noise = of_means(torch.rand(600, 40), y)
    assert noise.mis["0"] == pytest.approx(noise.mis_chance["0"], rel=0.2)
    assert noise.follows["0"].double().mean() < 0.06  # 1 in 21, for the best of them
    assert found.follows["0"].all()


def test_of_two_classes_the_one_with_the_higher_mean_is_followed() -> None:
    y = torch.arange(64) % 2
    values = torch.stack([y, 1 - y], 1).double()
    assert of_means(values, y).top["0"].tolist() == [1, 0]
    assert of_means(values, y[:, None].float()).top["0"].tolist() == [1, 0]


def test_labels_that_are_not_known_do_not_count() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (120, 2), generator=g).float()
    values = torch.randn(120, 3, generator=g).double() + labels[:, :1]
    alone = of_means(values, labels[:, [0, 0]])
    labels[:, 1] = torch.nan
    assert torch.allclose(of_means(values, labels).purity["0"], alone.purity["0"])
    labels[60:, 0] = torch.nan  # bins are of all images, counts of those that are known
    assert of_means(values, labels).top["0"].tolist() == [0, 0, 0]


def test_features_are_means_of_activations_and_the_model_stays() -> None:
    model = stack().train()
    x, y = torch.randn(40, 1, 9, 9), torch.arange(40) % 4
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = efx.class_purity(model, [(x[:25], y[:25]), (x[25:], y[25:])])
    assert list(found.purity) == ["2", "4"]
    assert model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert not any(m._forward_hooks for m in model.modules())
    model.eval()
    expected = of_means(model[:5](x).detach().double().mean((2, 3)), y)
    assert torch.equal(found.purity["4"], expected.purity["0"])
    assert list(efx.class_purity(model, [(x, y)], ["1", "7"]).purity) == ["1", "7"]
    assert efx.class_purity(model, [(x, y)], num_batches=1).images == 40


class Functional(nn.Module):
    """Its activation is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def test_layers_that_are_taken_unasked() -> None:
    torchvision = pytest.importorskip("torchvision", reason='needs the extra "models"')
    x, y = torch.randn(8, 1, 16, 16), torch.arange(8) % 2
    gated = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), torchvision.ops.SqueezeExcitation(4, 2))
    assert list(efx.class_purity(gated, [(x, y)]).purity) == ["1"]
    functional = nn.Sequential(Functional(), nn.Sequential(nn.Conv2d(2, 2, 3)))
    assert list(efx.class_purity(functional, [(x, y)]).purity) == ["0"]


def test_of_a_module_that_runs_twice_the_last_output_counts() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.act(x)[:, :1] - 1)

    x, y = torch.rand(30, 2, 1, 1) * 3, torch.arange(30) % 2
    found = efx.class_purity(Block(), [(x, y)])
    assert torch.equal(found.purity["act"], of_means((x[:, :1, 0, 0] - 1).relu(), y).purity["0"])


def test_printed_and_drawn() -> None:
    y = torch.arange(60) % 3
    found = of_means(nn.functional.one_hot(y).double(), y)
    assert str(found).splitlines()[1].split()[:4] == ["0", "3", "3", "1.000"]
    pytest.importorskip("matplotlib", reason='needs the extra "demo"')
    axes = found.plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0"]
    assert axes.patches[0].get_width() == pytest.approx(found.chance["0"])


def test_errors() -> None:
    x, y = torch.randn(8, 1, 9, 9), torch.arange(8) % 4
    with pytest.raises(TypeError, match="model must be an nn.Module, got 3"):
        efx.class_purity(3, [(x, y)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown layer 'layer4'"):
        efx.class_purity(stack(), [(x, y)], "layer4")
    with pytest.raises(ValueError, match="layers must be given: the model has no activation after a convolution"):
        efx.class_purity(nn.Conv2d(1, 2, 3), [(x, y)])
    with pytest.raises(ValueError, match="y must be classes"):
        efx.class_purity(stack(), [(x, x)])
    with pytest.raises(ValueError, match="y must have images of two classes at least, got one"):
        efx.class_purity(stack(), [(x, 0 * y)])
    with pytest.raises(ValueError, match="data is empty"):
        efx.class_purity(stack(), [])
    with pytest.raises(ValueError, match="outputs of layer 2 must be finite"):
        efx.class_purity(stack(), [(x / 0, y)])
    with pytest.raises(ValueError, match=r"layer 0 must give \(N, K\) or \(N, K, H, W\), got \[8, 9, 9\]"):
        efx.class_purity(nn.Sequential(nn.Flatten(1, 2)), [(x, y)], "0")

    class Skips(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    with pytest.raises(ValueError, match="layer 2 did not run"):
        efx.class_purity(Skips(*stack()), [(x, y)], ["0", "2"])
    assert list(efx.class_purity(Skips(nn.ReLU(), nn.ReLU()), [(x, y)]).purity) == ["0"]  # unasked, it is left out

    def breaks() -> Iterator[tuple[Tensor, Tensor]]:
        yield x, y
        raise OSError("the disk")

    model = stack().train()
    with pytest.raises(OSError, match="the disk"):
        efx.class_purity(model, breaks())
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
