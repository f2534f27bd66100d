"""Fix the 3x3 filters of a ResNet-18, and train what is left beside the same network learned, on 4,000 real digits.

You will see which layers were fixed, then two lines to compare: after one epoch the fixed network reads about as many
digits right, learns a seventh of the numbers, has a checkpoint of a seventh of the bytes, and trains faster.
"""

import copy
import io
import time

import timm
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import explainfix_ext as efx
from explainfix_ext.training.data import load_dataset

torch.manual_seed(0)
data = load_dataset("mnist5k", seed=0)  # three TensorDatasets of images and classes: train, val, test
learned = timm.create_model("resnet18", in_chans=1, num_classes=10)

# The one line. Networks with 1x1 convolutions of their own (ResNet-50, DenseNet, EfficientNet) do without `pointwise`;
# a ResNet-18 has only 3x3, and needs something to learn between fixed filters.
fixed = copy.deepcopy(learned)
print(efx.convert(fixed, seed=0, pointwise=True))


def train(model: torch.nn.Module) -> float:
    """Trains for one epoch and returns the seconds that it took. Nothing in here knows of fixed filters."""
    loader = DataLoader(data.train, 64, shuffle=True, generator=torch.Generator().manual_seed(0), drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)  # after convert: fixed filters are no parameters
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=len(loader))
    start = time.perf_counter()
    for images, digits in loader:
        cross_entropy(model(images), digits).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return time.perf_counter() - start


for name, model in {"learned": learned, "fixed": fixed}.items():
    seconds = train(model)
    images, digits = data.test.tensors
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == digits).float().mean()
    torch.save(model.state_dict(), file := io.BytesIO())
    numbers = sum(p.numel() for p in model.parameters())
    print(
        f"{name:8} {right:.1%} of test digits right, {numbers:,} learned numbers, "
        f"checkpoint {file.tell() / 1e6:.1f} MB, epoch {seconds:.1f} s"
    )
