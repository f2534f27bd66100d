"""Holds every setting that the result of one training run depends on; the commands make it, checkpoints store it."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from explainfix_ext._support.text import check_utf8, shown, unknown_name
from explainfix_ext.filters.choose_init import check_init, init_names
from explainfix_ext.filters.steering import STEERED
from explainfix_ext.memory.save import check_mode

from .augment import parse_augment
from .losses import LOSSES

AMP = ("off", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Describes one training run: one network on one data set.

    Attributes:
        model: a name that `build_model` accepts.
        data: a data set that `load_dataset` accepts.
        init: "learned" (the model as it is), "auto" or a name of `initializers()`, or NAME@DENSITY such as "dct2@0.1".
        pointwise, learn_coeff: arguments of `convert`; no effect if init is "learned".
        epochs: passes over the training images.
        epoch_size: images that an epoch draws with replacement; None: each image once.
        batch_size: images per step and process.
        lr: the highest learning rate, reached after the warm-up; a cosine takes it to 0.
        weight_decay: AdamW's.
        seed: seed for the data split, the model's weights, the filters and the order of the images.
        amp: mixed precision: "off", "bf16", or (CUDA only) "fp16".
        accumulate: steps per update of the weights.
        limit: train on this many images only; None trains on all.
        world_size: processes that train together.
        memory: a mode of `save_memory`.
        stream: pixels of a tile, see `explainfix_ext.stream`; None: images whole.
        loss: "auto", the task's, or a name of `losses.LOSSES`.
        augment: how training images are changed, as `augment.parse_augment` reads it; None: they are not.
        steering: a file written by `Steering.save`; needed by init guided_steer, svd_steer and dct_steer, ignored by
            others.

    Raises:
        ValueError: a value is of another type or out of range; the message names it, what was expected and what came.
    """

    model: str = "bottleneck"
    data: str = "mnist5k"
    init: str = "learned"
    pointwise: bool = False
    learn_coeff: bool = False
    epochs: int = 10
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0
    amp: str = "off"
    accumulate: int = 1
    limit: int | None = None
    world_size: int = 1
    memory: str = "off"
    steering: str | None = None
    stream: int | None = None
    epoch_size: int | None = None
    loss: str = "auto"
    augment: str | None = None

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("epochs", "batch_size", "accumulate", "limit", "stream", "epoch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be 0 or positive, got {self.weight_decay}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if self.amp not in AMP:
            raise ValueError(f"amp must be one of {', '.join(AMP)}, got {self.amp!r}")
        if self.loss not in ("auto", *LOSSES):
            raise ValueError(f"loss must be one of auto, {', '.join(LOSSES)}, got {self.loss!r}")
        parse_augment(self.augment)
        check_mode(self.memory)
        _check_init(*self.init_and_options)
        if self.init_and_options[0] in STEERED and self.steering is None:
            raise ValueError(f"init {self.init_and_options[0]} needs steering, a file of Steering.save")

    def _check_types(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            value, types = getattr(self, name), typing.get_args(hint) or (hint,)
            fits = isinstance(value, (*types, int) if float in types else types)
            if not fits or (isinstance(value, bool) and bool not in types):
                names = " or ".join(kind.__name__.replace("NoneType", "None") for kind in types)
                raise ValueError(f"{name} must be of type {names}, got {shown(value)}")
            if isinstance(value, str):
                check_utf8(name, value)

    @classmethod
    def from_saved(cls, saved: Any, source: str) -> TrainConfig:
        """Makes the configuration that a checkpoint holds as a dict.

        Args:
            saved: the dict; fields that it lacks, as it is older than they are, get their defaults.
            source: the checkpoint's path, for the message.

        Raises:
            ValueError: it is no dict, has a field that this version does not know, or a value that no run can have.
        """
        _check_dict(saved, source)
        fields = {field.name for field in dataclasses.fields(cls)}
        unknown = next((name for name in saved if name not in fields), None)
        if unknown is not None:
            raise ValueError(f"{source} is of another version of explainfix_ext: its configuration has {unknown!r}")
        try:
            return cls(**saved)
        except ValueError as error:
            raise ValueError(f"{source} has a wrong configuration: {error}") from None

    @property
    def init_and_options(self) -> tuple[str, dict[str, Any]]:
        """Returns `init` as `convert` takes it: "dct2@0.1" becomes ("dct2", {"density": 0.1})."""
        name, at, density = self.init.partition("@")
        try:
            return name, {"density": float(density)} if at else {}
        except ValueError:
            raise ValueError(f"init must be NAME or NAME@DENSITY such as dct2@0.1, got {self.init!r}") from None

    @property
    def label(self) -> str:
        """Names the network in tables, and its folder: init and the options that differ from the default."""
        memory = ("" if self.memory == "off" else f"+{self.memory}") + "+stream" * (self.stream is not None)
        if self.init == "learned":
            return self.init + memory
        return self.init + "+pointwise" * self.pointwise + "+coeff" * self.learn_coeff + memory

    def for_one_process(self, device_type: str) -> TrainConfig:
        """Returns the configuration for work after training: in one process, and without fp16 if that is on a CPU."""
        amp = "off" if self.amp == "fp16" and device_type == "cpu" else self.amp
        return dataclasses.replace(self, amp=amp, world_size=1)

    def check_same(self, saved: dict[str, Any], source: str) -> None:
        """Checks that a saved run, whose configuration is `saved`, may be resumed with this one.

        Args:
            saved: the configuration in a checkpoint, as a dict.
            source: the checkpoint's path, for the message.

        Raises:
            ValueError: a field differs, the first one is named; or `saved` is no dict.
        """
        _check_dict(saved, source)
        for name, value in dataclasses.asdict(self).items():
            if name in ("pointwise", "learn_coeff") and self.init == "learned":
                continue
            before = saved.get(name, getattr(type(self), name, None))  # a checkpoint older than the field: the default
            if before != value:
                raise ValueError(f"{source} was made with {name} = {before}, now it is {value}: resume "
                                 f"with what it was made with, or choose another --out")  # fmt: skip


def _check_dict(saved: Any, source: str) -> None:
    if not isinstance(saved, dict):
        raise ValueError(f"{source} is damaged: its configuration must be a dict, got a {type(saved).__name__}")


def _check_init(name: str, options: dict[str, Any]) -> None:
    if name == "learned":
        if options:
            raise ValueError("init learned has no density: it is the network as it is")
        return
    try:
        check_init(name)
    except ValueError:
        error = unknown_name("init", name, ["learned", *init_names()])
        raise ValueError(f"{error}; `explainfix inits` lists all") from None
    if not 0 < options.get("density", 1) <= 1:
        raise ValueError(f"the density in init {name}@DENSITY must be in (0, 1], got {options['density']}")
