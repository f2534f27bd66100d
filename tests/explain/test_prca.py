"""PRCA, against its closed form, against plain autograd, and against projections by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import explainfix_ext as efx


class Net(nn.Module):
    """The ReLU runs in place and is overwritten again, and a path leads around the layer."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(1, 5, 3), nn.ReLU(inplace=True)
        self.second, self.norm = nn.Conv2d(5, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.act(self.first(x)), x)

    def after(self, a: Tensor, x: Tensor) -> Tensor:
        around = x.mean((1, 2, 3))[:, None]
        return self.head(F.elu(self.norm(self.second(a.add_(0.1)))).mean((2, 3))) + around


def data(*sizes: int, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 1, 9, 9, generator=g).double(), torch.randint(0, classes, (n,), generator=g)) for n in sizes
    ]


def test_golden_constant_context() -> None:
    """Where c = v everywhere and m is the mean of a: eigenvalues m v +- |m| |v|, the first vector m/|m| + v/|v|."""
    g = torch.Generator().manual_seed(0)
    x, v = torch.rand(50, 6, generator=g).double(), torch.randn(6, generator=g).double()
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 2)).double()
    model[1].weight.data[1] = v
    found = efx.prca(model, [(x, torch.ones(50, dtype=torch.int64))], "0")
    m = x.mean(0)
    both, product = m @ v, m.norm() * v.norm()
    assert found.values[1, 0].item() == pytest.approx((both + product).item(), abs=1e-12)
    assert found.values[1, -1].item() == pytest.approx((both - product).item(), abs=1e-12)
    assert found.values[1, 1:-1].abs().max() < 1e-12
    first = m / m.norm() + v / v.norm()
    assert (found.vectors[1, :, 0] @ first / first.norm()).abs().item() == pytest.approx(1, abs=1e-12)
    assert torch.allclose(found.mean, m)
    assert not found.moments[0].any()  # no image of class 0
    assert found.images.tolist() == [0, 50]


def test_moments_are_those_of_plain_autograd() -> None:
    torch.manual_seed(0)
    model, batches = Net().double().train(), data(7, 6)
    found = efx.prca(model, batches, "act")
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    model.eval()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    for c in range(3):
        a = F.relu(model.first(x[y == c])).detach().requires_grad_()
        gradient = torch.autograd.grad(model.after(a.clone(), x[y == c])[:, c].sum(), a)[0]
        rows, context = (t.detach().permute(0, 2, 3, 1).flatten(0, 2) for t in (a, gradient))
        expected = (rows.T @ context + context.T @ rows) / len(rows)
        assert torch.allclose(found.moments[c], expected, atol=1e-12)
        relevance = (rows * context).sum(1).mean()
        assert found.values[c].sum().item() == pytest.approx(2 * relevance.item(), abs=1e-12)
        diagonal = found.vectors[c].T @ expected @ found.vectors[c]
        assert torch.allclose(diagonal, found.values[c].diag(), atol=1e-10)
        assert found.values[c].tolist() == sorted(found.values[c].tolist(), reverse=True)
    assert torch.allclose(found.mean, F.relu(model.first(x)).mean((0, 2, 3)))


def test_no_subspace_keeps_more_relevance() -> None:
    found = efx.prca(Net().double(), data(20), "act")
    kept = found.vectors[1, :, :2]
    most = torch.trace(kept.T @ found.moments[1] @ kept)
    for seed in range(50):
        other = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(seed)).double())[0]
        assert torch.trace(other.T @ found.moments[1] @ other) <= most + 1e-12


def test_one_logit_is_two_classes() -> None:
    """What speaks for one speaks against the other."""
    model, ((x, y),) = Net(1).double(), data(12, classes=2)
    y = torch.arange(12) % 2
    found = efx.prca(model, [(x, y[:, None].float())], "act")
    assert found.images.tolist() == [6, 6]
    same = efx.prca(model, [(torch.cat([x[y == 0]] * 2), torch.arange(12) // 6)], "act")
    assert torch.allclose(same.moments[0], -same.moments[1], atol=1e-12)


def test_removed_directions_stay_at_their_mean() -> None:
    torch.manual_seed(0)
    model, batches = Net().double().eval(), data(9, 5)
    found, (x, _) = efx.prca(model, batches, "act"), batches[0]
    with torch.no_grad():
        whole, a = model(x), F.relu(model.first(x))
        directions = torch.cat([found.vectors[0, :, :2], found.vectors[2, :, :2]], 1)
        onto = directions @ torch.linalg.pinv(directions)
        off = a - torch.einsum("ij,njhw->nihw", onto, a - found.mean[:, None, None])
        with found.removed(model, [0, 2], rank=2):
            assert torch.allclose(model(x), model.after(off, x), atol=1e-10)
        assert torch.equal(model(x), whole)
        with found.removed(model, 1, rank=5):  # all directions: every image has the mean
            mean = found.mean[:, None, None].expand_as(a).clone()
            assert torch.allclose(model(x), model.after(mean, x), atol=1e-10)
        with pytest.raises(KeyError, match="on purpose"), found.removed(model, 1):
            raise KeyError("on purpose")
        assert torch.equal(model(x), whole)


@pytest.mark.parametrize("mode", ["exact", "recompute"])
def test_memory_modes_change_nothing(mode: str) -> None:
    """Of the modes with the same gradients."""
    torch.manual_seed(0)
    model, batches = Net().double(), data(10)
    expected = efx.prca(model, batches, "act").moments
    efx.save_memory(model, mode)
    assert torch.allclose(efx.prca(model, batches, "act").moments, expected, atol=1e-10)


def test_printed() -> None:
    found = efx.prca(Net().double(), data(20), "act")
    half = found.values[0] / 2
    expected = ["0", f"{found.images[0]}", f"{half.sum():.4g}", f"{half[0]:.4g}"]
    assert str(found).splitlines()[1].split()[:4] == expected


def test_errors() -> None:
    model, batches = Net().double(), data(6)
    x, y = batches[0]
    with pytest.raises(ValueError, match="unknown layer 'acts'; nearest: act"):
        efx.prca(model, batches, "acts")
    with pytest.raises(ValueError, match="y must be below the model's 3 classes, got 7"):
        efx.prca(model, [(x, y + 7 - y.max())], "act")
    with pytest.raises(ValueError, match="one class for each image"):
        efx.prca(model, [(x, torch.ones(6, 3))], "act")
    with pytest.raises(ValueError, match="data is empty"):
        efx.prca(model, [], "act")
    with pytest.raises(ValueError, match="relevance at layer act must be finite"):
        efx.prca(model, [(x / 0, y)], "act")
    with pytest.raises(ValueError, match="too many channels for 3 classes: their moments are 3 x 20000 x 20000"):
        efx.prca(nn.Sequential(nn.Linear(2, 20000), nn.Linear(20000, 3)), [(torch.zeros(1, 2), y[:1])], "0")
    model.unused = nn.ReLU()
    with pytest.raises(ValueError, match="do not depend on layer unused"):
        efx.prca(model, batches, "unused")
    with pytest.raises(ValueError, match=r"layer 0 must give .*, got \[6, 9, 9\]"):
        efx.prca(nn.Sequential(nn.Flatten(1, 2), nn.Flatten(), nn.Linear(81, 3)).double(), batches, "0")
    found = efx.prca(model, batches, "act")
    for classes in (3, -1, [], [0, 5]):
        with pytest.raises(ValueError, match="classes must be from 0 to 2, got"):
            found.removed(model, classes)
    for rank in (0, 6, True):
        with pytest.raises(ValueError, match="rank must be an integer from 1 to 5, got"):
            found.removed(model, 0, rank)
