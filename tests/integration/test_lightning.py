"""A converted model in a LightningModule, on real images: train, test, save, load, and go on training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import explainfix_ext as efx
from explainfix_ext.training.data import load_dataset

L = pytest.importorskip("lightning", reason='lightning (extra "test") is not installed')
pytest.importorskip("mlxtend", reason='needs the extra "demo"')
pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, on few steps and workers

STEPS = 40


class Digits(L.LightningModule):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.Conv2d(16, 32, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32),
            nn.Conv2d(32, 64, 1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
        efx.convert(self.network, {"0": "ghaar4_s1", "4": "dct2"}, seed=seed)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, digits = batch
        loss = nn.functional.cross_entropy(self.network(images), digits)
        self.log("loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, digits = batch
        self.log("accuracy", (self.network(images).argmax(1) == digits).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.01)


def trainer(folder: Path, steps: int) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_lightning_trains_saves_and_goes_on(tmp_path: Path) -> None:
    data = load_dataset("mnist5k", seed=0)
    train, test = DataLoader(data.train, 64, shuffle=True), DataLoader(Subset(data.test, range(256)), 256)
    module, first = Digits(), trainer(tmp_path, STEPS)
    filters = [layer.weight for layer in (module.network[0], module.network[4])]
    first.fit(module, train)
    (scores,) = first.test(module, test, verbose=False)
    assert scores["accuracy"] > 0.5, "chance is 0.1"
    assert all(torch.equal(module.network[i].weight, w) for i, w in zip((0, 4), filters, strict=True))
    first.save_checkpoint(tmp_path / "digits.ckpt")

    saved = torch.load(tmp_path / "digits.ckpt", weights_only=True)["state_dict"]
    assert "network.0._extra_state" in saved
    assert "network.0.weight" not in saved
    loaded = Digits.load_from_checkpoint(tmp_path / "digits.ckpt", seed=1)  # other filters, until the checkpoint's come
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert trainer(tmp_path, STEPS).test(loaded, test, verbose=False) == [scores]

    second, more = Digits(seed=1), trainer(tmp_path, STEPS + 2)
    more.fit(second, train, ckpt_path=tmp_path / "digits.ckpt")
    assert more.global_step == STEPS + 2
    assert more.test(second, test, verbose=False)[0]["accuracy"] > 0.5, "two steps alone do not get there"
    assert all(torch.equal(second.network[i].weight, w) for i, w in zip((0, 4), filters, strict=True))
