"""The inputs of the last layer that a class rests on, against loops in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import explainfix_ext as efx


class Net(nn.Module):
    """Its head is named before the rest, and the last nn.Linear all the same."""

    def __init__(self, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def data(classes: int, count: int = 60) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    return torch.randn(count, 1, 7, 7, generator=g).double() * (1 + y[:, None, None, None]), y


def accuracy_by_loops(model: Net, order: Tensor, n: int, x: Tensor, y: Tensor) -> float:
    right = 0
    for a, label in zip(model.body(x), y, strict=True):
        logits = []
        for c, weight in enumerate(model.head.weight):
            kept = order[c, :n]
            logits.append(float(model.head.bias[c]) + sum(float(weight[k] * a[k]) for k in kept))
        right += logits.index(max(logits)) == int(label)
    return right / len(y)


def test_contributions_and_accuracies() -> None:
    model, (x, y) = Net(3).double(), data(3)
    found = efx.class_features(model, [(x[:40], y[:40]), (x[40:], y[40:])])
    with torch.no_grad():
        a = model.body(x)
        for c in range(3):
            assert torch.allclose(found.contribution[c], model.head.weight[c] * a[y == c].mean(0), atol=1e-12)
            ordered = found.contribution[c][found.order[c]]
            assert bool((ordered[:-1] >= ordered[1:]).all())
        assert list(found.accuracy) == [1, 2, 4, 6]
        for n, accuracy in found.accuracy.items():
            assert accuracy == pytest.approx(accuracy_by_loops(model, found.order, n, x, y))
        assert found.accuracy[6] == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert found.chance[6] == pytest.approx(found.accuracy[6])
    assert found.images == 60


def test_golden_one_input_a_class_is_enough() -> None:
    y = torch.arange(80) % 8
    x = nn.functional.one_hot(y).float()
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    model[0].weight.data = torch.eye(8)
    found = efx.class_features(model, [(x, y)])
    assert found.accuracy == {1: 1, 2: 1, 4: 1, 8: 1}
    assert found.order[:, 0].tolist() == [*range(8)]
    assert torch.equal(found.contribution, torch.eye(8).double())
    assert found.chance[1] < 0.4  # a class is seen if its one input was drawn, or, being class 0, if none was


def test_inputs_are_chosen_by_one_set_and_tested_on_another() -> None:
    model, (x, y) = Net(3).double(), data(3)
    whole = efx.class_features(model, [(x[:30], y[:30])])
    found = efx.class_features(model, [(x[:30], y[:30])], [(x[30:], y[30:])])
    assert torch.equal(found.order, whole.order)
    assert found.images == 30
    with torch.no_grad():
        assert found.accuracy[2] == pytest.approx(accuracy_by_loops(model, found.order, 2, x[30:], y[30:]))


@pytest.mark.parametrize("bias", [True, False])
def test_one_logit_is_two_classes(bias: bool) -> None:
    """As a network with a second logit, which is its negative."""
    one, two, (x, y) = Net(1, bias).double(), Net(2, bias).double(), data(2)
    two.body.load_state_dict(one.body.state_dict())
    two.head.weight.data = torch.cat([-one.head.weight.data, one.head.weight.data])
    if bias:
        two.head.bias.data = torch.cat([-one.head.bias.data, one.head.bias.data])
    expected, found = efx.class_features(two, [(x, y)]), efx.class_features(one, [(x, y[:, None].float())])
    assert torch.allclose(found.contribution, expected.contribution, atol=1e-12)
    assert found.accuracy == expected.accuracy


def test_printed_and_drawn() -> None:
    model, (x, y) = Net(3).double(), data(3)
    found = efx.class_features(model, [(x, y)])
    assert str(found).splitlines()[4].split() == ["6", f"{found.accuracy[6]:.4f}", f"{found.chance[6]:.4f}"]
    pytest.importorskip("matplotlib", reason='needs the extra "demo"')
    first, second = found.plot().axes[0].lines
    assert list(first.get_ydata()) == list(found.accuracy.values())
    assert list(second.get_ydata()) == list(found.chance.values())


def test_errors() -> None:
    model, (x, y) = Net(3).double(), data(3)
    with pytest.raises(ValueError, match="must have an nn.Linear"):
        efx.class_features(nn.Sequential(nn.Conv2d(1, 3, 7), nn.Flatten()).double(), [(x, y)])
    with pytest.raises(ValueError, match="must give the output of its last nn.Linear, got another"):
        efx.class_features(nn.Sequential(model, nn.Softmax(1)), [(x, y)])
    with pytest.raises(ValueError, match=r"each of the 3 classes, got none of \[1, 2\]"):
        efx.class_features(model, [(x, 0 * y)])
    with pytest.raises(ValueError, match="y must be below the model's 3 classes, got 3"):
        efx.class_features(model, [(x, y + 1)])
    with pytest.raises(ValueError, match="one class for each image"):
        efx.class_features(model, [(x, torch.ones(60, 3))])
    with pytest.raises(ValueError, match="data is empty"):
        efx.class_features(model, [])
    with pytest.raises(ValueError, match=r"model must give logits \(N, classes\), got \[60, 6, 5, 5\]"):
        efx.class_features(nn.Sequential(model.body[0], nn.Identity(nn.Linear(1, 1)), Keep()).double(), [(x, y)])


class Keep(nn.Module):
    """Has a Linear that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x
