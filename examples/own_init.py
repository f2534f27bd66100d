"""Add an initialisation of your own: here, Gabor filters, as they are found in the first layers of trained networks.

You will see that it is taken by name like those of the package, how a network with it does after an epoch beside one
with DCT functions, and find some of its filters in filters.png. One epoch and one seed do not tell
which of two initialisations is better.
"""

import math

import timm
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import explainfix_ext as efx
from explainfix_ext.explain_plots import plot_filters
from explainfix_ext.registry import Layer, register
from explainfix_ext.training.data import load_dataset


@register("gabor", "each filter plus or minus a Gabor function, even or odd, in one of a few directions")
def gabor(layer: Layer, directions: int = 4) -> efx.FilterBank:
    """Makes the filters of one layer, of any size: a basis, and for each filter the number of its function."""
    height, width = layer.kernel_size
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    window, functions = torch.exp(-(x**2 + y**2)), []
    for angle in torch.arange(directions) * math.pi / directions:
        wave = math.pi / 2 * (x * angle.cos() + y * angle.sin())
        functions += [window * wave.cos(), window * wave.sin()]
    basis = torch.stack([f / f.norm() for f in functions])
    basis = torch.cat([basis, -basis])  # plus as often as minus, so that outputs are about 0 in the mean
    # Random numbers come from the layer's stream alone: then a seed gives the same filters on every machine.
    return layer.bank(basis, layer.stream("function").integers(0, len(basis), layer.filters))


torch.manual_seed(0)
data = load_dataset("mnist5k", seed=0)
for init, options in {"dct2": {}, "gabor": {"directions": 6}}.items():
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    report = efx.convert(model, init, seed=0, pointwise=True, **options)  # density=0.1, gain="kaiming" ... work, too
    loader = DataLoader(data.train, 64, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=len(loader))
    for images, digits in loader:
        cross_entropy(model(images), digits).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    images, digits = data.test.tensors
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == digits).float().mean()
    print(f"{init}: {len(report.converted)} layers fixed, {right:.1%} of test digits right")

# A checkpoint holds a recipe, not filters: a program that loads it must have registered "gabor" before.
plot_filters(model.get_submodule("layer1.0.conv1"), count=36).savefig("filters.png")
print("picture: filters.png")
