"""Train a DenseNet-121 in a fraction of the memory, with the same gradients.

You will see a line for the learned network and for each memory mode of the fixed one: what a training step keeps for
the backward pass, its peak, the rounding error of its gradients, and the time it takes. DenseNets gain most: try yours.
"""

import copy
import time

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import explainfix_ext as efx

torch.manual_seed(0)
model = torchvision.models.densenet121(num_classes=10)
images, classes = torch.randn(8, 3, 96, 96), torch.arange(8)  # what is kept depends on sizes, not on what is seen


def loss(logits: Tensor) -> Tensor:
    return cross_entropy(logits, classes)


def gradients(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the gradients of one step, of all parameters in one row."""
    model.zero_grad()
    loss(model(images)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


print("mode        kept (MiB)  peak (MiB)  gradients' error    step")
for mode in ("learned", "off", "exact", "recompute", "int8"):
    if mode == "off":
        efx.convert(model, seed=0)
    if mode != "learned":
        efx.save_memory(model, mode)  # exchanges classes of modules, in place; parameters and checkpoints stay
    if mode in ("learned", "off"):
        true = gradients(copy.deepcopy(model).double(), images.double())
    usage = efx.memory_report(model, images, loss).ours  # print the whole report to see every layer
    start = time.perf_counter()
    found = gradients(model, images)
    seconds = time.perf_counter() - start
    error = (found - true).norm() / true.norm()
    print(f"{mode:9} {usage.kept_bytes / 2**20:12.1f} {usage.peak / 2**20:11.1f} {error:17.1e} {seconds:5.2f} s")
