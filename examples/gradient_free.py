"""Train a network of digits without a single gradient: fixed filters, fixed 1x1 layers, and a last layer solved for.

You will see three lines: the network learned as usual; the same with every convolution fixed, which takes one pass to
measure what the normalisation sees and one to solve for the last layer, and reads about as many digits right; and one
whose spatial filters come from the images (Saab), which does no better than the random mixes of cosines before it.
"""

import copy
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import explainfix_ext as efx
from explainfix_ext.training.data import load_dataset

torch.manual_seed(0)
data = load_dataset("mnist5k", seed=0)  # three TensorDatasets of images and classes: train, val, test
batches = list(DataLoader(data.train, 250, shuffle=True))

network = nn.Sequential(
    *(nn.Conv2d(1, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 32, 5), nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(1024, 10)),
)


def learned(model: nn.Module) -> None:
    """Trains for five epochs by gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.003)
    for _ in range(5):
        for images, digits in DataLoader(data.train, 64, shuffle=True):
            cross_entropy(model(images), digits).backward()
            optimizer.step()
            optimizer.zero_grad()


def fixed(model: nn.Module) -> None:
    """Fixes every convolution, and solves for the last layer."""
    efx.convert(model, include_pointwise=True, seed=0)
    torch.optim.swa_utils.update_bn(batches, model)  # what the normalisation subtracts and divides by
    efx.fit_head(model, batches)


def saab(model: nn.Module) -> None:
    """Does the same with spatial filters from the images: the principal axes of what each layer sees."""
    efx.convert(model, include_pointwise=True, seed=0)
    for name, bank in efx.fit_saab(model, batches).items():
        model.get_submodule(name).bank = bank
    torch.optim.swa_utils.update_bn(batches, model)
    efx.fit_head(model, batches)


for train in (learned, fixed, saab):
    model = copy.deepcopy(network)
    start = time.perf_counter()
    train(model)
    seconds = time.perf_counter() - start
    images, digits = data.test.tensors
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == digits).float().mean()
    print(f"{train.__name__:8} {right:.1%} of test digits right, trained in {seconds:.1f} s")
