"""Train a network whose last channels each serve few classes (CSG: class-specific gates), and see that they do.

You will see two lines to compare, of the same network trained plainly and with gates: how many test digits it reads
(about as many), how many with one input of the last layer for each class (more), and how much the channels of its last
block say about single classes (MIS, in nats, with what chance gives; more). Gates are there in training alone.

Source: Liang et al., Training Interpretable Convolutional Neural Networks by Differentiating Class-specific Filters
(ECCV 2020), whose networks are trained for far longer.
"""

import copy

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import explainfix_ext as efx
from explainfix_ext.training.data import load_dataset

EPOCHS, SHARE, WEIGHT = 6, 0.2, 1e-3  # SHARE: of the gates that may be open; WEIGHT: of what is open beyond that

torch.manual_seed(0)
data = load_dataset("mnist5k", seed=0)
fixed = timm.create_model("test_resnet", in_chans=1, num_classes=10)
efx.convert(fixed, seed=0, pointwise=True)  # what makes channels of a class is learned: the 1x1


class Gates(nn.Module):
    """Multiplies each channel by how much it serves the true class of the image, a learned number from 0 to 1."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.open = nn.Parameter(torch.full((channels, classes), 0.5))

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        return x * self.open.T[classes][:, :, None, None]

    def penalty(self) -> Tensor:
        """Returns what is open beyond SHARE; at the start 0.3 times the number of gates."""
        return (self.open.abs().sum() - SHARE * self.open.numel()).relu()

    @torch.no_grad()
    def project(self) -> None:
        """Each channel serves one class at least: its widest gate is open."""
        self.open.div_(self.open.amax(1, keepdim=True).clamp(min=1e-6)).clamp_(0, 1)


def train(model: nn.Module, gates: Gates | None) -> None:  # with gates, every second epoch goes through them
    loader = DataLoader(data.train, 64, shuffle=True, generator=torch.Generator().manual_seed(0), drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=EPOCHS * len(loader))
    opening = None if gates is None else torch.optim.Adam(gates.parameters(), 0.01)
    for epoch in range(EPOCHS):
        for images, digits in loader:
            features = model.forward_features(images)
            if gates is not None and opening is not None and epoch % 2:
                loss = cross_entropy(model.forward_head(gates(features, digits)), digits)
                (loss + WEIGHT * gates.penalty()).backward()
                opening.step()
                opening.zero_grad()
                gates.project()
            else:
                cross_entropy(model.forward_head(features), digits).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


for name, gates in {"plain": None, "gated": Gates(fixed.num_features, 10)}.items():
    model = copy.deepcopy(fixed)
    train(model, gates)
    test = DataLoader(data.test, 64)
    purity = efx.class_purity(model, test, "layer4")
    features = efx.class_features(model, DataLoader(data.train, 64), test)
    right, one = (f"{features.accuracy[n]:.1%}" for n in (fixed.num_features, 1))
    mis, chance = (f"{some['layer4']:.3f}" for some in (purity.mis, purity.mis_chance))
    print(f"{name}: {right} of test digits right, {one} with one input a class; MIS {mis}, by chance {chance}")
