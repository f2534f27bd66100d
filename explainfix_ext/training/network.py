"""The network of a training run: built, converted, and checked to be the same on every rank."""

from __future__ import annotations

import torch
from torch import nn

from explainfix_ext.conversion.convert import convert
from explainfix_ext.conversion.report import ConversionReport
from explainfix_ext.filters.bank import same_filters
from explainfix_ext.filters.steering import STEERED, Steering
from explainfix_ext.memory import save_memory
from explainfix_ext.nn.fixed_conv2d import FixedConv2d

from . import distributed
from .config import TrainConfig
from .data import Dataset
from .models import build_model, check_model


def make_network(
    config: TrainConfig, data: Dataset, *, to_load: bool = False
) -> tuple[nn.Module, ConversionReport | None]:
    """The model of a configuration, converted as it says. What stays learned starts the same for every init.

    Args:
        to_load: a state_dict is loaded next, and its filters take the place of these: no steering file is read.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model, data.channels, data.outputs)
    image, target = data.train[0]
    check_model(model, config.model, image, target, data.outputs)
    init, options = config.parts
    report = None
    if to_load and init in STEERED:
        init, options = "unchanged", {}  # takes kernels of any size
    if init != "learned":
        options |= {"pointwise": config.pointwise, "learn_coeff": config.learn_coeff}
        if init in STEERED and config.steering is not None:
            options["steering"] = Steering.load(config.steering)
        report = convert(model, init, seed=config.seed, **options)
    save_memory(model, config.memory)
    return model, report


def check_banks_alike(model: nn.Module) -> None:
    """Once, before training: DDP sends parameters and buffers to all ranks, and fixed filters are neither.

    Raises:
        RuntimeError: a layer's filters differ between ranks; it is named.
    """
    banks = {name: m.bank.fingerprint() for name, m in model.named_modules() if isinstance(m, FixedConv2d)}
    for rank, others in enumerate(distributed.gather(banks)):
        for name, mark in banks.items():
            if name not in others or not same_filters(mark, others[name]):
                raise RuntimeError(f"{name} has other fixed filters on rank {rank} than on rank {distributed.rank()}")
