"""Prune 90 % of a network's spatial filters, by how much its answers depend on each, and fine-tune what is left.

You will see test accuracy before, after and once fine-tuned, beside the size of the network; a check that the small
network computes what the masked one does; and how another program loads it.
"""

import itertools

import timm
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import explainfix_ext as efx
from explainfix_ext.training.data import load_dataset

torch.manual_seed(0)
data = load_dataset("mnist5k", seed=0)
images, digits = data.test.tensors


def train(model: torch.nn.Module, epochs: int) -> None:
    loader = DataLoader(data.train, 64, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * len(loader))
    for x, y in itertools.chain.from_iterable(itertools.repeat(loader, epochs)):
        cross_entropy(model.train()(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def show(stage: str, model: torch.nn.Module) -> None:
    right = (model.eval()(images).argmax(1) == digits).float().mean()
    print(f"{stage:11} {right:.1%} of test digits right, {sum(p.numel() for p in model.parameters()):,} parameters")


# Learned filters. A fixed network (efx.convert here and before apply_plan) is smaller already, so it loses less.
model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
train(model, epochs=2)

# Some batches say which filters matter. "channel" takes whole channels, which makes the network smaller and faster;
# "drop" also removes those that are a constant now: fine-tuning makes up for it.
scored_on = list(itertools.islice(DataLoader(data.train, 64), 8))
report = efx.channelprune(model, images[:1], amount=0.9, data=scored_on, granularity="channel", bn_bias="drop")
print(report)
show("trained", model)  # channelprune works on a copy
show("pruned", report.model)
efx.keep_zeros(report.model, report.plan)  # filters that are zero stay zero
train(report.model, epochs=1)
show("fine-tuned", report.model)

# Another program builds the network as it was, removes the same channels, and loads the weights.
torch.save({"plan": report.plan, "weights": report.model.state_dict()}, "pruned.pt")
saved = torch.load("pruned.pt")
small = efx.apply_plan(timm.create_model("test_resnet", in_chans=1, num_classes=10), saved["plan"])
small.load_state_dict(saved["weights"])
show("loaded", small)
