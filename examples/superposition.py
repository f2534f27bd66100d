"""Count the dimensions that a network gives to each feature: 1 of its own, or less, which it shares (superposition).

You will see known shapes first: two antipodal features have half a dimension each, five in a plane 2/5. Then a toy
network that stores five features in two numbers: where features are often there, it keeps two and drops the others;
where they are rare, it keeps all five, as a pentagon. Last the classes in the last layer of a network of digits.

Source: Elhage et al., Toy Models of Superposition (2022).
"""

import timm
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import explainfix_ext as efx
from explainfix_ext.training.data import load_dataset


def dimensions(features: Tensor) -> Tensor:
    """Returns the dimensions of each feature, a row of (features, numbers): |W_i|^2 / sum_j (W_i/|W_i| . W_j)^2."""
    directions = torch.nn.functional.normalize(features, dim=1)
    return features.square().sum(1) / (directions @ features.T).square().sum(1).clamp(min=1e-12)


def store(often: float, steps: int = 3000) -> Tensor:
    """Trains x -> relu(W W^T x + b) to give back five features, there with probability `often`; returns W (5, 2)."""
    importance = 0.9 ** torch.arange(5)
    weight = torch.nn.Parameter(torch.randn(8, 5, 2) * 0.5)  # eight networks at once: the best one counts
    bias = torch.nn.Parameter(torch.zeros(8, 1, 5))
    optimizer = torch.optim.Adam([weight, bias], 0.01)
    for _ in range(steps):
        x = torch.rand(8, 512, 5) * (torch.rand(8, 512, 5) < often)
        error = (((x @ weight @ weight.mT + bias).relu() - x).square() * importance).mean((1, 2))
        error.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return weight[error.argmin()].detach()


torch.manual_seed(0)
angles = 2 * torch.pi * torch.arange(5) / 5
shapes = {
    "orthogonal": torch.eye(3),
    "antipodal pair": torch.tensor([[1.0], [-1.0]]),
    "pentagon": torch.stack([angles.cos(), angles.sin()], 1),
    "tetrahedron": torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]),
}
shapes |= {f"toy, features there in {often:.0%}": store(often) for often in (1.0, 0.05)}

data = load_dataset("mnist5k", seed=0)
model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
efx.convert(model, seed=0, pointwise=True)
shapes["classes, before training"] = model.get_classifier().weight.detach().clone()
optimizer = torch.optim.AdamW(model.parameters(), 0.003)
for images, digits in DataLoader(data.train, 64, shuffle=True, drop_last=True):
    cross_entropy(model(images), digits).backward()
    optimizer.step()
    optimizer.zero_grad()
shapes["classes, after an epoch"] = model.get_classifier().weight.detach()

for name, features in shapes.items():
    print(f"{name:28} {' '.join(f'{d:.2f}' for d in dimensions(features))}")
