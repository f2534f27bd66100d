"""Take the singular values of a network's layers with weightwatcher, before and after training, learned and fixed.

You will see a table: alpha of each layer's spectrum, the exponent of its tail, which weightwatcher's authors find
between 2 and 6 where training has shaped a layer. Fixed filters may lie there, too, and stay where they were made: what
a fixed network has learned is in its 1x1 and linear layers, and only their spectra tell of training.
"""

import copy
import itertools
import logging

import timm
import torch
import weightwatcher
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import explainfix_ext as efx
from explainfix_ext.training.data import load_dataset

logging.disable(logging.WARNING)  # weightwatcher says much
torch.manual_seed(0)
data = load_dataset("mnist5k", seed=0)
learned = timm.create_model("test_resnet", in_chans=1, num_classes=10)
fixed = copy.deepcopy(learned)
efx.convert(fixed, "dct2", seed=0)


def alphas(model: torch.nn.Module) -> dict[str, float]:
    """Name of a layer -> alpha. plain: a copy with the filters as weights, which is what such tools read."""
    table = weightwatcher.WeightWatcher(model=efx.plain(model)).analyze(min_evals=8)
    return dict(zip(table["longname"], table["alpha"], strict=True))


def train(model: torch.nn.Module, epochs: int) -> None:
    loader = DataLoader(data.train, 64, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * len(loader))
    for images, digits in itertools.chain.from_iterable(itertools.repeat(loader, epochs)):
        cross_entropy(model.train()(images), digits).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


columns = []
for model in (learned, fixed):
    columns.append(alphas(model))
    train(model, epochs=2)
    columns.append(alphas(model))
print(f"{'alpha of layer':24} learned: random trained   fixed: random trained")
for layer in columns[0]:
    print(f"{layer:24}        {columns[0][layer]:8.2f}{columns[1][layer]:8.2f}       ", end="")
    print(f"{columns[2][layer]:8.2f}{columns[3][layer]:8.2f}  {type(fixed.get_submodule(layer)).__name__}")
