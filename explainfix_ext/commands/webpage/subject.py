"""Turns MODEL of `explainfix explain`, a checkpoint or a model's name, into a network with what is known about it.

`run.explain` calls `find_subject`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from explainfix_ext._support.models import eval_mode
from explainfix_ext._support.text import first_line, times
from explainfix_ext.conversion.convert import convert
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.training import distributed
from explainfix_ext.training.checkpoint import load_state, read_weights, training_of
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import Dataset, dataset_of, load_dataset
from explainfix_ext.training.models import build_model, check_model
from explainfix_ext.training.network import load_network, make_network

_SIZE, _CLASSES = "3x224x224", 1000  # of ImageNet
_MOST_NUMBERS = 2**28  # of an image, which is 1 GiB


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Describes what is to be explained, and how.

    `init`, `weights` and `seed` are for a model's name only: a checkpoint has its own. So are `size` and `classes`, and
    only if there is no data.

    Attributes:
        model: the path of a checkpoint of `train_networks`, or a name that `build_model` accepts.
        data: a data set that `load_dataset` accepts; None takes the checkpoint's, or no data for a model's name.
        init: how filters are fixed, as in `TrainConfig`; None leaves the model as it is.
        weights: a file with the model's state_dict; None leaves the weights random.
        size: of the images: "PIXELS" or "CHANNELSxHEIGHTxWIDTH", 2**28 numbers at most; None is ImageNet's, 3x224x224.
        classes: outputs of the model; None is ImageNet's 1000.
        batches: how many batches of training images saliency is computed on.
        seed: seed for random weights, filters and the data split.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: a value is out of range; the message names it, what was expected and what came.
    """

    model: str
    data: str | None = None
    init: str | None = None
    weights: Path | None = None
    size: str | None = None
    classes: int | None = None
    batches: int = 20
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batches", "classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("init", "weights", "size", "classes"):
            if self.is_file and getattr(self, name) is not None:
                raise ValueError(f"{name} is of a model's name, and MODEL is a file: {self.model}")
        for name in ("size", "classes"):
            if self.data is not None and getattr(self, name) is not None:
                raise ValueError(f"{name} is that of the data: leave it out, or data")
        parse_size(self.size or _SIZE)

    @property
    def is_file(self) -> bool:
        """Says whether `model` is a path and not a model's name."""
        path = Path(self.model)
        return path.is_file() or path.suffix in (".pt", ".pth") or ("/" in self.model and ":" not in self.model)

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of an image or a signal, from `size`; it counts only if there is no data."""
        return parse_size(self.size or _SIZE)


def parse_size(size: str, channels: int = 3) -> tuple[int, ...]:
    """Returns the shape of an image, from "PIXELS" or "CHANNELSxHEIGHTxWIDTH", or of a signal, "CHANNELSxLENGTH".

    Raises:
        ValueError: size is none of these, or of more than 2**28 numbers.

    Examples:
        >>> parse_size("64"), parse_size("1x28x32"), parse_size("2x150")
        ((3, 64, 64), (1, 28, 32), (2, 150))
    """
    if re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", size) is None:
        raise ValueError(f"size must be PIXELS or CHANNELSxHEIGHTxWIDTH, such as 1x28x28, got {size!r}")
    numbers = tuple(int(n) for n in size.split("x"))
    shape = (channels, *numbers, *numbers) if len(numbers) == 1 else numbers
    if math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"size must be of at most {_MOST_NUMBERS:,} numbers, got {size}")
    return shape


@dataclass(frozen=True)
class Subject:
    """Holds the network to explain.

    Attributes:
        name: of the model.
        weights: where they come from, in words.
        network: the network, on `device`.
        init: how its filters are fixed, in words.
        training: how it was trained. For a model's name with data it says how to read the data; None without data.
        images: the data set; None without data.
        shape: channels, height and width of an image; channels and length of a signal.
        device: where it runs.
        epochs: number of epochs that it was trained for; None for a model's name.
        start: the network before training; None for a model's name, and if it cannot be built.
        no_start: why `start` of a checkpoint could not be built.
        left: name of each spatial layer that was not fixed -> why.
    """

    name: str
    weights: str
    network: nn.Module
    init: str
    training: TrainConfig | None
    images: Dataset | None
    shape: tuple[int, ...]
    device: torch.device
    epochs: int | None = None
    start: nn.Module | None = None
    no_start: str = ""
    left: dict[str, str] = dataclasses.field(default_factory=dict)


def find_subject(config: ExplainConfig) -> Subject:
    """Builds and loads the network that a configuration names.

    Raises:
        ValueError, OSError: a file is not there, is damaged or does not fit, or a name is unknown; all in one line.

    Examples:
        >>> find_subject(ExplainConfig(model="timm:resnet18", init="dct2", size="64")).shape
        (3, 64, 64)
    """
    if distributed.world_size() > 1:
        raise ValueError("explain runs in one process: start it without torchrun")
    device = distributed.choose_device(config.device)
    return _of_checkpoint(config, device) if config.is_file else _of_name(config, device)


def _of_checkpoint(config: ExplainConfig, device: torch.device) -> Subject:
    trained, epochs = training_of(Path(config.model), config.data)
    images = dataset_of(trained)
    network, report = load_network(trained, images, Path(config.model))
    start, no_start = _start(trained, images)
    return Subject(
        name=trained.model,
        weights=f"{config.model}, after {epochs} epoch{'s' * (epochs != 1)}",
        network=network.to(device),
        init=trained.label,
        training=trained.for_one_process(device.type),
        images=images,
        shape=_shape_of(images),
        device=device,
        epochs=epochs,
        start=None if start is None else start.to(device),
        no_start=no_start,
        left={layer.name: layer.reason for layer in report.skipped} if report else {},
    )


def _start(trained: TrainConfig, images: Dataset) -> tuple[nn.Module | None, str]:
    """Builds the network before training; returns None and the reason if its steering file is no longer there."""
    try:
        return make_network(trained, images)[0], ""
    except (OSError, ValueError) as error:
        return None, first_line(error)


def _of_name(config: ExplainConfig, device: torch.device) -> Subject:
    init = config.init or "learned"
    training = TrainConfig(model=config.model, data=config.data or "", init=init, seed=config.seed)
    weights = None if config.weights is None else read_weights(config.weights)
    images = None if config.data is None else load_dataset(config.data, config.seed)
    shape = config.shape if images is None else _shape_of(images)
    outputs = (config.classes or _CLASSES) if images is None else images.outputs
    network = _built(config, shape[0], outputs)
    if images is None:
        check_runs(network, config.model, shape)
    else:
        image, target = images.train[0]
        check_model(network, config.model, image, target, outputs)
    left = _fixed_and_loaded(network, training, weights, str(config.weights))
    loaded = weights is not None and _is_converted(weights)
    return Subject(
        name=config.model,
        weights=f"random, seed {config.seed}" if weights is None else str(config.weights),
        network=network.to(device),
        init=_init_of(network) if loaded else training.label,
        training=None if images is None else training,
        images=images,
        shape=shape,
        device=device,
        left=left,
    )


def _shape_of(images: Dataset) -> tuple[int, ...]:
    return tuple(images.train.tensors[0].shape[1:])


def _built(config: ExplainConfig, channels: int, outputs: int) -> nn.Module:
    torch.manual_seed(config.seed)
    try:
        return build_model(config.model, channels, outputs)
    except ValueError:
        raise
    except Exception as error:  # a library may raise anything
        raise ValueError(f"model {config.model!r} cannot be built: {first_line(error)}") from error


def check_runs(network: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError if a network cannot take images of a shape."""
    try:
        with eval_mode(network), torch.no_grad():
            network(torch.zeros(1, *shape))
    except Exception as error:  # a library may raise anything
        size = times(shape)
        raise ValueError(f"model {name!r} cannot take images of {size}: {first_line(error)}") from error


def _fixed_and_loaded(
    network: nn.Module, training: TrainConfig, weights: dict[str, torch.Tensor] | None, source: str
) -> dict[str, str]:
    """Converts the network as the configuration says, and loads the weights.

    Weights of a plain model are loaded before converting, those of a converted one after it.

    Returns:
        Name of each spatial layer that was not fixed -> why.
    """
    converted = weights is not None and _is_converted(weights)
    if weights is not None and not converted:
        load_state(network, weights, source)
    name, options = training.init_and_options
    report = None if name == "learned" else convert(network, name, seed=training.seed, **options)
    if weights is not None and converted:
        load_state(network, weights, source)
    return {layer.name: layer.reason for layer in report.skipped} if report else {}


def _is_converted(weights: dict[str, torch.Tensor]) -> bool:
    return any(key.endswith("_extra_state") for key in weights)


def _init_of(network: nn.Module) -> str:
    """Names the fixed filters that a network has: a state_dict may have replaced those that were asked for."""
    recipes = [module.bank.recipe for module in network.modules() if isinstance(module, FixedConv)]
    labels = ["given filters" if r is None else r.init + f"@{r.density:g}" * (r.density < 1) for r in recipes]
    thinned = {label.partition("@")[0] for label in labels if "@" in label}  # their stems keep all filters
    return " and ".join(dict.fromkeys(label for label in labels if label not in thinned))
