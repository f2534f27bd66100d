"""Builds the network of a configuration. `Trainer`, pruning and the web page call it, so all three get the same one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from explainfix_ext.conversion.convert import convert
from explainfix_ext.conversion.report import ConversionReport
from explainfix_ext.filters.fingerprint import same_filters
from explainfix_ext.filters.steering import STEERED, Steering
from explainfix_ext.memory import save_memory
from explainfix_ext.memory.streaming import stream
from explainfix_ext.nn.fixed_conv import FixedConv

from . import distributed
from .checkpoint import load_state, read_weights
from .config import TrainConfig
from .data import Dataset
from .models import build_model, check_model

_CALIBRATION_IMAGES = 32  # of large ones these are enough, for small ones the batch must be of many


def make_network(
    config: TrainConfig, data: Dataset, *, to_load: bool = False
) -> tuple[nn.Module, ConversionReport | None]:
    """Builds the model, checks that it fits the data, converts it, and applies the memory mode and streaming.

    The seed fixes all weights: those that stay learned are the same for every `config.init`.

    Args:
        to_load: the caller loads a state_dict next, which replaces the filters: no steering file is read. The network
            is not streamed.

    Returns:
        The network, and the report of `convert`; None if `config.init` is "learned".
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model, data.channels, data.outputs)
    image, target = data.train[0]
    check_model(model, config.model, image, target, data.outputs)
    init, options = config.init_and_options
    report = None
    if to_load and init in STEERED:
        init, options = "unchanged", {}  # any init would do, for its filters are replaced; this one takes all sizes
    if init != "learned":
        options |= {"pointwise": config.pointwise, "learn_coeff": config.learn_coeff}
        if init in STEERED and config.steering is not None:
            options["steering"] = Steering.load(config.steering)
        report = convert(model, init, seed=config.seed, **options)
    save_memory(model, config.memory)
    if config.stream is not None and not to_load:
        stream(model, config.stream, calibrate=data.train[:_CALIBRATION_IMAGES][0])
    return model, report


def load_network(config: TrainConfig, data: Dataset, path: Path) -> tuple[nn.Module, ConversionReport | None]:
    """Builds the network of a training run, and loads its weights from `path`; returns what `make_network` does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no state_dict, or one that does not fit the network, which is then not even built.
    """
    weights = read_weights(path)
    _check_shapes(config, data, weights, str(path))
    network, report = make_network(config, data, to_load=True)
    load_state(network, weights, str(path))
    return network, report


def _check_shapes(config: TrainConfig, data: Dataset, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuses weights of another network than the configuration names, before that takes memory.

    The configuration is of the same file as the weights, and may name a network of any size.
    """
    try:
        with torch.device("meta"):
            wanted = build_model(config.model, data.channels, data.outputs).state_dict()
    except (NotImplementedError, RuntimeError):
        return  # a library's model that reads numbers while it is built: it can only be built whole
    for name, tensor in wanted.items():
        if name not in weights and f"{name.removesuffix('weight')}_extra_state" in weights:
            continue  # fixed filters are no weight
        if name not in weights or weights[name].shape != tensor.shape:
            found = f"size mismatch, {list(weights[name].shape)}" if name in weights else "nothing"
            raise ValueError(
                f"{source} does not fit the model: {name} must be {list(tensor.shape)} in {config.model}, got {found}"
            )


def check_banks_alike(model: nn.Module) -> None:
    """Checks that all ranks have the same fixed filters: DDP would give them rank 0's in its first call, unasked.

    Raises:
        RuntimeError: a layer's filters differ between ranks; it is named.
    """
    banks = {name: m.bank.fingerprint() for name, m in model.named_modules() if isinstance(m, FixedConv)}
    for rank, others in enumerate(distributed.gather(banks)):
        for name, mark in banks.items():
            if name not in others or not same_filters(mark, others[name]):
                raise RuntimeError(f"{name} has other fixed filters on rank {rank} than on rank {distributed.rank()}")
