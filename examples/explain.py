"""See of which frequencies a network's filters are made, before and after training, and which of them it relies on.

You will see a table of the layers after training, then how far each layer moved to low frequencies, and find the
picture of both in spectra.png.
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
model = timm.create_model("test_resnet", in_chans=1, num_classes=10)  # any network, learned or fixed

before = efx.explainsteer(model)

loader = DataLoader(data.train, 64, shuffle=True, drop_last=True)
optimizer = torch.optim.AdamW(model.parameters(), 0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=2 * len(loader))
for images, digits in itertools.chain(loader, loader):  # two epochs
    cross_entropy(model(images), digits).backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()

# With batches of data, each filter counts by how much the true class's logit depends on it. The network stays as it is.
after = efx.explainsteer(model, itertools.islice(DataLoader(data.test, 64), 4))
print(after)

print("\nshare of the energy in low frequencies, random -> trained, with saliency:")
for layer, share in after.low.items():
    print(f"{layer:16} {before.low[layer]:5.1%} -> {share:5.1%}")

before.plot(after, names=("random", "trained")).savefig("spectra.png")
print("picture: spectra.png")
